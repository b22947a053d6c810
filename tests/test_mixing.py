"""How values and squares mix: autocorrelation times by closed forms, and what ChEES makes of it.

Of a stationary AR(1) of coefficient ρ, n Var(mean of n) / Var is 1 + 2 Σ (1 - k/n) ρ^k; its
squares are, in the same sense, an AR(1) of coefficient ρ².
"""

from unittest import mock

import numpy as np
import pytest
import torch
from helpers import normal, rng

from pyro_gebm.mcmc import ChEES, Moves, mixing, warm_up
from pyro_gebm.mcmc.chees import FIRST_LENGTH, SHORTEST
from pyro_gebm.mcmc.length import restart_length, start_length
from pyro_gebm.mcmc.mixing import (
    AS_A_NORMAL,
    MOST,
    how_far_apart,
    length_factor,
    no_mixing,
    update_mixing,
)


def autoregression(rho, chains, draws, dim=1, seed=0):
    """Draws of standard normal chains, (n, C, D)."""
    noise = torch.randn(draws, chains, dim, generator=rng(seed), dtype=torch.float64)
    path = [noise[0]]
    for step in noise[1:]:
        path.append(rho * path[-1] + (1 - rho**2) ** 0.5 * step)
    return torch.stack(path)


def watched(path, centre=None):
    """The sums of a path."""
    centre = path.new_zeros(1, path.shape[2]) if centre is None else centre
    found = no_mixing(centre, path.shape[1])
    for z in path:
        found = update_mixing(found, z)
    return found


def time_ratio(found):
    """Autocorrelation time of values over that of squares."""
    apart, squares_apart = how_far_apart(found)
    return apart / squares_apart


def exact_time(rho, draws):
    lags = np.arange(1, draws)
    return 1 + 2 * ((1 - lags / draws) * rho**lags).sum()


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.5, 0.8])
def test_autocorrelation_times_of_an_autoregression(rho):
    chains, draws = 20_000, 20
    ratio = float(time_ratio(watched(autoregression(rho, chains, draws))))
    exact = exact_time(rho, draws) / exact_time(rho**2, draws)
    # Each variance over the chains has a relative error of some √(2/C), wider for squares.
    assert ratio == pytest.approx(exact, rel=4 * (8 / chains) ** 0.5)


def test_times_are_averaged_over_components():
    chains, draws, rhos = 20_000, 20, (0.0, 0.8)
    path = torch.cat([autoregression(rho, chains, draws, seed=i) for i, rho in enumerate(rhos)], 2)
    times = [sum(exact_time(rho**k, draws) for rho in rhos) for k in (1, 2)]
    found = float(time_ratio(watched(path * torch.tensor([1.0, 30.0]))))
    assert found == pytest.approx(times[0] / times[1], rel=4 * (8 / chains) ** 0.5)


def test_sums_by_hand():
    path = autoregression(0.5, 6, 9, dim=2) * 3 + 5
    centre = torch.tensor([[4.0, 5.0], [6.0, 5.0]], dtype=torch.float64)  # two groups
    found = watched(path, centre)
    y = (path - centre.repeat_interleave(3, 0)).numpy().transpose(1, 0, 2).reshape(2, 3, 9, 2)
    times = [9 * f.mean(2).var(1, ddof=1) / f.var((1, 2)) for f in (y, y**2)]
    expected = times[0].mean() / times[1].mean()
    np.testing.assert_allclose(float(time_ratio(found)), expected, rtol=1e-10)


def test_of_a_normal():
    t = np.linspace(SHORTEST * FIRST_LENGTH, FIRST_LENGTH, 10_001)
    time, squares_time = ((1 + r) / (1 - r) for r in (np.cos(t).mean(), (np.cos(t) ** 2).mean()))
    assert time / squares_time == pytest.approx(AS_A_NORMAL, abs=0.005)


