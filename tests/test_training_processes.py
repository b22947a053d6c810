"""Two processes that share each step, beside one that has the joint batch."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_worker import (
    DATA,
    REFUSED,
    SCENARIOS,
    SECONDS,
    WORLD,
    bits,
    outcome,
    penalty_gradient,
)

from pyro_gebm.data import BatchLoader
from pyro_gebm.training.processes import Processes

HERE = Path(__file__).parent
ALONE = Processes(0, 1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What came of all scenarios in each of the processes."""
    folder = tmp_path_factory.mktemp("shared")
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    started = [
        subprocess.Popen(
            [sys.executable, HERE / "training_worker.py", folder, str(rank)],
            cwd=HERE,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(timeout=6 * SECONDS)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * WORLD, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def pairs(one, other, place=""):
    """The numbers of two equally built states, side by side, and where they are."""
    assert type(one) is type(other), place
    if isinstance(one, dict | list | tuple):
        assert len(one) == len(other), place
        keys = one if isinstance(one, dict) else range(len(one))
        return [pair for key in keys for pair in pairs(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, torch.Tensor):
        return [(place, one.detach(), other.detach())]
    if isinstance(one, float):
        return [(place, torch.tensor(one).double(), torch.tensor(other).double())]
    assert one == other, place
    return []


def distance(one, other):
    """The largest difference of two numbers that are not equal, or both NaN."""
    found = []
    for _, a, b in pairs(one, other):
        same = (a == b) | (a.isnan() & b.isnan())
        # A NaN beside a number stays one, and is no small distance.
        found.append((a.double() - b.double()).abs().masked_fill(same, 0.0).flatten())
    return torch.cat(found).max().item()


def without_random_states(result):
    """The state but for the loader's and the generator's place, and the figures."""
    state = {
        key: value for key, value in result["state"].items() if key not in ("source", "config")
    }
    return state, result["infos"]


@pytest.mark.parametrize("name", [*SCENARIOS, "batch norm"])
def test_the_processes_agree_bit_for_bit(shared, name):
    first, second = (bits(found[name]) for found in shared)
    assert first == second
    assert len(shared[0][name]["infos"]) > 2


@pytest.mark.parametrize("name", SCENARIOS)
def test_they_do_what_one_does_on_the_joint_batch(shared, name):
    scenario = SCENARIOS[name]
    whole = scenario._replace(settings=scenario.settings | {"accumulate": 1})
    # Sums in another order: rounding of seven steps.
    tolerance = 1e-6 if name == "float32" else 1e-10
    found = without_random_states(shared[0][name])
    alone = without_random_states(outcome(whole, ALONE))
    assert distance(found, alone) < tolerance


def test_a_number_that_one_process_alone_did_not_have_rolls_back_all(shared):
    for found in shared:
        infos = found["not a number"]["infos"]
        assert infos[-1]["rollbacks"] == 2
        assert len(infos) == 5  # of seven


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_is_refused_by_all(shared, name):
    first, second = (found[name]["error"] for found in shared)
    assert first == second
    expected = {
        "num_latents": "num_latents: expected a multiple of the 2 processes; got 7",
        "joint": "update: expected 'alternating' with several processes",
        "uneven": "loader: expected as many data in each process; got [4, 3]; leave out",
        "unused energy": "energy: expected a loss that depends on every parameter, with several "
        "processes; got none for energy.spare.weight, energy.spare.bias; remove or freeze",
        "unused generator": "generator: expected a loss that depends on every parameter, with "
        "several processes; got none for generator.spare.weight, generator.spare.bias; remove",
    }
    assert first.startswith(f"ValueError: {expected[name]}")


def test_the_log_z_of_each_part_alone_would_be_noticed(shared):
    naive, alone = shared[0]["naive constant"], outcome(SCENARIOS["donsker_varadhan"], ALONE)
    assert distance(naive, alone["state"]["gebm"]) > 1e-4


def test_a_penalty_in_a_second_backward_would_be_noticed(shared):
    alone = penalty_gradient(ALONE, second_backward=True)
    one, two = (shared[0][f"penalty, {second}"] for second in (False, True))
    assert distance(one, alone) < 1e-12
    scale = max(gradient.abs().max().item() for gradient in alone)
    assert distance(two, alone) > 0.001 * scale


def test_the_slices_of_a_loader_are_the_batch_of_one():
    def loader(procs):
        order = torch.Generator().manual_seed(2)
        return BatchLoader(DATA, 12, generator=order, rank=procs.rank, world_size=procs.world_size)

    whole, parts = loader(ALONE), [loader(Processes(rank, 3)) for rank in range(3)]
    for _ in range(10):
        batch = next(whole)
        assert torch.equal(batch, torch.cat([next(part) for part in parts]))
    assert bits(whole.state_dict()) == bits(parts[2].state_dict())


def test_slices_in_the_order_of_ranks_are_the_whole():
    joint = torch.arange(24.0).reshape(12, 2)
    assert torch.equal(torch.cat([Processes(rank, 4).own(joint) for rank in range(4)]), joint)


def test_distance_sees_what_is_not_a_number():
    number, none = torch.tensor([1.0]), torch.tensor([math.nan])
    assert distance([none, -math.inf], [none, -math.inf]) == 0
    assert math.isnan(distance([none], [number]))
