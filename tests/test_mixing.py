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
from pyro_gebm.mcmc.mixing import MOST, imbalance, no_mixing, stretch, update_mixing


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


def exact_time(rho, draws):
    lags = np.arange(1, draws)
    return 1 + 2 * ((1 - lags / draws) * rho**lags).sum()


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.5, 0.8])
def test_autocorrelation_times_of_an_autoregression(rho):
    chains, draws = 20_000, 20
    ratio = float(imbalance(watched(autoregression(rho, chains, draws))))
    exact = exact_time(rho, draws) / exact_time(rho**2, draws)
    # Each variance over the chains has a relative error of some √(2/C), wider for squares.
    assert ratio == pytest.approx(exact, rel=4 * (8 / chains) ** 0.5)


def test_times_are_averaged_over_components():
    chains, draws, rhos = 20_000, 20, (0.0, 0.8)
    path = torch.cat([autoregression(rho, chains, draws, seed=i) for i, rho in enumerate(rhos)], 2)
    times = [sum(exact_time(rho**k, draws) for rho in rhos) for k in (1, 2)]
    found = float(imbalance(watched(path * torch.tensor([1.0, 30.0]))))
    assert found == pytest.approx(times[0] / times[1], rel=4 * (8 / chains) ** 0.5)


def test_sums_by_hand():
    path = autoregression(0.5, 6, 9, dim=2) * 3 + 5
    centre = torch.tensor([[4.0, 5.0], [6.0, 5.0]], dtype=torch.float64)  # two groups
    found = watched(path, centre)
    y = (path - centre.repeat_interleave(3, 0)).numpy().transpose(1, 0, 2).reshape(2, 3, 9, 2)
    times = [9 * f.mean(2).var(1, ddof=1) / f.var((1, 2)) for f in (y, y**2)]
    expected = times[0].mean() / times[1].mean()
    np.testing.assert_allclose(float(imbalance(found)), expected, rtol=1e-10)


def test_few_draws_say_little():
    path = autoregression(0.05, 20_000, 40)
    factors = [float(stretch(watched(path[:n]))) for n in (4, 10, 40)]
    ratios = [float(imbalance(watched(path[:n]))) for n in (4, 10, 40)]
    weights = [n / (n + 10) for n in (4, 10, 40)]
    expected = [min(MOST, (r / 0.9) ** w) for r, w in zip(ratios, weights, strict=True)]
    np.testing.assert_allclose(factors, expected, rtol=1e-6)
    assert 1 < factors[0] < factors[1] < factors[2] < MOST


def test_trajectories_are_never_made_shorter():
    assert float(stretch(watched(autoregression(-0.6, 1000, 20)))) == 1.0


@pytest.mark.parametrize(
    "path",
    [
        torch.zeros(0, 3, 2),
        torch.zeros(5, 3, 2),  # nothing moves
        torch.full((5, 3, 2), 1e30),  # its square overflows
        torch.randn(5, 1, 2, generator=rng()),  # one chain: no spread
    ],
    ids=["no draws", "a point", "far away", "one chain"],
)
def test_what_tells_nothing_changes_nothing(path):
    assert float(stretch(watched(path))) == 1.0


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
