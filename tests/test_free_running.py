"""NUTS running freely: chains do not wait for each other, and do not know of each other."""

import math

import numpy as np
import pytest
import torch
from helpers import Counting, gumbel, make_tuning, normal, quiet_sample, rng, stats_of
from scipy import stats

from pyro_gebm.mcmc import NUTS, run
from pyro_gebm.mcmc.random import BLOCK

KERNEL = NUTS(max_tree_depth=6)


def starts(chains, seed=0):
    return torch.randn(chains, 3, generator=rng(seed), dtype=torch.float64)


def free_run(z, num_samples=30, potential_fn=gumbel, **settings):
    """Draws at a fixed tuning, so that chains share nothing but the batch."""
    return run(
        KERNEL,
        potential_fn,
        z,
        num_samples=num_samples,
        warmup_steps=0,
        tuning=make_tuning(z, 0.3),
        **settings,
    )


def test_chains_do_not_depend_on_where_others_start():
    z, mine = starts(100), torch.tensor([0, 63, 64, 99])
    others = starts(100, seed=1)
    others[mine] = z[mine]
    one, other = free_run(z), free_run(others)
    assert torch.equal(one.z[mine], other.z[mine])
    for a, b in zip(one.info, other.info, strict=True):
        assert (a is None and b is None) or torch.equal(a[mine], b[mine])
    rest = torch.ones(100, dtype=torch.bool).index_fill(0, mine, False)
    assert (one.z[rest] != other.z[rest]).any(-1).any(-1).all()
    assert len(one.info.num_steps[mine].sum(1).unique()) > 1  # they take different times


def test_chains_do_not_depend_on_how_many_there_are():
    z = starts(3 * BLOCK)
    few, many = free_run(z[:BLOCK]), free_run(z)
    assert torch.equal(few.z, many.z[:BLOCK])
    assert torch.equal(few.info.num_steps, many.info.num_steps[:BLOCK])


def test_chains_stop_where_their_last_draw_is():
    z = starts(20)
    draws = free_run(z)
    assert torch.equal(draws.last.state.z, draws.z[:, -1])
    assert torch.equal(draws.last.state.potential_energy, draws.potential_energy[:, -1])
    assert torch.equal(draws.last.step, draws.info.num_steps.sum(1))
    torch.testing.assert_close(draws.potential_energy, gumbel(draws.z))


@pytest.mark.parametrize("thinning", [1, 4])
def test_every_gradient_is_counted(thinning):
    potential = Counting(gumbel)
    draws = free_run(starts(20), potential_fn=potential, thinning=thinning)
    # One for the state at the start; then the batch works until the slowest chain is done.
    assert potential.calls == 1 + draws.batch_steps
    assert draws.batch_steps == draws.info.num_steps.sum(1).max()


def test_thinning_keeps_every_kth_transition():
    z = starts(10)
    every, fourth = free_run(z, 40), free_run(z, 10, thinning=4)
    assert torch.equal(every.z[:, 3::4], fourth.z)
    steps = every.info.num_steps.view(10, 10, 4).sum(-1)
    assert torch.equal(steps, fourth.info.num_steps)


def test_draws_have_their_law_however_long_their_trees():
    # Chains stop after as many draws each, not when the batch does: the last ones are exact,
    # too, though those of fast chains are older.
    z = starts(4000)
    draws = free_run(z, 12, potential_fn=normal)
    assert draws.info.num_steps.sum(1).double().std() > 1
    p_values = [stats.kstest(x.numpy(), stats.norm.cdf).pvalue for x in draws.z[:, -1].T]
    assert 3 * min(p_values) > 1e-4


def ring(z):
    """Eight modes on a ring of radius 4, scale 0.3, masses 1 : 2 : ... : 8."""
    angles = torch.arange(8) * (math.pi / 4)
    means = 4 * torch.stack([angles.cos(), angles.sin()], -1)
    masses = torch.arange(1.0, 9) / 36
    distance = (z[..., None, :] - means).square().sum(-1)
    return -(masses.log() - distance / (2 * 0.3**2)).logsumexp(-1)


def test_little_is_wasted():
    angles = torch.arange(256) * (math.pi / 4)
    start = 4 * torch.stack([angles.cos(), angles.sin()], -1)
    start = start + 0.3 * torch.randn(256, 2, generator=rng())
    potential = Counting(ring)
    idata = quiet_sample(
        potential,
        initial_params=start,
        kernel="NUTS",
        num_chains=256,
        num_samples=400,
        warmup_steps=100,
    )
    steps = stats_of(idata, "n_steps")
    batch_steps = idata.attrs["batch_steps"]
    # In step, all chains would wait for the deepest tree of each draw.
    assert batch_steps == steps.sum(1).max() < steps.max(0).sum()
    assert batch_steps <= 1.2 * steps.sum(1).mean()
    spent = idata.attrs["warmup_gradient_evaluations"] + batch_steps
    assert potential.calls == 2 + spent


def test_warmup_is_free_running_too():
    potential = Counting(gumbel)
    draws = run(KERNEL, potential, starts(64), num_samples=1, warmup_steps=50)
    spent = draws.num_warmup_steps
    assert (spent == spent[0]).all()
    assert potential.calls == 1 + int(spent[0]) + draws.batch_steps


def test_diverging_chains_hold_nobody_up():
    def walled(z):
        return torch.where(z[:, 0] > 1.0, torch.nan, normal(z))

    z = starts(20).clamp(max=0.9)
    draws = free_run(z, 50, potential_fn=walled)
    assert draws.info.diverging.any() and draws.z.shape == (20, 50, 3)
    assert draws.z[..., 0].max() <= 1 and torch.isfinite(draws.z).all()
    np.testing.assert_array_less(0, draws.info.num_steps.numpy())
