"""Resuming: N draws and then M more are, bit for bit, the N + M of one run."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import (
    Counting,
    draws_of,
    gumbel,
    quiet_sample,
    rng,
    small_gebm,
    stat_names,
    stats_of,
)
from torch import nn

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.mcmc import KERNELS, free_jumps

SMALL = {"num_chains": 5, "warmup_steps": 12}
JUMPS = pg.GlobalMoves(num_proposals=3, every=2)
KINDS = {name: {"kernel": name} for name in KERNELS} | {
    "ABOBA": {"kernel": pg.Kinetic(scheme="ABOBA")},
    "HMC, jumps": {"kernel": "HMC", "global_moves": JUMPS},
    "tempered ChEES": {"kernel": "ChEES", "tempering": (0.3, 1)},
    "tempered NUTS": {"kernel": "NUTS", "tempering": (0.3, 1)},
    "tempered Kinetic": {"kernel": "Kinetic", "tempering": 3},
    "steps by chain": {"kernel": pg.HMC(step_size_per_chain=True)},
}


def assert_continues(parts, whole):
    """The draws and statistics of ``parts``, one after the other, are those of ``whole``."""
    z = np.concatenate([draws_of(part) for part in parts], 1)
    assert np.array_equal(z, draws_of(whole))
    for name in stat_names(whole):
        told = np.concatenate([stats_of(part, name) for part in parts], 1)
        assert np.array_equal(told, stats_of(whole, name), equal_nan=True), name


def same_state(one, other):
    a, b = (inference_data.sampling_state(idata) for idata in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("thinning", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_bit_exact(kind, thinning, tmp_path):
    gebm, settings = small_gebm(), {**KINDS[kind], **SMALL, "thinning": thinning}
    whole = quiet_sample(gebm, num_samples=14, **settings)
    first = quiet_sample(gebm, num_samples=6, **settings)
    # The noise is that of the run which is resumed: another seed is a misunderstanding.
    with pytest.raises(ValueError, match="seed: expected None or"):
        quiet_sample(gebm, num_samples=3, resume=first, **settings | {"seed": 9})
    second = quiet_sample(gebm, num_samples=3, resume=first, **settings)
    inference_data.save(second, tmp_path / "run.nc")
    third = quiet_sample(
        gebm, num_samples=5, resume=inference_data.load(tmp_path / "run.nc"), **settings
    )
    assert_continues([first, second, third], whole)
    assert same_state(third, whole)
    assert third.attrs["seed"] == whole.attrs["seed"]


def test_through_a_file_of_arviz(tmp_path):
    gebm, settings = small_gebm().double(), {"kernel": "NUTS", **SMALL}
    whole = quiet_sample(gebm, num_samples=8, **settings)
    first = quiet_sample(gebm, num_samples=5, **settings)
    first.to_netcdf(str(tmp_path / "run.nc"))
    again = az.from_netcdf(str(tmp_path / "run.nc"))
    assert_continues([first, quiet_sample(gebm, num_samples=3, resume=again, **settings)], whole)


def test_nothing_is_warmed_up_again():
    gebm, settings = small_gebm(), {"kernel": "HMC", **SMALL}
    first = quiet_sample(gebm, num_samples=5, **settings)
    more = quiet_sample(gebm, num_samples=5, resume=first, **settings)
    assert more.attrs["tuning_steps"] == 0 == more.attrs["warmup_gradient_evaluations"]
    assert first.attrs["tuning_steps"] == 12
    assert np.array_equal(stats_of(first, "step_size"), stats_of(more, "step_size"))


def test_a_pyro_model_goes_on_where_it_was():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(mean, scale).expand([3]).to_event(1), obs=y)

    settings = {"y": torch.tensor([0.3, -0.4, 1.0]), "kernel": "HMC", **SMALL}
    whole, first = (quiet_sample(model, num_samples=n, **settings) for n in (8, 5))
    more = quiet_sample(model, num_samples=3, resume=first, **settings)
    for name in ("mean", "scale"):
        parts = np.concatenate([draws_of(part, name) for part in (first, more)], 1)
        assert np.array_equal(parts, draws_of(whole, name))


class Hills(nn.Module):
    """An energy that no batch rounds differently."""

    def forward(self, x):
        return (2 * x).cos().sum(-1)


def hills():
    return pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2)), Hills())


def test_free_running_with_jumps():
    settings = {"kernel": "NUTS", "global_moves": JUMPS, **SMALL, "thinning": 2}
    whole, first = (quiet_sample(hills(), num_samples=n, **settings) for n in (20, 9))
    more = quiet_sample(hills(), num_samples=11, resume=first, **settings)
    assert_continues([first, more], whole)
    assert same_state(more, whole)


@pytest.mark.parametrize("fail_after", [40, 77, 110])
@pytest.mark.parametrize("kind", ["NUTS", "HMC", "ChEES", "Kinetic"])
@pytest.mark.parametrize("thinning", [1, 2])
def test_after_ctrl_c(kind, thinning, fail_after):
    start = torch.randn(7, 2, generator=rng())
    settings = {"kernel": kind, "num_chains": 7, "warmup_steps": 12, "thinning": thinning}
    total = 150 if kind in ("Kinetic", "ChEES") else 60

    def go(potential_fn, num_samples, **more):
        return quiet_sample(potential_fn, num_samples=num_samples, **settings, **more)

    whole = go(gumbel, total, initial_params=start)
    warm = round(whole.attrs["warmup_gradient_evaluations"])
    # The start is evaluated twice before warm-up.
    potential = Counting(gumbel, fail_at=2 + warm + fail_after)
    part = go(potential, total, initial_params=start)
    done = draws_of(part).shape[1]
    assert part.attrs["interrupted"] == 1 and 0 < done < total
    assert_continues([part, go(gumbel, total - done, resume=part)], whole)


def test_free_running_with_jumps_from_deck_to_deck(monkeypatch):
    monkeypatch.setattr(free_jumps, "HANDS", 3)
    settings = {"kernel": "NUTS", "global_moves": JUMPS, **SMALL}
    whole = quiet_sample(hills(), num_samples=40, **settings)
    pieces = [quiet_sample(hills(), num_samples=7, **settings)]
    for n in (1, 20, 12):
        pieces.append(quiet_sample(hills(), num_samples=n, resume=pieces[-1], **settings))
    assert_continues(pieces, whole)


def test_a_run_that_did_not_count_its_transitions_goes_on(monkeypatch):
    settings = {"kernel": "NUTS", "global_moves": JUMPS, **SMALL}
    first = quiet_sample(hills(), num_samples=6, **settings)
    read = inference_data.sampling_state

    def old(idata):
        return {name: value for name, value in read(idata).items() if name != "transitions"}

    monkeypatch.setattr(inference_data, "sampling_state", old)
    one = quiet_sample(hills(), num_samples=9, resume=first, **settings)
    monkeypatch.setattr(inference_data, "sampling_state", read)
    assert (draws_of(one) != draws_of(first)[:, -1:]).any()
    again = quiet_sample(hills(), num_samples=5, resume=one, **settings)
    assert (read(again)["transitions"] == read(one)["transitions"] + 5).all()


@pytest.mark.parametrize("fail_after", [40, 77, 110])
def test_after_ctrl_c_with_jumps(fail_after):
    settings = {"kernel": "NUTS", "global_moves": JUMPS, **SMALL}
    gebm = hills()
    whole = quiet_sample(gebm, num_samples=60, **settings)
    warm = round(whole.attrs["warmup_gradient_evaluations"])
    honest, gradients = gebm.energy.forward, [0]

    def forward(x):
        gradients[0] += x.requires_grad
        if gradients[0] == 2 + warm + fail_after:
            raise KeyboardInterrupt
        return honest(x)

    gebm.energy.forward = forward
    part = quiet_sample(gebm, num_samples=60, **settings)
    gebm.energy.forward = honest
    done = draws_of(part).shape[1]
    assert part.attrs["interrupted"] == 1 and 0 < done < 60
    rest = quiet_sample(gebm, num_samples=60 - done, resume=part, **settings)
    assert_continues([part, rest], whole)


OWN = (
    pg.Kinetic(scheme="ABOBA", friction=5.0),
    pg.NUTS(max_tree_depth=np.int64(1)),  # NumPy's numbers are welcome
    pg.HMC(jitter=np.float32(0.1)),
)


@pytest.mark.parametrize("kernel", OWN, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("named", [False, True])
def test_the_kernels_settings_are_taken_from_there(kernel, named, tmp_path):
    gebm = small_gebm()
    whole, first = (quiet_sample(gebm, num_samples=n, kernel=kernel, **SMALL) for n in (8, 5))
    inference_data.save(first, tmp_path / "run.nc")
    again = {"kernel": kernel.name} if named else {}
    settings = {"num_samples": 3, "resume": inference_data.load(tmp_path / "run.nc"), **again}
    assert_continues([first, quiet_sample(gebm, **settings)], whole)


def test_where_no_settings_are_known_none_are_compared():
    first = quiet_sample(small_gebm(), kernel=pg.HMC(jitter=0.1), num_samples=4, **SMALL)
    del first.attrs["kernel_settings"]  # as of earlier versions
    assert draws_of(quiet_sample(small_gebm(), resume=first, num_samples=4)).shape[1] == 4


LADDER = (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("was", "change", "told"),
    [
        ({}, {"kernel": pg.HMC(jitter=0.1)}, r"kernel: expected jitter=0\.5 .* got 0\.1; leave"),
        ({"thinning": 2}, {"thinning": 1}, "thinning: expected 2 as in the run"),
        ({"tempering": LADDER}, {"tempering": (0, 0.2, 1)}, r"tempering: .*\(0\.0, 0\.5, 1\.0\)"),
        ({"tempering": LADDER}, {"tempering": 4}, "as in that run; got 4"),
        ({}, {"tempering": LADDER}, "tempering: expected None to resume"),
        ({"global_moves": JUMPS}, {"global_moves": None}, "global_moves: .* got None; start a new"),
        ({}, {"global_moves": JUMPS}, "global_moves: expected None as in that run"),
    ],
)
def test_settings_that_contradict_are_refused(was, change, told):
    settings = {"kernel": "HMC", "num_samples": 4, "global_moves": None, **SMALL, **was}
    first = quiet_sample(small_gebm(), **settings)
    with pytest.raises(ValueError, match=told):
        quiet_sample(small_gebm(), resume=first, **settings | change)


@pytest.mark.parametrize("tempering", [None, "auto", 3, LADDER])
def test_the_same_ladder_by_any_name_is_resumed(tempering):
    settings = {"kernel": "HMC", **SMALL}
    whole, first = (
        quiet_sample(small_gebm(), num_samples=n, tempering=LADDER, **settings) for n in (8, 5)
    )
    more = {"num_samples": 3, "resume": first, "tempering": tempering}
    assert_continues([first, quiet_sample(small_gebm(), **more, **settings)], whole)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kernel": "HMC"}, "expected a run of HMC with 5 chains; got one of NUTS with 5"),
        ({"num_chains": 6}, "expected a run of NUTS with 6 chains; got one of NUTS with 5"),
    ],
)
def test_other_settings_are_refused(change, told):
    settings = {"kernel": "NUTS", "num_samples": 4, **SMALL}
    first = quiet_sample(small_gebm(), **settings)
    with pytest.raises(ValueError, match=told):
        quiet_sample(small_gebm(), resume=first, **settings | change)


@pytest.mark.parametrize(
    "given", [5, {"z": 1}, "run.nc", inference_data.build({"z": np.zeros((2, 4, 1))}, {}, {})]
)
def test_what_is_no_result_is_refused(given):
    with pytest.raises(ValueError, match="resume: expected what sample"):
        quiet_sample(small_gebm(), kernel="NUTS", num_samples=4, resume=given, **SMALL)
