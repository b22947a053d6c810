"""Walls in the potential: warm-up does not shrink steps for what no step can help."""

import math

import numpy as np
import pytest
import torch
from helpers import draws_of, quiet_sample, rng, standard_scores, stats_of

from pyro_gebm.mcmc import Info
from pyro_gebm.mcmc.walls import FEW_STEPS, look_for_walls, no_walls

CHAINS, TARGET = 64, 0.8


def half_plane(z):
    return torch.where(z[:, 0] > 0, z.square().sum(-1), torch.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["HMC", "ChEES"])
def test_behind_a_wall_trajectories_stay_short_and_moments_right(kernel, dtype):
    start = torch.rand(CHAINS, 2, generator=rng(), dtype=dtype) + 0.1
    settings = {"num_chains": CHAINS, "initial_params": start, "warmup_steps": 100}
    idata = quiet_sample(half_plane, kernel=kernel, num_samples=200, **settings)
    assert stats_of(idata, "n_steps").mean() < 10  # it was 1,000: the limit
    z = draws_of(idata)
    truth = {0: 1 / math.sqrt(math.pi), 1: 0.0}  # of a normal of variance 1/2, halved
    for dim, mean in truth.items():
        assert abs(standard_scores(z[..., dim], mean)) < 4.5
        assert abs(standard_scores(z[..., dim] ** 2, 0.5)) < 4.5


def info(accepted, lost, steps=5, depth=None):
    """Of 16 chains, of which the first ``lost`` went beyond a wall."""
    error = torch.zeros(16)
    error[:lost] = torch.inf
    accept = torch.full((16,), accepted).masked_fill(error.isinf(), 0.0)
    counts = torch.full((16,), steps)
    return Info(accept, error.isinf(), counts, energy_error=error, tree_depth=depth)


def after(rounds, told, awake=None):
    """What steps learn from in the last of some rounds that are alike."""
    walls, awake = no_walls(told.accept_prob, 1), torch.ones(16) > 0 if awake is None else awake
    for _ in range(rounds):
        walls, learned = look_for_walls(walls, told, awake, TARGET)
    return learned.accept_prob


def test_what_steps_cannot_help_does_not_shrink_them():
    told = info(accepted=1.0, lost=8)
    # Not at once: in the beginning all that goes downhill is accepted.
    assert torch.equal(after(10, told), told.accept_prob)
    learned = after(40, told)
    assert (learned[:8] == TARGET).all() and (learned[8:] == 1).all()


@pytest.mark.parametrize(
    "told",
    [
        info(accepted=0.97, lost=8),  # shorter steps would be accepted more often
        info(accepted=1.0, lost=13),  # most are lost: by steps that are too long
        info(accepted=1.0, lost=16),
        info(accepted=1.0, lost=8, steps=FEW_STEPS),  # shorter steps are shorter trajectories
        info(accepted=1.0, lost=8, depth=torch.full((16,), 3)),  # a tree
        info(accepted=0.9, lost=0),
    ],
)
def test_elsewhere_nothing_changes(told):
    assert torch.equal(after(100, told), told.accept_prob)


def test_a_chain_without_a_say_has_none_here():
    told = info(accepted=1.0, lost=14)
    awake = torch.arange(16) >= 8  # with those asleep 0.88 of the proposals are lost, without 0.75
    assert (after(100, told, awake)[:14] == TARGET).all()
    assert torch.equal(after(100, told), told.accept_prob)


def test_groups_have_walls_of_their_own():
    accept = torch.tensor([1.0, 0, 1, 1, 0.5, 0, 0.5, 0.5])
    error = torch.zeros(8)
    error[[1, 5]] = torch.inf
    told = Info(accept, error.isinf(), torch.full((8,), 5), energy_error=error)
    walls = no_walls(accept, 2)
    for _ in range(50):
        walls, learned = look_for_walls(walls, told, torch.ones(8) > 0, TARGET)
    np.testing.assert_allclose(learned.accept_prob, [1, TARGET, 1, 1, 0.5, 0, 0.5, 0.5])
    np.testing.assert_allclose(walls.accepted, [1, 0.5], atol=1e-4)
    np.testing.assert_allclose(walls.lost, [0.25, 0.25], atol=1e-4)
