"""Draws that go to a file while they are made: the same run, in bounded memory, come what may."""

import json
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Counting, draws_of, gumbel, normal, quiet_sample, rng, small_gebm, stats_of

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.inference_data import Store
from pyro_gebm.inference_data.diagnostics import MOST_SUSPECTS, suspects
from pyro_gebm.mcmc import draws as draws_module

JUMPS = pg.GlobalMoves(num_proposals=3, every=2)
KINDS = {
    "HMC, jumps": {"kernel": "HMC", "global_moves": JUMPS},
    "NUTS": {"kernel": "NUTS"},
    "NUTS, jumps, thinned": {"kernel": "NUTS", "global_moves": JUMPS, "thinning": 2},
    "ChEES": {"kernel": "ChEES"},
    "Kinetic": {"kernel": "Kinetic"},
    "tempered MALA": {"kernel": "MALA", "tempering": (0.3, 1)},
}
SMALL = {"num_chains": 66, "num_samples": 40, "warmup_steps": 10}
TIMES = {"created_at", "sampling_time"}


def names(folder):
    return [path.name for path in folder.iterdir()]


def groups_of(idata):
    """Name -> Dataset, on either version of ArviZ."""
    if hasattr(idata, "children"):
        return {name: node.to_dataset() for name, node in idata.children.items()}
    return {name: idata[name] for name in idata.groups()}


def assert_same(one, other):
    ours, theirs = groups_of(one), groups_of(other)
    assert ours.keys() == theirs.keys()
    for group in ours:
        assert set(ours[group].variables) == set(theirs[group].variables)
        for name in ours[group].variables:
            a, b = ours[group][name], theirs[group][name]
            assert a.dtype == b.dtype and a.dims == b.dims, (group, name)
            # Draws are pushed forward by as many rows as come: with some processors a product's
            # last digit hangs on that.
            if name == "x":
                np.testing.assert_allclose(a.values, b.values, rtol=0, atol=1e-6)
            else:
                np.testing.assert_array_equal(a.values, b.values, err_msg=f"{group} {name}")
    for mine, yours in ((one, other), (ours["posterior"], theirs["posterior"])):
        assert mine.attrs.keys() == yours.attrs.keys()
        for name in mine.attrs.keys() - TIMES:
            assert np.array_equal(mine.attrs[name], yours.attrs[name]), name


@pytest.fixture
def small_pieces(monkeypatch):
    """Draws that are handed on by 16, in step and freely, so that short runs have many pieces."""
    monkeypatch.setattr(draws_module, "FLUSH", 16)
    monkeypatch.setattr(draws_module, "WINDOW", 16)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", KINDS)
def test_the_run_in_memory_and_the_one_on_disk_are_one(kind, tmp_path):
    settings = {**SMALL, **KINDS[kind], "include_x": True, "include_warmup": True}
    in_memory = quiet_sample(small_gebm(), **settings)
    stored = quiet_sample(small_gebm(), store=tmp_path / "draws.nc", **settings)
    assert_same(stored, in_memory)
    assert_same(inference_data.load(tmp_path / "draws.nc"), in_memory)
    assert 0 < stored.attrs["sampling_time"] < 1000
    assert names(tmp_path) == ["draws.nc"]


def model(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.deterministic("ratio", mean / scale)
    pyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)


@pytest.mark.parametrize("dtype", [None, "float16", "float64"])
def test_sites_of_a_pyro_model(dtype, tmp_path):
    settings = {"kernel": "NUTS", "storage_dtype": dtype, "include_x": True, **SMALL}
    settings = {**settings, "num_samples": 20, "num_chains": 3, "y": torch.tensor([0.3, -0.4])}
    stored = quiet_sample(model, store=str(tmp_path / "a.nc"), **settings)
    # A file that was saved, too, widens 16-bit floats.
    inference_data.save(quiet_sample(model, **settings), tmp_path / "b.nc")
    assert set(inference_data.names(stored, "posterior")) == {"scale", "mean", "ratio"}
    assert_same(stored, inference_data.load(tmp_path / "b.nc"))


