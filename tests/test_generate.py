"""``generate`` into a file: the same samples, whatever stops it on the way."""

import warnings

import numpy as np
import pytest
import torch
from helpers import linear_gaussian, linear_gaussian_posterior

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.sampling import streamed

SETTINGS = {"kernel": "HMC", "num_chains": 10, "warmup_steps": 20, "seed": 2, "progress": False}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(streamed, "PIECE", 40)  # 4 draws of 10 chains


def generate(store=None, num_samples=193, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        gebm = linear_gaussian()
        return pg.generate(gebm, num_samples, store=store, **{**SETTINGS, **changes})


def stop_after(monkeypatch, pieces, *, where="keep"):
    """Let a call die behind so many pieces, before or after its state is on disk."""
    real, seen = getattr(streamed._File, where), []

    def dying(self, *args):
        if where == "write":  # samples of the last piece are on disk, its state is not
            real(self, *args)
        if len(seen) == pieces:
            raise RuntimeError("killed")
        seen.append(0)
        if where == "keep":
            real(self, *args)

    monkeypatch.setattr(streamed._File, where, dying)


@pytest.mark.parametrize("changes", [{}, {"global_moves": pg.GlobalMoves(num_proposals=4, every=2)},
                                     {"kernel": "NUTS"}, {"anneal_stages": 2}])  # fmt: skip
def test_the_file_holds_what_memory_would(tmp_path, changes):
    x = generate(tmp_path / "x.npy", **changes)
    assert torch.equal(x, generate(**changes))
    assert np.array_equal(np.load(tmp_path / "x.npy"), x.numpy())
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]


def test_every_row_is_filled_once_and_in_no_order():
    wanted = streamed.Wanted(193, 10, 0, {})
    rows = streamed.place_of(wanted, 0)
    assert rows.shape == (10, 20) and (rows == -1).sum() == 7
    assert np.array_equal(np.sort(rows[rows >= 0]), np.arange(193))
    chain, draw = np.indices(rows.shape)
    for place in (chain, draw):
        # Of 193 in random order, 4 standard deviations; in the order of chains or draws it is 1.
        assert abs(np.corrcoef(place[rows >= 0], rows[rows >= 0])[0, 1]) < 4 / 193**0.5
    assert np.array_equal(rows, streamed.place_of(wanted, 0))
    assert not np.array_equal(rows, streamed.place_of(wanted, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_file_has_the_models_kind_of_numbers(tmp_path, dtype):
    # torch.equal does not mind another dtype.
    settings = {**SETTINGS, "num_chains": 5, "warmup_steps": 5, "kernel": "MALA"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        x, in_memory = (
            pg.generate(linear_gaussian().to(dtype), 12, store=store, **settings)
            for store in (tmp_path / "x.npy", None)
        )
    assert x.dtype == in_memory.dtype == dtype and torch.equal(x, in_memory)
    assert torch.from_numpy(np.load(tmp_path / "x.npy")).dtype == dtype


@pytest.mark.parametrize("where", ["write", "keep"])
@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_killed_and_called_again_it_is_bit_for_bit_the_same(tmp_path, monkeypatch, pieces, where):
    whole = generate(tmp_path / "whole.npy")
    with monkeypatch.context() as patch:
        stop_after(patch, pieces, where=where)
        with pytest.raises(RuntimeError, match="killed"):
            generate(tmp_path / "x.npy")
    assert not (tmp_path / "x.npy").exists()
    with monkeypatch.context() as patch:  # and a second time
        stop_after(patch, 1, where=where)
        with pytest.raises(RuntimeError, match="killed"):
            generate(tmp_path / "x.npy", seed=None if pieces else 2)
    assert torch.equal(generate(tmp_path / "x.npy"), whole)


def test_a_piece_counts_as_done_only_when_its_samples_are_on_disk(tmp_path, monkeypatch):
    quick = {"num_samples": 100, "kernel": "MALA", "warmup_steps": 5}
    real, calls = streamed._File.write, []

    def dying(self, *args):
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("killed")
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(streamed._File, "write", dying)
        with pytest.raises(RuntimeError, match="killed"):
            generate(tmp_path / "x.npy", **quick)
    assert torch.equal(generate(tmp_path / "x.npy", **quick), generate(**quick))


def test_only_what_is_left_is_drawn(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RuntimeError):
            generate(tmp_path / "x.npy")
    rows, real = [], streamed._File.write

    def counting(self, target, x):
        rows.append(len(x))
        real(self, target, x)

    monkeypatch.setattr(streamed._File, "write", counting)
    generate(tmp_path / "x.npy")
    assert len(rows) == 5 - 3 and max(rows) <= 40


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    whole = generate()
    # The third piece comes back short, as sample() gives it after Ctrl-C.
    real, calls = pg.sampling.generate.__globals__["sample"], []

    def interrupted(model, **settings):
        calls.append(settings["num_samples"])
        run = real(model, **settings)
        if len(calls) == 3:
            run.attrs["interrupted"] = 1
        return run

    with monkeypatch.context() as patch:
        patch.setitem(pg.sampling.generate.__globals__, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"of 193 samples are in .*the same call"):
            generate(tmp_path / "x.npy")
    assert torch.equal(generate(tmp_path / "x.npy"), whole)


def test_samples_are_of_the_model_and_in_random_order(tmp_path):
    x = generate(tmp_path / "x.npy", num_samples=6000, num_chains=200, thinning=2)
    mean, _ = linear_gaussian_posterior(linear_gaussian())
    gebm = linear_gaussian()
    with torch.no_grad():
        expected = gebm.base(torch.as_tensor(mean)[None])[0]
    spread = x.std(0) / 1000**0.5  # ESS of a few draws a chain: at least one in six
    assert ((x.mean(0) - expected).abs() < 4 * spread).all()
    halves = x[:3000].mean(0) - x[3000:].mean(0)
    assert (halves.abs() < 5 * spread).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_samples": 194}, "num_samples=193"),
        ({"beta": 2.0}, "beta=1.0"),
        ({"seed": 3}, "seed=2"),
        ({"kernel": "NUTS"}, "kernel=\"'HMC'\""),
        ({"thinning": 1}, "thinning"),
    ],
)
def test_other_settings_are_refused(tmp_path, monkeypatch, changes, words):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(RuntimeError):
            generate(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=f"was begun with {words}"):
        generate(tmp_path / "x.npy", **changes)


def test_another_model_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(RuntimeError):
            generate(tmp_path / "x.npy")
    other = linear_gaussian()
    with torch.no_grad():
        other.base.generator.bias.add_(1)
    with pytest.raises(ValueError, match="expected the model"):
        pg.generate(other, 193, store=tmp_path / "x.npy", **SETTINGS)


def test_a_file_is_never_written_over(tmp_path):
    (tmp_path / "x.npy").write_text("mine")
    with pytest.raises(ValueError, match=r"x.npy is there already"):
        generate(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"ends in .npy; got 'x.npz'"):
        generate(tmp_path / "x.npz")


def test_without_a_seed_one_is_chosen_and_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(RuntimeError):
            generate(tmp_path / "x.npy", seed=None)
    run = inference_data.load(tmp_path / "x.npy.state.nc")
    seed = int(run.attrs["seed"])
    x = generate(tmp_path / "x.npy", seed=None)
    assert torch.equal(x, generate(seed=seed))
