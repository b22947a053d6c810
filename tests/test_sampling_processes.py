"""Chains shared among processes: the draws of one, however many there are."""

import multiprocessing
import os
import signal
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Counting, draws_of, normal, quiet_sample, rng
from test_store import assert_same
from torch import distributed, nn

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.mcmc.random import BLOCK
from pyro_gebm.sampling.team import Team

JUMPS = pg.GlobalMoves(num_proposals=3, every=2)
SMALL = {"num_chains": 256, "num_samples": 6, "warmup_steps": 6}
KINDS = {
    "ChEES": {"kernel": "ChEES", "include_warmup": True, "include_x": True},
    # The last block is not full.
    "NUTS": {"kernel": "NUTS", "num_chains": 230, "global_moves": None},
    "NUTS, jumps, thinned": {"kernel": "NUTS", "global_moves": JUMPS, "thinning": 2},
    "HMC, jumps": {"kernel": "HMC", "global_moves": JUMPS},
    "tempered Kinetic": {"kernel": "Kinetic", "tempering": (0.3, 1)},
}


def wide_gebm(seed=0):
    """Products of matrices large enough that their rounding depends on the rows beside."""
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 48))
    energy = nn.Sequential(nn.Linear(48, 64), nn.Softplus(), nn.Linear(64, 1))
    return pg.GEBM(pg.Base(generator, pg.StandardNormal(16)), energy)


def join_group(rank, size, folder):
    torch.set_num_threads(1)
    os.chdir(folder)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=100),
    )