@pytest.mark.parametrize("chains", [20_000, 16])
def test_few_draws_say_little(chains):
    path = autoregression(0.05 if chains > 16 else 0.3, chains, 40, seed=3)
    lengths = (8, 16, 40)
    factors = [float(length_factor(watched(path[:n]))) for n in lengths]
    ratios = [float(time_ratio(watched(path[:n]))) for n in lengths]
    weights = [n / (n + 10) * (chains - 1) / (chains - 1 + 32) for n in lengths]
    expected = [(r / AS_A_NORMAL) ** w for r, w in zip(ratios, weights, strict=True)]
    np.testing.assert_allclose(factors, np.clip(expected, 1, MOST), rtol=1e-6)
    assert all(1 < f < MOST for f in factors)


def test_trajectories_are_never_made_shorter():
    assert float(length_factor(watched(autoregression(-0.6, 1000, 20)))) == 1.0


@pytest.mark.parametrize(
    "path",
    [
        torch.zeros(0, 3, 2),
        torch.zeros(5, 3, 2),  # nothing varies
        torch.randn(40, 2, generator=rng()).expand(50, 40, 2),  # nothing moves
        torch.full((5, 3, 2), 1e30),  # its square overflows
        torch.randn(5, 1, 2, generator=rng()),  # one chain: no spread
    ],
    ids=["no draws", "a point", "points", "far away", "one chain"],
)
def test_what_tells_nothing_changes_nothing(path):
    assert float(length_factor(watched(path))) == 1.0


def two_valleys(z):
    """A mixture of N(-2, 1) and N(2, 1) in each component: sides change slowly, |z| does not."""
    return -torch.logaddexp(-0.5 * (z - 2) ** 2, -0.5 * (z + 2) ** 2).sum(-1)


@pytest.mark.parametrize(("potential_fn", "most"), [(two_valleys, True), (normal, False)])
def test_trajectories_are_longer_where_values_are_slow(potential_fn, most):
    start = torch.randn(64, 5, generator=rng()) * 2
    moves, found = Moves(ChEES(), potential_fn), []
    for limit in (1.0, MOST):
        with mock.patch.object(mixing, "MOST", limit):
            found.append(warm_up(moves, start, 200).tuning.trajectory_length)
    # Only at the end of warm-up: until then all is the same.
    factor = float(found[1] / found[0])
    assert factor == pytest.approx(MOST) if most else 1 <= factor < 1.2


def test_a_length_that_is_given_is_not_made_longer_again():
    start = torch.randn(64, 5, generator=rng()) * 2
    moves = Moves(ChEES(), two_valleys)
    first, found = warm_up(moves, start, 100), []
    for limit in (1.0, MOST):
        with mock.patch.object(mixing, "MOST", limit):
            tuning = warm_up(moves, start, 20, tuning=first.tuning).tuning
            found.append(float(tuning.trajectory_length))
    assert found[0] == found[1]


@pytest.mark.parametrize("settings", [{}, {"is_scaled": False}, {"all_move": False}])
def test_what_a_window_says_of_the_length(settings):
    path = autoregression(0.5, 200, 40)
    state = start_length(torch.tensor(4.0), settings.get("is_scaled", True))
    state = state._replace(mixing=watched(path))
    shrink, limit, centre = torch.tensor(2.0), torch.tensor(1.5), torch.ones(1, 1)
    moved = torch.ones(200, dtype=torch.bool)
    moved[7] = settings.get("all_move", True)
    new = restart_length(state, shrink, limit, centre, moved)
    # Without unit it is cut, and tells nothing; nor does it with chains that never move.
    assert float(new.value()) == pytest.approx(2.0 if state.is_scaled else 1.5)
    assert float(new.factor) == (1.0 if settings else MOST)
    assert float(new.average()) == pytest.approx(float(new.value() * new.factor))
    assert new.is_scaled and new.mixing.draws == 0 and new.mixing.sums.shape == (200, 3)
    # The factor stays when a later window cannot be judged.
    again = restart_length(new, torch.tensor(1.0), limit, centre, ~moved)
    assert again.factor == new.factor
