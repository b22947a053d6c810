"""The step of NUTS under masks gives what the step by rows gives, bit for bit."""

from pathlib import Path

import pytest
import torch

from pyro_gebm.mcmc import CapturedPotential, Tuning
from pyro_gebm.mcmc import masked_nuts as masked
from pyro_gebm.mcmc.kernel import evaluate, take_rows
from pyro_gebm.mcmc.masked_nuts import Advancer, advance_masked_
from pyro_gebm.mcmc.nuts import advance_, plant_, tree_noise
from pyro_gebm.mcmc.random import normal, uniform
from pyro_gebm.mcmc.tree import checkpoint_table, new_trees, told

CHAINS, DIM, DEPTH = 40, 3, 4


def walled(z):
    """Curved, and infinite beyond 3: trees turn, end at the wall and reach their limit."""
    energy = 0.5 * (z**2).sum(-1) + 0.1 * (z[:, 0] * z[:, 1]) ** 2
    return torch.where(z[:, 0] < 3, energy, torch.inf)


def planted(dtype, per_chain, curvature=None):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(CHAINS, DIM, dtype=dtype, generator=generator)
    state = evaluate(walled, z)
    step = torch.logspace(-2, 0.3, CHAINS, dtype=dtype)
    mass = torch.tensor([0.5, 1.0, 2.0], dtype=dtype)
    fitted = None if curvature is None else torch.full_like(step, curvature)
    tuning = Tuning(step, mass.repeat(CHAINS, 1) if per_chain else mass, curvature=fitted)
    tree = new_trees(state, DEPTH)
    way = uniform(state.potential_energy, generator)
    plant_(tree, tree.every, state, tuning, normal(z, generator), way)
    return tree, tuning


def grow_both(advance, dtype=torch.float64, steps=150, per_chain=False, curvature=None):
    """Trees grown by rows and by ``advance``, compared after every step."""
    (tree, tuning), (other, _) = (planted(dtype, per_chain, curvature) for _ in range(2))
    generator, ends = torch.Generator().manual_seed(5), {"turned": 0, "wall": 0, "limit": 0}
    slots = checkpoint_table(DEPTH, torch.device("cpu"))
    for _ in range(steps):
        noise = tree_noise(tree.numbers[:, 0], generator)
        momentum = normal(tree.edge[:, :DIM], generator)
        rows, ended = advance_(walled, tree, tuning, noise, momentum)
        tensors = tuning.step_size, tuning.inverse_mass_matrix, tuning.curvatures()
        found, done = advance(walled, other, slots, *tensors, noise, momentum)
        if not (torch.equal(rows, done.nonzero()[:, 0]) and same(tree, other)):
            return False
        if ended is None:
            continue
        if not equal(ended, take_rows(found, rows)):
            return False
        _, info = told(ended)
        ends["wall"] += int(info.diverging.sum())
        ends["limit"] += int(info.reached_max_treedepth.sum())
        ends["turned"] += int((~info.diverging & ~info.reached_max_treedepth).sum())
    assert min(ends.values()) > 5, ends
    return True


def same(tree, other):
    """All fields but the scrap slots."""
    return equal(whole(tree), whole(other))


def equal(fields, others):
    """NaN equals itself."""
    return all(
        torch.equal(torch.nan_to_num(one), torch.nan_to_num(two))
        for one, two in zip(fields, others, strict=True)
    )


def whole(tree):
    return tree._replace(first=tree.first[:, :-1], before=tree.before[:, :-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_chain", [False, True])
@pytest.mark.parametrize("curvature", [None, 0.3])
def test_masks_and_rows_give_the_same_trees_at_every_step(dtype, per_chain, curvature):
    assert grow_both(advance_masked_, dtype, per_chain=per_chain, curvature=curvature)


PLANTS = {
    "drifts that are never fitted": (
        "inverse_mass_matrix, curvature)",
        "inverse_mass_matrix, None)",
    ),
    "a join that does not look where it grew": (
        "forward, way = step > 0, way_noise < 0.5",
        "forward, way = step > -9, way_noise < 0.5",
    ),
    "draws of the subtree never taken": ("take = noise <", "take = 2 + noise <"),
    "subtrees that never close": ("(turned & closes[leaf])", "(turned & closes[0 * leaf])"),
    "trees that never turn as a whole": ("whole, turning |", "whole, ~(turning == turning) |"),
    "the limit of depth one too high": (">= tree.num_slots", "> tree.num_slots"),
    "the edge left behind": ("from_right, right", "from_right, left"),
    "half a momentum too much": ("momentum, alpha=-0.5", "momentum, alpha=-0.4"),
    "weights that are not cleared": ("whole, -torch.inf, sub_weight", "whole, weight, sub_weight"),
    "new trees that keep their weight": (
        "columns[SUB_WEIGHT] = torch.full_like(energy, -torch.inf)",
        "columns[SUB_WEIGHT] = tree.numbers[:, SUB_WEIGHT]",
    ),
    "new trees that all go forward": (
        "way < 0.5, step_size, -step_size",
        "way < 2, step_size, way",
    ),
    "new trees that keep their leaves": (
        "torch.where(done[:, None], 0, tree.counts)",
        "tree.counts",
    ),
    "sums that are not cleared": ("_where(whole, 0.0, leaf.total)", "leaf.total"),
}


@pytest.mark.parametrize("what", PLANTS)
def test_each_planted_bug_is_seen(what):
    source = Path(masked.__file__).read_text()
    old, new = PLANTS[what]
    assert source.count(old) == 1
    room = {"__name__": "planted"}
    exec(compile(source.replace(old, new), "planted", "exec"), room)
    assert not grow_both(room["advance_masked_"], curvature=0.3)


def test_without_a_cuda_device_trees_are_grown_by_rows(monkeypatch):
    monkeypatch.setattr(masked, "advance_masked_", None)
    (tree, tuning), (other, _) = (planted(torch.float64, False) for _ in range(2))
    advance = Advancer(CapturedPotential(walled), other)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        noise = tree_noise(tree.numbers[:, 0], generator)
        momentum = normal(tree.edge[:, :DIM], generator)
        one = advance_(walled, tree, tuning, noise, momentum)
        two = advance(tuning, noise, momentum)
        assert torch.equal(one[0], two[0])
        assert (one[1] is None and two[1] is None) or equal(one[1], two[1])
    assert same(tree, other)