def told_by(model, **settings):
    """How many warnings a call gives, or its error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            pg.sample(model, **settings)
        except (Exception, KeyboardInterrupt) as error:
            return f"{type(error).__name__}: {error}"
    return f"{sum(w.category is UserWarning for w in caught)} warnings"


def breaking(breaks, error):
    """A potential that fails among the draws of a process that has not warmed up."""
    # Its block is evaluated with every step, and all four before, to compare the models.
    return Counting(normal, fail_at=4 + 4 if breaks else 0, error=error)


def draw_all(rank, size, folder):
    """What each of the processes of ``shared`` does."""
    join_group(rank, size, folder)
    settings = {**SMALL, "distributed": True, "seed": 0, "progress": False}
    for place, more in enumerate(KINDS.values()):
        idata = quiet_sample(wide_gebm(), store=f"{place}.nc", **settings | more)
        np.save(f"{place}.{rank}.npy", draws_of(idata))
    first = inference_data.load("0.nc")
    quiet_sample(wide_gebm(), store="more.nc", resume=first, **settings)

    start = torch.randn(256, 2, generator=rng())
    settings["kernel"] = "MALA"
    wrong, stop = RuntimeError("broken"), KeyboardInterrupt()
    told = [
        told_by(wide_gebm(), store="warned.nc", **settings),
        told_by(wide_gebm(), store="seeds.nc", **settings | {"seed": rank}),
        told_by(wide_gebm(seed=rank), store="models.nc", **settings),
        told_by(wide_gebm(), store="kernels.nc", **settings | {"tempering": "nonsense"}),
        told_by(breaking(rank == 1, wrong), store="broken.nc", initial_params=start, **settings),
        told_by(breaking(rank == 1, stop), store="stopped.nc", initial_params=start, **settings),
    ]
    Path(f"told.{rank}").write_text("\n".join(told))
    distributed.destroy_process_group()


def draw_and_die(rank, size, folder):
    """One process is killed in the middle of its draws."""
    join_group(rank, size, folder)
    settings = {**SMALL, "kernel": "MALA", "distributed": True, "seed": 0, "progress": False}
    quiet_sample(wide_gebm(), store="two.nc", **settings)
    calls = [0]

    def potential_fn(z):
        calls[0] += 1
        if rank == 1 and calls[0] == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return normal(z)

    start = torch.randn(256, 2, generator=rng())
    told = told_by(potential_fn, store="killed.nc", initial_params=start, **settings)
    Path(f"told.{rank}").write_text(told)


def exit_codes(work, size, folder):
    """Run ``work`` in so many processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyro_gebm"])
    processes = [context.Process(target=work, args=(r, size, str(folder))) for r in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        process.kill()  # it has not come to its end, or this does nothing
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The files of three processes, which have one, one and two blocks of chains."""
    folder = tmp_path_factory.mktemp("shared")
    assert exit_codes(draw_all, 3, folder) == [0, 0, 0]
    return folder


def told_in(folder, case):
    return [(folder / f"told.{rank}").read_text().splitlines()[case] for rank in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_three_processes_draw_what_one_does(shared, kind):
    place = list(KINDS).index(kind)
    alone = quiet_sample(wide_gebm(), chunk_size=BLOCK, **SMALL | KINDS[kind])
    assert_same(inference_data.load(shared / f"{place}.nc"), alone)
    for rank in range(3):
        assert np.array_equal(np.load(shared / f"{place}.{rank}.npy"), draws_of(alone))


def test_a_run_of_processes_goes_on(shared):
    first = quiet_sample(wide_gebm(), chunk_size=BLOCK, **SMALL | {"kernel": "ChEES"})
    more = quiet_sample(wide_gebm(), chunk_size=BLOCK, resume=first, **SMALL)
    assert_same(inference_data.load(shared / "more.nc"), more)


def test_only_the_joined_files_are_left(shared):
    whole = {"warned.nc", "more.nc", "stopped.nc", *(f"{k}.nc" for k in range(len(KINDS)))}
    assert {p.name for p in shared.iterdir() if p.suffix == ".nc"} == whole
    left = {p.name for p in shared.iterdir() if p.suffix == ".unfinished"}
    # Of the process that broke there is no draw; the others had theirs.
    assert left == {"broken.nc.part0.unfinished", "broken.nc.part2.unfinished"}


def test_one_process_warns(shared):
    first, *others = told_in(shared, 0)
    assert first != "0 warnings" and others == ["0 warnings"] * 2


def test_all_raise_if_the_calls_differ(shared):
    for told in told_in(shared, 1):
        assert told == (
            "ValueError: distributed: expected the same settings in all processes; got "
            "seed: 0, 1, 2"
        )
    same, *others = told_in(shared, 2)
    for told in others:
        assert told.startswith("ValueError: distributed: expected the same model and data")
    assert same.startswith("RuntimeError: process 1 of 3 failed: ValueError: distributed: exp")
    for told in told_in(shared, 3):
        assert told.startswith("ValueError: tempering")


def test_all_raise_if_one_fails(shared):
    first, broken, third = told_in(shared, 4)
    assert broken == "RuntimeError: broken"
    assert first == third == "RuntimeError: process 1 of 3 failed: RuntimeError: broken"


def test_ctrl_c_in_one_process_keeps_what_all_have(shared):
    assert all(told.endswith("warnings") for told in told_in(shared, 5))
    part = inference_data.load(shared / "stopped.nc")
    start = torch.randn(256, 2, generator=rng())
    settings = SMALL | {"kernel": "MALA", "initial_params": start, "chunk_size": BLOCK}
    alone = draws_of(quiet_sample(normal, **settings))
    done = draws_of(part).shape[1]
    assert done == 3 and np.array_equal(draws_of(part), alone[:, :done])
    assert part.attrs["interrupted"] == 1 and "sampling_state" not in part


def test_nobody_waits_for_a_process_that_was_killed(tmp_path):
    assert exit_codes(draw_and_die, 2, tmp_path) == [0, -signal.SIGKILL]
    assert "warnings" not in (tmp_path / "told.0").read_text()
    alone = quiet_sample(wide_gebm(), chunk_size=BLOCK, **SMALL | {"kernel": "MALA"})
    assert_same(inference_data.load(tmp_path / "two.nc"), alone)
    # What the other had drawn is there.
    start = torch.randn(256, 2, generator=rng())
    settings = SMALL | {"kernel": "MALA", "initial_params": start, "chunk_size": BLOCK}
    part = inference_data.load(tmp_path / "killed.nc.part0.unfinished")
    assert np.array_equal(draws_of(part), draws_of(quiet_sample(normal, **settings))[:128])


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("chains", [256, 257, 300, 1000])
def test_shares_are_whole_blocks_of_all_chains(processes, chains):
    covered, blocks = [], []
    for rank in range(processes):
        team = Team(False)
        team.rank, team.size = rank, processes
        share = team.chains(chains)
        assert share.start % BLOCK == 0 and (share.stop % BLOCK == 0 or share.stop == chains)
        covered += range(share.start, share.stop)
        assert team.blocks(chains, 1) == sorted({c // BLOCK for c in range(chains)[share]})
        blocks.append(len(team.blocks(chains, 1)))
    assert covered == list(range(chains)) and max(blocks) - min(blocks) <= 1
    team.rank, team.size = 1, 2
    # Level after level of a batch.
    assert team.blocks(256, 3) == [2, 3, 6, 7, 10, 11]


@pytest.fixture
def group_of_one(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_a_group_of_one(tmp_path):
    settings = {"kernel": "HMC", "num_chains": 3, "num_samples": 10, "warmup_steps": 5}
    stored = quiet_sample(wide_gebm(), store=tmp_path / "a.nc", distributed=True, **settings)
    assert_same(stored, quiet_sample(wide_gebm(), chunk_size=BLOCK, **settings))


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(
    ("processes", "more", "told"),
    [
        (1, {"store": None}, "store: expected a path with distributed"),
        (2, {}, "num_chains: expected more than 64, a block of 64 for each of 2 processes; got 64"),
        (1, {"chunk_size": 48}, "chunk_size: expected a divisor of 64"),
        (1, {"kernel": "NUTS", "tempering": 3}, "kernel: expected another than NUTS"),
        (1, {"num_chains": 65, "tempering": 3}, "num_chains: expected a multiple of 64"),
        (1, {"kernel": pg.HMC(step_size_per_chain=True)}, "kernel: expected step_size_per_chain"),
        (1, {"include_prior": True}, "include_prior: expected False with store"),
    ],
)
def test_what_processes_cannot_share_is_refused(processes, more, told, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "get_world_size", lambda: processes)
    settings = {"store": tmp_path / "a.nc", "num_chains": 64, **more}
    with pytest.raises(ValueError, match=told):
        quiet_sample(wide_gebm(), distributed=True, **settings)


def test_a_group_must_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"distributed: expected torch\.distributed to be init"):
        quiet_sample(wide_gebm(), store=tmp_path / "a.nc", distributed=True)