def test_the_same_warnings(tmp_path):
    def told(**more):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            settings = {"kernel": pg.HMC(step_size=3.0, adapt_step_size=False), "seed": 0}
            pg.sample(small_gebm(), progress=False, **{**SMALL, **settings}, **more)
        return [str(warning.message) for warning in caught if warning.category is UserWarning]

    in_memory = told()
    assert in_memory and told(store=tmp_path / "draws.nc") == in_memory


def test_resuming_from_the_file_and_into_it(tmp_path):
    gebm, path = small_gebm(), tmp_path / "draws.nc"
    for kernel in ("NUTS", "Kinetic"):
        settings = {**SMALL, "kernel": kernel}
        whole = quiet_sample(gebm, **settings | {"num_samples": 60})
        first = quiet_sample(gebm, store=path, **settings)
        # What the run goes on from is read before its file is replaced.
        early = draws_of(first)
        second = quiet_sample(gebm, store=path, resume=first, **settings | {"num_samples": 20})
        assert np.array_equal(np.concatenate([early, draws_of(second)], 1), draws_of(whole))
        state, after = (inference_data.sampling_state(idata) for idata in (second, whole))
        assert state.keys() == after.keys()
        assert all(np.array_equal(state[name], after[name]) for name in state)


MEMORY = """
import json, pathlib, tempfile, warnings
import torch
import pyro_gebm as pg

torch.set_num_threads(1)
warnings.simplefilter("ignore")
dim = 500

def most():  # not getrusage's, which a child inherits from its parent
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

def run(num_samples, **more):
    pg.sample(
        lambda z: 0.5 * z.square().sum(-1),
        initial_params=torch.zeros(64, dim),
        kernel="Langevin",
        warmup_steps=5,
        num_chains=64,
        num_samples=num_samples,
        seed=0,
        progress=False,
        **more,
    )

with tempfile.TemporaryDirectory() as folder:
    run(70, store=folder + "/short.nc")
    before = most()
    run(3000, store=folder + "/long.nc")
    stored = most() - before
    run(3000)
    print(json.dumps([stored, most() - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_is_bounded():
    told = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, check=True)
    stored, in_memory = json.loads(told.stdout)
    posterior = 64 * 3000 * 500 * 4 / 2**20  # 366 MiB
    # Some 64 draws and their gradients, and the share that the checks read.
    assert stored < 0.6 * posterior < posterior < in_memory


def test_a_chain_far_ahead_takes_no_room(tmp_path):
    # Chains of NUTS run freely: one needs 15 times as many draws' time as the others.
    def uneven(z):
        return 0.5 * (z / torch.tensor([1.0, 0.05])).square().sum(-1)

    tuned = pg.NUTS(step_size=0.05, adapt_step_size=False, adapt_mass_matrix=False)
    settings = {"kernel": tuned, "num_chains": 4, "num_samples": 300, "warmup_steps": 0}
    sizes, honest = set(), draws_module.Buffers._write_loose

    def write(self):
        honest(self)
        sizes.update(len(room) for room in self._rooms.values())

    start = {"initial_params": torch.randn(4, 2, generator=rng()) * torch.tensor([1.0, 0.05])}
    in_memory = quiet_sample(uneven, **settings, **start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws_module.Buffers, "_write_loose", write)
        stored = quiet_sample(uneven, store=tmp_path / "a.nc", **settings, **start)
    assert sizes == {draws_module.WINDOW}
    assert_same(stored, in_memory)


def test_draws_that_wait_hold_little_memory(monkeypatch):
    held, honest = [], draws_module.Buffers._write_loose

    def write(self):
        held.append(sum(draw.fields["z"].untyped_storage().nbytes() for draw in self._loose))
        honest(self)

    monkeypatch.setattr(draws_module.Buffers, "_write_loose", write)
    monkeypatch.setattr(draws_module, "FLUSH_BYTES", 2**16)
    draws = quiet_sample(
        lambda z: 0.5 * z.square().sum(-1),
        kernel="NUTS",
        initial_params=torch.zeros(50, 40),
        num_chains=50,
        num_samples=20,
        warmup_steps=20,
    )
    # An event more than fits: at most all chains, with position, gradient and momentum.
    assert 0 < max(held) < 2**16 + 50 * (3 * 40 + 1) * 4
    assert np.isfinite(draws_of(draws)).all()


def assert_prefix(part, whole, least=1):
    """``part`` is the beginning of ``whole``, and says so."""
    done = draws_of(part).shape[1]
    assert part.attrs["interrupted"] == 1 and least <= done
    for group in ("posterior", "sample_stats"):
        for name in inference_data.names(whole, group):
            ours, theirs = (inference_data.values(idata, name, group) for idata in (part, whole))
            np.testing.assert_array_equal(ours, theirs[:, :done], err_msg=name)
    return done


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("kernel", "share"), [("HMC", 0.15), ("NUTS", 0.04)])
def test_the_file_can_be_read_at_any_time(kernel, share, tmp_path, monkeypatch):
    # What is in the file when its writer is killed is what a copy holds at that moment.
    path, copies, honest = tmp_path / "draws.nc", [], Store._put

    def put(self, *args):
        if self._file is not None and len(self._places) and torch.rand(()) < share:
            copies.append(tmp_path / f"copy{len(copies)}.nc")
            shutil.copy(self.path, copies[-1])
        honest(self, *args)

    monkeypatch.setattr(Store, "_put", put)
    settings = {"kernel": kernel, "num_chains": 5, "warmup_steps": 10, "num_samples": 150}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = quiet_sample(small_gebm(), store=path, **settings)
    found = []
    for copy in copies:
        part = inference_data.load(copy)
        found.append(assert_prefix(part, whole, least=0))
        assert "sampling_state" not in part
    assert len(copies) > 15 and len(set(found)) > 5
    assert max(found) < 150 and all(done % 16 == 0 for done in found)


KILLED = """
import os, signal, sys
import torch
import pyro_gebm as pg

