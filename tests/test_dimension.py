"""Intrinsic dimension on known manifolds, and against the formulas by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_swiss_roll

from pyro_gebm.metrics import dimension
from pyro_gebm.metrics.dimension import VARIANTS, intrinsic_dimension, intrinsic_dimension_curve

UNBIASED = ("inverse", "unbiased")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def sphere(d, count=5000, seed=0):
    """Uniform on S^d in R^(d + 1)."""
    return torch.nn.functional.normalize(randn(count, d + 1, seed=seed), dim=1)


def subspace(d):
    return randn(5000, d) @ randn(d, 20, seed=1) + 7


def swiss_roll():
    return torch.from_numpy(make_swiss_roll(5000, random_state=0)[0])


# --- known manifolds ------------------------------------------

MANIFOLDS = [(f"sphere {d}", d, lambda d=d: sphere(d)) for d in range(1, 6)]
MANIFOLDS += [(f"subspace {d}", d, lambda d=d: subspace(d)) for d in range(1, 6)]
MANIFOLDS += [("swiss roll", 2, swiss_roll)]


@pytest.mark.parametrize(("name", "d", "make"), MANIFOLDS, ids=[m[0] for m in MANIFOLDS])
def test_known_manifolds_within_five_per_cent(name, d, make):
    distances = dimension._to_neighbours(make().reshape(5000, -1), 5000, 20, False)
    for k in (10, 20):
        logs = distances[:, :k].log()
        for variant in UNBIASED:
            assert abs(dimension._estimate(logs, variant)[0] / d - 1) < 0.05
        # The original one is too large by (k - 1) / (k - 2), which is not within.
        original, unbiased = (dimension._estimate(logs, v)[0] for v in ("original", "unbiased"))
        assert original == pytest.approx(unbiased * (k - 1) / (k - 2), rel=1e-12)


def test_high_dimension_reads_too_low():
    # Edges and sparse neighbours: a known bias, to be seen and not hidden.
    cube = torch.rand(4000, 20, generator=rng(3))
    found = {v: intrinsic_dimension(cube, 20, variant=v).dimension for v in VARIANTS}
    assert found["inverse"] == pytest.approx(14.8, abs=0.2)
    assert found["unbiased"] == pytest.approx(14.8, abs=0.2)
    assert found["original"] < 16


# --- the formulas ------------------------------------------


def by_hand(x, k):
    """S of each point, by loops."""
    sums = []
    for i in range(len(x)):
        t = sorted(math.dist(x[i].tolist(), x[j].tolist()) for j in range(len(x)) if j != i)
        sums.append(sum(math.log(t[k - 1] / t[j]) for j in range(k - 1)))
    return np.array(sums)


@pytest.mark.parametrize("k", [3, 7])
def test_variants_are_the_formulas(k):
    x = randn(40, 3)
    sums = by_hand(x, k)
    expected = {
        "inverse": (k - 1) / sums.mean(),
        "unbiased": ((k - 2) / sums).mean(),
        "original": ((k - 1) / sums).mean(),
    }
    for variant, value in expected.items():
        found = intrinsic_dimension(x, k, variant=variant)
        assert found.dimension == pytest.approx(value, rel=1e-10)
        assert found[2:] == (k, variant, 40, 40)
    local = (k - 2) / sums
    error = intrinsic_dimension(x, k, variant="unbiased").standard_error
    assert error == pytest.approx(local.std(ddof=1) / math.sqrt(40), rel=1e-10)


def test_variants_are_unbiased_where_the_theory_holds():
    # Log-ratios of distances are exponential with rate d; here they are, exactly and independent.
    d, k, count = 6.0, 5, 200_000
    u = torch.rand(count, k - 1, generator=rng(), dtype=torch.float64)
    logs = torch.cat([u.log() / d, torch.zeros(count, 1, dtype=torch.float64)], 1)
    for variant in UNBIASED:
        found, error = dimension._estimate(logs, variant)
        assert abs(found - d) < 4 * error
    spread = d / math.sqrt((k - 1) * count)  # the asymptotic error of the likelihood
    assert dimension._estimate(logs, "inverse")[1] == pytest.approx(spread, rel=0.02)
    assert dimension._estimate(logs, "unbiased")[1] == pytest.approx(
        d / math.sqrt((k - 3) * count), rel=0.05
    )
    found, error = dimension._estimate(logs, "original")
    assert abs(found - d * (k - 1) / (k - 2)) < 4 * error


@pytest.mark.parametrize("variant", UNBIASED)
def test_standard_error_is_about_the_spread_over_data_sets(variant):
    found = [intrinsic_dimension(sphere(3, 300, seed), 10, variant=variant) for seed in range(100)]
    true = np.std([f.dimension for f in found], ddof=1)
    # Known to 7 %; neighbours are shared, so the two agree only roughly.
    assert 0.75 < true / np.mean([f.standard_error for f in found]) < 1.5


def test_scale_rotation_and_ambient_dimension_do_not_matter():
    x = randn(500, 3)
    rotation = torch.linalg.qr(randn(8, 8, seed=1)).Q
    moved = 1e3 * torch.cat([x, torch.zeros(500, 5)], 1) @ rotation + 5
    for variant in VARIANTS:
        expected = intrinsic_dimension(x, 10, variant=variant).dimension
        found = intrinsic_dimension(moved.reshape(500, 2, 4), 10, variant=variant).dimension
        assert found == pytest.approx(expected, rel=1e-8)


# --- curves ------------------------------------------


def test_curve_is_the_single_estimates_by_one_search(monkeypatch):
    x = randn(300, 4)
    searches = []
    search = dimension.nearest_neighbours

    def counting(*args, **options):
        searches.append(args[2])
        return search(*args, **options)

    monkeypatch.setattr(dimension, "nearest_neighbours", counting)
    curve = intrinsic_dimension_curve(x, [15, 3, 8], variant="unbiased")
    assert searches == [15] and curve.ks == (15, 3, 8) and curve.sizes == (300,)
    for place, k in enumerate(curve.ks):
        single = intrinsic_dimension(x, k, variant="unbiased")
        assert curve.dimension[0, place] == pytest.approx(single.dimension, rel=1e-12)
        assert curve.standard_error[0, place] == pytest.approx(single.standard_error, rel=1e-12)


def test_sizes_are_the_first_of_one_random_order():
    x = randn(400, 2)
    curve = intrinsic_dimension_curve(x, [5, 9], sizes=[50, 200, 400], generator=rng(1))
    order = torch.randperm(400, generator=rng(1))
    assert curve.dimension.shape == curve.standard_error.shape == (3, 2)
    for row, size in enumerate(curve.sizes):
        single = intrinsic_dimension(x[order[:size]], 9).dimension
        assert curve.dimension[row, 1] == pytest.approx(single, rel=1e-12)


def test_centres_are_a_random_few_among_all():
    x = sphere(2, 3000)
    whole = intrinsic_dimension(x, 10)
    few = intrinsic_dimension(x, 10, num_centres=300, generator=rng(1))
    assert few.num_centres == 300 and few.num_points == whole.num_points == 3000
    assert few.standard_error == pytest.approx(whole.standard_error * math.sqrt(10), rel=0.2)
    assert abs(few.dimension - whole.dimension) < 4 * few.standard_error
    everyone = intrinsic_dimension(x, 10, num_centres=3000, generator=rng(1))
    assert everyone.dimension == pytest.approx(whole.dimension, rel=1e-12)


# --- duplicates ------------------------------------------


def test_duplicates_are_counted_and_refused_or_dropped():
    x = randn(200, 3)
    doubled = torch.cat([x[50:], x, x[:7], x[:7]])
    with pytest.raises(ValueError, match=r"got 321 of 364 .*duplicates='drop'") as refused:
        intrinsic_dimension(doubled, 5)  # 150 points twice and 7 three times
    assert "distinct" in str(refused.value)
    for variant in VARIANTS:
        found = intrinsic_dimension(doubled, 5, variant=variant, duplicates="drop")
        expected = intrinsic_dimension(x, 5, variant=variant)
        assert found.num_points == found.num_centres == 200
        assert found.dimension == pytest.approx(expected.dimension, rel=1e-12)


def test_the_first_of_equal_points_is_kept():
    x = torch.tensor([[2], [1], [2], [3], [1]], dtype=torch.uint8)
    assert dimension._distinct(x).flatten().tolist() == [2, 1, 3]


def test_a_grid_is_refused_by_what_divides_by_zero():
    grid = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    with pytest.raises(ValueError, match=r"3 nearest are all equally far \(96 in all\)"):
        intrinsic_dimension(grid, 3, variant="unbiased")
    assert math.isfinite(intrinsic_dimension(grid, 3).dimension)
    with pytest.raises(ValueError, match="equally far"):
        intrinsic_dimension(grid, 2)


# --- refusals ------------------------------------------

X = randn(10, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intrinsic_dimension(X, 1), "k: .*>= 2; got 1"),
        (lambda: intrinsic_dimension(X, 2, variant="unbiased"), "k: .*>= 3; got 2"),
        (lambda: intrinsic_dimension(X, 10), "ks: expected at most 9.*got 10"),
        (lambda: intrinsic_dimension(X, 3, variant="mean"), "variant: .*inverse"),
        (lambda: intrinsic_dimension(X, 3, duplicates="keep"), "duplicates: .*refuse, drop"),
        (lambda: intrinsic_dimension(X * torch.inf, 3), "points: .*finite"),
        (lambda: intrinsic_dimension(torch.tensor(1.0), 3), r"x: .*\(N, \.\.\.\).*\(\)"),
        (lambda: intrinsic_dimension(X, 3, num_centres=5), "generator: .*None"),
        (lambda: intrinsic_dimension(X, 3, num_centres=11, generator=rng()), "num_centres: .*10"),
        (lambda: intrinsic_dimension(X, 3, num_centres=1, generator=rng()), "num_centres: .*>= 2"),
        (lambda: intrinsic_dimension_curve(X, []), "ks: .*none"),
        (lambda: intrinsic_dimension_curve(X, [3], sizes=[11], generator=rng()), "sizes: .*11"),
        (lambda: intrinsic_dimension_curve(X, [3], sizes=[5]), "generator: .*None"),
        (lambda: intrinsic_dimension_curve(X, [3], sizes=[]), "sizes: "),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
