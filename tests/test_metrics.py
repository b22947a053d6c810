"""Scores against closed forms, brute force and SciPy's matrix root."""

import math
import warnings
from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch

from pyro_gebm.data import sample_toy, toy_mode_std, toy_modes
from pyro_gebm.metrics import (
    FeatureStatistics,
    class_occupancy,
    energy_distance,
    feature_statistics,
    frechet_distance,
    mode_occupancy,
    mode_share,
    occupancy_distance,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# --- Fréchet distance ------------------------------------------


def random_statistics(seed, width=6, rank=6):
    factor = randn(width, rank, seed=seed)
    return FeatureStatistics(100, randn(width, seed=seed + 50), factor @ factor.T)


def oracle(a, b):
    """The textbook formula with SciPy's general matrix root."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a root of a singular matrix is what some tests ask for
        root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy().astype(complex))
    traces = (a.covariance + b.covariance).trace().item()
    return (a.mean - b.mean).square().sum().item() + traces - 2 * np.trace(root).real


def test_statistics_are_those_of_numpy():
    x = torch.randn(40, 3, generator=generator()) * 5 + 1000
    count, mean, covariance = feature_statistics(x)
    assert count == 40 and mean.dtype == covariance.dtype == torch.float64
    np.testing.assert_allclose(mean, x.double().numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x.double().numpy().T), rtol=1e-10)


def test_commuting_covariances_have_a_closed_form():
    v1, v2, shift = double([1.0, 4.0, 0.0]), double([9.0, 0.25, 2.0]), double([1.0, -2.0, 0.5])
    rotation = torch.linalg.qr(randn(3, 3)).Q
    a = FeatureStatistics(9, shift, rotation @ v1.diag() @ rotation.T)
    b = FeatureStatistics(9, 0 * shift, rotation @ v2.diag() @ rotation.T)
    expected = shift.square().sum() + (v1.sqrt() - v2.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), abs=1e-10)


def test_two_dimensions_have_a_closed_form_without_commuting():
    # For 2 x 2, tr M^½ = (tr M + 2 det(M)^½)^½; here M is similar to C₁ C₂.
    c1, c2 = double([[2.0, 0.9], [0.9, 1.0]]), double([[1.0, -0.7], [-0.7, 3.0]])
    zero = torch.zeros(2, dtype=torch.float64)
    root = ((c1 @ c2).trace() + 2 * (c1.det() * c2.det()).sqrt()).sqrt()
    expected = (c1.trace() + c2.trace() - 2 * root).item()
    got = frechet_distance(FeatureStatistics(9, zero, c1), FeatureStatistics(9, zero, c2))
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_full_rank_agrees_with_scipy(seed):
    a, b = random_statistics(seed), random_statistics(seed + 10)
    assert frechet_distance(a, b) == pytest.approx(oracle(a, b), rel=1e-8)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(3, 6), (2, 4), (1, 1), (0, 3)])
def test_rank_deficient_agrees_with_scipy(rank_a, rank_b):
    a, b = random_statistics(1, rank=rank_a), random_statistics(2, rank=rank_b)
    # SciPy's root of a singular matrix is itself good to the square root of rounding only.
    assert frechet_distance(a, b) == pytest.approx(oracle(a, b), abs=1e-6)


def test_rank_one_has_a_closed_form():
    # C = f f': tr (C₁^½ C₂ C₁^½)^½ = |<f, g>|.
    f, g, zero = randn(50), randn(50, seed=1), torch.zeros(50, dtype=torch.float64)
    got = frechet_distance(
        FeatureStatistics(9, zero, f.outer(f)), FeatureStatistics(9, zero, g.outer(g))
    )
    assert got == pytest.approx((f @ f + g @ g - 2 * (f @ g).abs()).item(), abs=1e-10)


@pytest.mark.parametrize("rank", [0, 2, 6])
def test_distance_to_itself_is_zero_and_never_negative(rank):
    for seed in range(20):  # rounding leaves about half of them below zero
        a = random_statistics(seed, rank=rank)
        assert 0 <= frechet_distance(a, a) < 1e-10


def test_symmetric_and_blind_to_rotation_and_translation():
    a, b = random_statistics(4), random_statistics(5, rank=4)
    rotation, shift = torch.linalg.qr(randn(6, 6, seed=9)).Q, randn(6, seed=8)

    def moved(s):
        return FeatureStatistics(
            s.count, rotation @ s.mean + shift, rotation @ s.covariance @ rotation.T
        )

    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(moved(a), moved(b)) == pytest.approx(distance, rel=1e-10)


# --- occupancies ------------------------------------------


def test_occupancy_counts_and_total_variation():
    p = class_occupancy(torch.tensor([0, 0, 1, 3]), 5)
    q = class_occupancy(torch.tensor([1, 1, 2, 3]), 5)
    assert p.tolist() == [0.5, 0.25, 0, 0.25, 0]
    assert occupancy_distance(p, q) == occupancy_distance(q, p) == 0.5
    assert occupancy_distance(p, p) == 0
    assert occupancy_distance(double([1.0, 0.0]), double([0.0, 1.0])) == 1


def test_modes_by_hand():
    modes = double([[0.0, 0.0], [4.0, 0.0]])
    x = double([[0.6, 0.8], [2.1, 0.0], [4.0, 0.5], [4.0, 1.1]])  # distances 1, 1.9, 0.5, 1.1
    assert mode_share(x, modes, 1.0) == 0.5
    assert mode_share(x, modes, 1.2) == 0.75
    assert mode_occupancy(x, modes).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("name", ["gaussians8", "gaussians25"])
def test_share_of_exact_mixture_samples(name):
    x, std = sample_toy(name, 40_000, generator=generator(2)), toy_mode_std(name)
    for radius in (1.0, 2.0):
        expected = 1 - math.exp(-(radius**2) / 2)
        standard_error = math.sqrt(expected * (1 - expected) / 40_000)
        got = mode_share(x, toy_modes(name), radius * std)
        assert abs(got - expected) < 4 * standard_error


# --- energy distance ------------------------------------------


def norm(a, b):
    return math.dist(a.tolist(), b.tolist())


def test_energy_distance_is_the_double_sum():
    x, y = randn(7, 3), randn(5, 3, seed=1) + 0.5
    between = np.mean([norm(a, b) for a, b in product(x, y)])
    within = [
        np.mean([norm(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
        for s in (x, y)
    ]
    expected = 2 * between - within[0] - within[1]
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-12)
    assert energy_distance(y, x) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_over_several_chunks_is_that_of_one_dimension():
    # In one dimension the sum of all |x_i - x_j| comes from the order statistics alone.
    x, y = randn(2500, 1), randn(1100, 1, seed=1) * 2

    def pair_sum(v):
        v = v.flatten().sort().values
        ranks = torch.arange(len(v), dtype=torch.float64)
        return 2 * ((2 * ranks - len(v) + 1) * v).sum().item()

    sums = {name: pair_sum(v) for name, v in {"x": x, "y": y, "xy": torch.cat([x, y])}.items()}
    between = (sums["xy"] - sums["x"] - sums["y"]) / (2500 * 1100)
    expected = between - sums["x"] / (2500 * 2499) - sums["y"] / (1100 * 1099)
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_energy_distance_is_unbiased_for_gaussians(shift):
    # X - Y ~ N(-m, 2): E|X - Y| = (2/√π) exp(-m²/4) + m erf(m/2); E|X - X'| = 2/√π.
    across = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    expected = 2 * across - 4 / math.sqrt(math.pi)
    values = double(
        [
            energy_distance(randn(100, 1, seed=i), randn(100, 1, seed=1000 + i) + shift)
            for i in range(400)
        ]
    )
    assert abs(values.mean().item() - expected) < 4 * values.std().item() / 20


def test_energy_distance_does_not_see_where_the_origin_is():
    # Multiples of 2^-10, so that the shift is exact; a distance by matrix products is not.
    x, y = (randn(60, 2) * 1024).round() / 1024, (randn(70, 2, seed=1) * 1024).round() / 1024
    far = energy_distance(x + 2.0**20, y + 2.0**20)
    assert far == pytest.approx(energy_distance(x, y), rel=1e-12)


# --- refusals ------------------------------------------

STATISTICS = [feature_statistics(randn(5, k)) for k in (2, 3)]
POINT_SETS = [torch.zeros(3, 2), torch.zeros(3, 3)]
BAD = torch.tensor([[0.0, 1.0], [0.0, math.nan], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_statistics(torch.zeros(1, 2)), r"N >= 2.*\(1, 2\)"),
        (lambda: feature_statistics(torch.zeros(4)), r"\(N, K\).*\(4,\)"),
        (lambda: feature_statistics(BAD), r"features: .*nan at index \(1, 1\)"),
        (lambda: frechet_distance(*STATISTICS), "2 and 3"),
        (lambda: class_occupancy(torch.tensor([0, 3]), 3), r"0\.\.2; got 0\.\.3"),
        (lambda: class_occupancy(torch.tensor([-1, 2]), 3), r"got -1\.\.2"),
        (lambda: class_occupancy(torch.tensor([0.0]), 3), "labels: .*float32"),
        (lambda: class_occupancy(torch.zeros(0).long(), 3), "labels: .*at least one"),
        (lambda: occupancy_distance(double([1.0]), double([0.5, 0.5])), "1 and 2"),
        (lambda: occupancy_distance(double([2.0, 2.0]), double([1.0, 0.0])), "p: .*sum 4"),
        (lambda: occupancy_distance(double([1.0, 0.0]), double([1.5, -0.5])), "q: .*non-neg"),
        (lambda: energy_distance(torch.zeros(1, 2), torch.zeros(3, 2)), "x: .*2 points; got 1"),
        (lambda: energy_distance(*POINT_SETS), r"\(3, 2\) and \(3, 3\)"),
        (lambda: energy_distance(torch.zeros(3, 2), BAD), r"y: .*\(1, 1\)"),
        (lambda: mode_share(torch.zeros(3, 2), torch.zeros(1, 2), 0.0), "radius: .*0.0"),
        (lambda: mode_share(BAD, torch.zeros(1, 2), 1.0), r"x: .*\(1, 1\)"),
        (lambda: mode_occupancy(*POINT_SETS), r"\(3, 2\) and \(3, 3\)"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
