"""Replica exchange: exact at every level, its ladder, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import draws_of, make_tuning, normal, quiet_sample, rng, small_gebm, stats_of
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc import HMC, MALA, Reference
from pyro_gebm.mcmc.random import Streams
from pyro_gebm.mcmc.tempering import ReplicaExchange, Replicas, temper
from pyro_gebm.sampling.ladder import place

CHAINS, PASS, FAIL = 20_000, 1e-4, 1e-6
LADDER, SPREAD = (0.2, 0.6, 1.0), 2.0
GRID = np.linspace(-12, 12, 48_001)
BASE = Reference(
    lambda n: SPREAD * torch.randn(n, 1, dtype=torch.float64), lambda z: normal(z) / SPREAD**2
)


def wells(z):
    """Two wells of unequal depth, 4 nats high between them."""
    x = z[..., 0]
    return 4 * (0.25 * x**2 - 1) ** 2 + 0.4 * x


def level_cdf(factor):
    """Distribution function of exp(-U_λ) by the trapezoidal rule, on ``GRID``."""
    grid = torch.as_tensor(GRID)[:, None]
    energy = (1 - factor) * BASE.potential_fn(grid) + factor * wells(grid)
    density = (energy.min() - energy).exp().numpy()
    total = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return total / total[-1]


def exact_draws():
    """(levels · CHAINS, 1), by the inverse of the distribution functions."""
    noise = np.random.default_rng(5).random((len(LADDER), CHAINS))
    levels = [np.interp(u, level_cdf(f), GRID) for u, f in zip(noise, LADDER, strict=True)]
    return torch.as_tensor(np.concatenate(levels))[:, None]


def p_value(z):
    """Smallest over the levels, corrected."""
    parts = zip(z[:, 0].view(len(LADDER), -1), LADDER, strict=True)
    laws = [
        stats.kstest(part.numpy(), lambda x, f=factor: np.interp(x, GRID, level_cdf(f))).pvalue
        for part, factor in parts
    ]
    return len(LADDER) * min(laws)


def advance(kernel, z, steps=8):
    state, told = kernel.init(wells, z), []
    streams = Streams(0, len(z), z.device)
    tuning = make_tuning(z, 0.7, torch.ones_like(z))
    for step in range(steps):
        state, info = kernel.step(wells, state, tuning, generator=streams.at(step))
        told.append(info)
    return state, told


def test_invariant_at_every_level():
    start = exact_draws()
    assert p_value(start) > PASS
    state, told = advance(temper(MALA(), LADDER, BASE), start)
    swaps = torch.stack([info.swap_accept_prob for info in told]).nanmean()
    assert 0.3 < swaps < 0.95
    assert (state.z != start).double().mean() > 0.99
    assert p_value(state.z) > PASS


def test_swaps_of_the_wrong_sign_are_seen(monkeypatch):
    honest = ReplicaExchange._exchange

    def wrong(self, replicas, generator):
        return honest(replace(self, ladder=tuple(-f for f in self.ladder)), replicas, generator)

    monkeypatch.setattr(ReplicaExchange, "_exchange", wrong)
    assert p_value(advance(temper(MALA(), LADDER, BASE), exact_draws())[0].z) < FAIL


def test_refresh_without_its_weight_is_seen(monkeypatch):
    honest = ReplicaExchange._refresh

    def wrong(self, potential_fn, replicas, generator):
        free = replace(self, ladder=(0.0, *self.ladder[1:]))
        return honest(free, potential_fn, replicas, generator)

    monkeypatch.setattr(ReplicaExchange, "_refresh", wrong)
    assert p_value(advance(temper(MALA(), LADDER, BASE), exact_draws())[0].z) < FAIL


def test_energies_left_behind_by_a_swap_are_seen(monkeypatch):
    honest = ReplicaExchange._replicas

    def wrong(self, state):
        replicas = honest(self, state)
        return replicas._replace(energy=replicas.energy.roll(1, 1))

    monkeypatch.setattr(ReplicaExchange, "_replicas", wrong)
    assert p_value(advance(temper(MALA(), LADDER, BASE), exact_draws())[0].z) < FAIL


def joint(z, factors):
    """-log of the product of exp(-U_λ) over levels, z (K, C)."""
    x = z[..., None]
    each = [
        (1 - f) * BASE.potential_fn(level) + f * wells(level)
        for level, f in zip(x, factors, strict=True)
    ]
    return torch.stack(each).sum(0)


@pytest.mark.parametrize("step", [0, 1])
def test_swap_acceptance_against_brute_force(step):
    kernel = temper(MALA(), LADDER, BASE)
    z = 2 * torch.randn(3, 6, 1, generator=rng(), dtype=torch.float64)
    state = kernel.init(wells, z.view(18, 1))
    replicas = kernel._replicas(state)
    torch.testing.assert_close(replicas.energy, wells(z) - BASE.potential_fn(z))
    found = kernel._exchange(replicas, Streams(0, 18, z.device).at(step))
    hot = step
    order = [1, 0, 2] if hot == 0 else [0, 2, 1]
    ratio = joint(z[..., 0], LADDER) - joint(z[order][..., 0], LADDER)
    told = found.accept_prob[hot + 1]
    torch.testing.assert_close(told, ratio.exp().clamp(max=1))
    assert found.accept_prob.isnan().sum() == 12
    swapped = (found.z[hot, :, 0] != z[hot, :, 0]).nonzero()[:, 0]
    assert torch.equal(found.z[:, swapped], z[order][:, swapped]) and len(swapped)
    torch.testing.assert_close(found.energy, wells(found.z) - BASE.potential_fn(found.z))


def test_refresh_acceptance_against_brute_force():
    kernel = temper(MALA(), LADDER, BASE)
    z = torch.full((3, 4000, 1), 1.5, dtype=torch.float64)
    energy = wells(z) - BASE.potential_fn(z)
    replicas = Replicas(z, energy, torch.full_like(energy, torch.nan))
    found = kernel._refresh(wells, replicas, rng())
    # Over z' ~ η: the mean of min(1, exp(λ_1 (E(z) - E(z')))), by quadrature.
    grid = torch.as_tensor(GRID)[:, None]
    gain = LADDER[0] * (energy[0, 0] - wells(grid) + BASE.potential_fn(grid))
    density = stats.norm.pdf(GRID, scale=SPREAD)
    accept = gain.clamp(max=0).exp().numpy()
    mean = np.trapezoid(accept * density, GRID)
    told = found.accept_prob[0].numpy()
    assert abs(told.mean() - mean) < 4 * told.std() / 4000**0.5
    taken = found.z[0, :, 0] != 1.5
    assert abs(taken.double().mean() - mean) < 4 * 0.5 / 4000**0.5
    assert torch.equal(found.z[1:], z[1:])


def test_non_finite_draws_of_the_reference_are_refused():
    def holed(z):
        return torch.where(z[..., 0] > 0, torch.nan, wells(z))

    kernel = temper(MALA(), LADDER, BASE)
    z = torch.full((3, 500, 1), -1.0, dtype=torch.float64)
    energy = wells(z) - BASE.potential_fn(z)
    replicas = Replicas(z, energy, torch.full_like(energy, torch.nan))
    found = kernel._refresh(holed, replicas, rng())
    assert found.z.max() <= 0 and (found.z[0] != -1).any() and torch.isfinite(found.energy).all()


def test_momentum_stays_with_the_level_and_gradients_are_fresh():
    z = exact_draws()[:: CHAINS // 50]
    state, told = advance(temper(pg.Kinetic(), LADDER, BASE), z, steps=3)
    kernel = temper(pg.Kinetic(), LADDER, BASE)
    again = kernel.init(wells, state.z)
    torch.testing.assert_close(state[:3], again[:3])
    assert (told[0].num_steps == 2).all() and state.momentum.shape == z.shape


@pytest.mark.parametrize("levels", [1, 3, 7])
def test_placed_levels_have_equal_shares(levels):
    ladder, rejections = (0.1, 0.4, 1.0), np.array([0.5, 0.1, 0.6])
    placed = place(ladder, rejections, levels)
    assert len(placed) == levels and placed[-1] == 1.0
    barrier = np.interp([0.0, *placed], [0.0, *ladder], [0.0, 0.5, 0.6, 1.2])
    np.testing.assert_allclose(np.diff(barrier), 1.2 / levels)


def test_rejections_of_zero_still_place():
    placed = place((0.5, 1.0), np.zeros(2), 4)
    np.testing.assert_allclose(placed, [0.25, 0.5, 0.75, 1.0])


class Slope(nn.Module):
    """E(x) = -a x_0: at β the model is the standard normal moved by β a."""

    def __init__(self, shift):
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, x):
        return -self.shift * x[:, 0]


def shifted(shift, dim=3):
    return pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(dim)), Slope(shift))


def test_automatic_ladder_of_a_shifted_normal():
    # Neighbours a distance δ in β apart accept erfc(δ a / 2) of their exchanges.
    shift = 8.0
    settings = {"kernel": "HMC", "num_chains": 32, "num_samples": 200, "warmup_steps": 100}
    idata = quiet_sample(shifted(shift), tempering="auto", **settings)
    ladder = np.asarray(idata.attrs["tempering"])
    gaps = np.diff(ladder)
    assert ladder[0] == 0 and ladder[-1] == 1 and (gaps > 0).all()
    # Λ = a / √π; it takes 2 Λ + 1 levels and the reference.
    assert abs(len(gaps) / (2 * shift / math.sqrt(math.pi) + 1) - 1) < 0.2
    rejections = [math.erf(gap * shift / 2) for gap in gaps]
    assert max(rejections) < 2 * min(rejections)
    swaps = stats_of(idata, "swap_acceptance_rate")
    expected = math.erfc(gaps[-1] * shift / 2)
    means = np.nanmean(swaps, 1)
    error = means.std(ddof=1) / math.sqrt(len(means))
    assert abs(means.mean() - expected) < 4 * error
    z = draws_of(idata).mean(1)
    score = (z.mean(0) - [shift, 0, 0]) / (z.std(0, ddof=1) / math.sqrt(len(z)))
    assert abs(score).max() < 4


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((0, 0.25, 1), [0, 0.25, 1]),
        ([0.25, 0.5, 1.0], [0, 0.25, 0.5, 1]),
        (np.array([0, 0.25, 1.0]), [0, 0.25, 1]),
        ((1,), [0, 1]),
        (5, None),
    ],
)
def test_ladders_by_hand(given, told):
    settings = {"kernel": "MALA", "num_chains": 4, "num_samples": 5, "warmup_steps": 10}
    idata = quiet_sample(small_gebm(), tempering=given, beta=2.0, **settings)
    ladder = np.asarray(idata.attrs["tempering"])
    if told is not None:
        np.testing.assert_allclose(ladder, told)
    else:
        assert len(ladder) == given and ladder[0] == 0 and ladder[-1] == 1.0
    assert draws_of(idata).shape == (4, 5, 2)
    assert "global_moves" not in idata.attrs


NO_NUMBER = [1, 0, -3, True, 2.5, "hot"]
NO_LADDER = [(), (0.0,), (0.5,), (0.5, 0.2, 1.0), (-0.5, 1.0), (0.2, 0.2, 1.0), (0.1, 1.5)]


@pytest.mark.parametrize("given", [*NO_NUMBER, *NO_LADDER, ("a", 1.0), (0.0, 0.0, 1.0)])
def test_ladders_refused(given):
    with pytest.raises(ValueError, match="tempering: expected None"):
        quiet_sample(small_gebm(), tempering=given)


@pytest.mark.parametrize("given", ["auto", 4, (0.0, 0.5, 1.0)])
def test_a_potential_has_no_hottest_replica(given):
    with pytest.raises(ValueError, match="tempering: expected a GEBM or a Pyro model"):
        quiet_sample(normal, initial_params=torch.zeros(4, 2), num_chains=4, tempering=given)


class Narrow(nn.Module):
    """E(x) = 5,000 x_0²: at β = 1 a hundredth as wide as the base."""

    def forward(self, x):
        return 5e3 * x[:, 0] ** 2


def test_levels_are_tuned_apart():
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2)), Narrow())
    kernel = HMC(max_num_steps=20)
    settings = {"num_chains": 16, "num_samples": 50, "warmup_steps": 100}
    idata = quiet_sample(gebm, kernel=kernel, tempering=(1e-6, 0.01, 1), **settings)
    state = idata["sampling_state"]
    scale = state["step_size"].values[:, None] * np.sqrt(state["inverse_mass_matrix"].values)
    hot, middle, cold = scale.reshape(3, 16, 2)[:, 0]
    assert (hot > 0.3).all() and 20 < hot[0] / cold[0] < 500 and 3 < middle[0] / cold[0] < 30
    assert stats_of(idata, "step_size")[0, 0] == state["step_size"].values[-1]


def test_the_search_for_step_sizes_sees_the_tempered_potentials():
    # Against U in place of U_λ the hottest steps shrink without end.
    settings = {"num_chains": 16, "num_samples": 1, "warmup_steps": 1}
    idata = quiet_sample(shifted(8.0), kernel=MALA(), tempering=(0.01, 0.1, 1), **settings)
    assert idata["sampling_state"]["step_size"].values.min() > 0.1
    assert idata.attrs["warmup_gradient_evaluations"] < 20