torch.set_num_threads(1)
calls = 0

def potential_fn(z):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.5 * z.square().sum(-1)

start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
pg.sample(potential_fn, initial_params=start, kernel=sys.argv[1], store=sys.argv[2],
          num_chains=4, num_samples=1000, warmup_steps=10, seed=0, progress=False)
"""


@pytest.mark.parametrize(("kernel", "call", "flushed"), [("HMC", 700, 64), ("NUTS", 2000, 256)])
def test_a_killed_run(kernel, call, flushed, tmp_path):
    path = tmp_path / "draws.nc"
    script = [sys.executable, "-c", KILLED, kernel, str(path), str(call)]
    assert subprocess.run(script, check=False).returncode == -signal.SIGKILL
    assert names(tmp_path) == ["draws.nc.unfinished"]
    start = torch.randn(4, 2, generator=rng())
    settings = {"initial_params": start, "num_chains": 4, "num_samples": 1000, "warmup_steps": 10}
    whole = quiet_sample(normal, kernel=kernel, **settings)
    part = inference_data.load(tmp_path / "draws.nc.unfinished")
    assert assert_prefix(part, whole) % flushed == 0
    # Nobody overwrites what it has left.
    with pytest.raises(ValueError, match="store: expected no unfinished run beside it"):
        quiet_sample(normal, kernel=kernel, store=path, **settings)


@pytest.mark.parametrize("fail_after", [40, 90, 400])
@pytest.mark.parametrize("kernel", ["NUTS", "HMC", "Kinetic"])
def test_after_ctrl_c(kernel, fail_after, tmp_path):
    start = torch.randn(7, 2, generator=rng())
    settings = {"kernel": kernel, "num_chains": 7, "warmup_steps": 12}
    whole = quiet_sample(gumbel, num_samples=500, initial_params=start, **settings)
    warm = round(whole.attrs["warmup_gradient_evaluations"])
    potential = Counting(gumbel, fail_at=2 + warm + fail_after)
    about = {"store": tmp_path / "a.nc", "num_samples": 500, "initial_params": start}
    part = quiet_sample(potential, **settings, **about)
    done = assert_prefix(part, whole)
    assert done < 500 and names(tmp_path) == ["a.nc"]
    assert part.attrs["batch_steps"] <= whole.attrs["batch_steps"]
    rest = quiet_sample(gumbel, num_samples=500 - done, resume=part, **settings)
    assert np.array_equal(np.concatenate([draws_of(part), draws_of(rest)], 1), draws_of(whole))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kernel", ["NUTS", "HMC"])
@pytest.mark.parametrize("fail_at", [1, 5, 30, 61])
def test_ctrl_c_while_the_file_is_written(kernel, fail_at, tmp_path, monkeypatch):
    settings = {"kernel": kernel, "num_chains": 3, "warmup_steps": 10, "num_samples": 120}
    whole = quiet_sample(small_gebm(), **settings)
    honest, calls = Store._put, [0]

    def put(self, *args):
        calls[0] += 1
        if calls[0] == fail_at:
            raise KeyboardInterrupt
        honest(self, *args)

    monkeypatch.setattr(Store, "_put", put)
    part = quiet_sample(small_gebm(), store=tmp_path / "a.nc", **settings)
    done = assert_prefix(part, whole)
    rest = quiet_sample(small_gebm(), resume=part, **settings | {"num_samples": 120 - done})
    assert np.array_equal(np.concatenate([draws_of(part), draws_of(rest)], 1), draws_of(whole))


def test_ctrl_c_before_the_first_draw_leaves_nothing(tmp_path):
    potential = Counting(normal, fail_at=8)
    with pytest.raises(KeyboardInterrupt):
        quiet_sample(
            potential, initial_params=torch.zeros(3, 2), store=tmp_path / "a.nc", num_chains=3
        )
    assert names(tmp_path) == []


def test_an_error_leaves_what_was_written(tmp_path):
    start = torch.randn(3, 2, generator=rng())
    settings = {"initial_params": start, "kernel": "MALA", "num_chains": 3, "warmup_steps": 10}
    settings = {**settings, "num_samples": 200}
    broken = Counting(normal, fail_at=150, error=RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        quiet_sample(broken, store=tmp_path / "a.nc", **settings)
    part = inference_data.load(tmp_path / "a.nc.unfinished")
    assert assert_prefix(part, quiet_sample(normal, **settings)) == 128


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"store": 5}, "store: expected a path such as"),
        ({"store": "no/such/folder/a.nc"}, "store: expected a file in a folder that exists"),
        ({"store": "."}, "store: expected a file in a folder that exists"),
        ({"include_prior": True}, "include_prior: expected False with store"),
        ({"kernel": pyro.infer.NUTS}, "kernel: expected one of ours for .* store="),
    ],
)
def test_what_cannot_be_stored_is_refused(more, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        quiet_sample(small_gebm(), **{"store": tmp_path / "a.nc", **SMALL, **more})
    assert names(tmp_path) == []


def test_only_what_belongs_to_the_store_is_in_its_way(tmp_path):
    for name in ("b.nc.unfinished", "a.nc2.unfinished", "a.nc"):
        (tmp_path / name).write_text("something else")
    quiet_sample(small_gebm(), store=tmp_path / "a.nc", **SMALL)
    assert draws_of(inference_data.load(tmp_path / "a.nc")).shape == (66, 40, 2)
    (tmp_path / "a.nc.part3.unfinished").write_text("a part of another run")
    with pytest.raises(ValueError, match=r"a\.nc\.part3\.unfinished"):
        quiet_sample(small_gebm(), store=tmp_path / "a.nc", **SMALL)


def badly_mixed(dims):
    """White chains, but for one component of one, and one chain that stands still."""
    z = np.random.default_rng(0).normal(size=(6, 2000, dims))
    z[2, :, dims // 2] += 2
    z[5] = z[5, :1]
    energy = np.random.default_rng(1).normal(size=(6, 2000)).cumsum(1)
    flags = np.zeros((6, 2000), dtype=bool)
    flags[0, -500:] = True  # no stride meets more of them than there are
    accept = np.full((6, 2000), 0.8)
    stats = {"diverging": flags, "accept_prob": accept, "hamiltonian": energy}
    stats |= {"reached_max_treedepth": flags, "tree_depth": flags.astype(np.int64)}
    return inference_data.build({"z": z}, stats, {"latent_sites": "z"})


def test_checks_of_a_small_run_are_those_of_all_of_it():
    idata = badly_mixed(3)
    told = inference_data.problems(idata)
    assert len(told) == 5
    assert inference_data.problems(inference_data.abridged(idata)) == told


@pytest.mark.parametrize("dims", [3, 40])
def test_checks_of_a_large_run_read_little_and_see_as_much(dims):
    idata = badly_mixed(dims)
    some = inference_data.abridged(idata, most=10_000)
    numbers = sum(array.size for array in groups_of(some)["posterior"].data_vars.values())
    assert numbers <= 10_000 + 6 * MOST_SUSPECTS
    told, all_told = (inference_data.problems(each) for each in (some, idata))
    assert [text[:20] for text in told] == [text[:20] for text in all_told]
    assert f"z[{dims // 2}]" in "".join(inference_data.names(some, "posterior")) or dims == 3
    assert "4.17% of the transitions diverged" in " ".join(told)
    # The names are those that the other checks use.
    assert dims == 3 or set(inference_data.names(some, "posterior")) <= {
        f"z[{place}]" for place in range(dims)
    }
    assert len(suspects(some)["posterior"].data_vars) == (1 if dims == 3 else MOST_SUSPECTS)


def test_bfmi_of_a_share_is_that_of_neighbours():
    # Energies that wander: their changes are small beside their spread only from draw to draw.
    idata = badly_mixed(3)
    share = inference_data.bfmi(inference_data.abridged(idata, most=10_000))
    assert (share < 0.3).all() and (inference_data.bfmi(idata) < 0.3).all()
    every_20th = idata["sample_stats"]["energy"].values[:, ::4]
    assert np.isfinite(every_20th).all()


def test_the_disk_holds_what_is_written(tmp_path):
    z, steps = np.zeros((4, 64, 500), dtype=np.float32), np.ones((4, 64), dtype=np.int64)
    store = Store(tmp_path / "a.nc.unfinished", (4, 100_000), {"interrupted": 1}, {})
    store.write(slice(0, 4), 0, {"z": z}, {"num_steps": steps})
    store.close()
    status = (tmp_path / "a.nc.unfinished").stat()
    # Room for 800 MB of draws is kept, of which none is taken but the marks of what is missing.
    assert status.st_size > 8e8 and status.st_blocks * 512 < 1e7
    assert draws_of(inference_data.load(tmp_path / "a.nc.unfinished")).shape == (4, 64, 500)


def test_what_is_counted(tmp_path):
    stored = quiet_sample(small_gebm(), store=tmp_path / "a.nc", kernel="ChEES", **SMALL)
    steps = stats_of(stored, "n_steps")
    total, most = inference_data.count_steps(tmp_path / "a.nc", 30)
    assert np.array_equal(total, steps[:, :30].sum(1)) and most == steps[:, :30].max(0).sum()
    last = inference_data.last_draw(tmp_path / "a.nc", 30)
    assert np.array_equal(last["z"], draws_of(stored)[:, 29])
