"""MMD and permutation tests against closed forms, enumeration and the direct statistics."""

import math
from itertools import combinations

import pytest
import torch
from helpers import rng
from scipy import stats

from pyro_gebm.metrics import energy_distance, sliced_wasserstein
from pyro_gebm.metrics.discrepancy import MMD, choose_bandwidth, mmd
from pyro_gebm.metrics.permutation import permutation_test


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


# --- MMD ------------------------------------------


def mean_kernel(variance, shift, bandwidth, dim):
    """E exp(-|D|²/2h²) of a difference D ~ N(shift, variance I)."""
    spread = bandwidth**2 + variance
    return (bandwidth**2 / spread) ** (dim / 2) * math.exp(-(shift @ shift) / (2 * spread))


def test_mmd_of_two_gaussians_has_a_closed_form():
    # Unbiased: the mean over independent pairs of samples is the truth within its own error.
    dim, scale, h = 3, 1.5, 1.3
    shift = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    zero = torch.zeros(dim, dtype=torch.float64)
    truth = (
        mean_kernel(2.0, zero, h, dim)
        + mean_kernel(2 * scale**2, zero, h, dim)
        - 2 * mean_kernel(1 + scale**2, shift, h, dim)
    )
    pairs = [(randn(60, dim, seed=i), randn(40, dim, seed=999 + i)) for i in range(300)]
    estimates = torch.tensor([mmd(x, shift + scale * y, bandwidth=h).squared for x, y in pairs])
    error = float(estimates.std()) / math.sqrt(len(estimates))
    assert abs(float(estimates.mean()) - truth) < 4 * error < 0.15 * truth


def test_mmd_by_brute_force_across_chunks():
    x, y, h = randn(1100, 2), 0.3 + randn(30, 2, seed=1), 0.7

    def kernel(a, b):
        return (-(a[:, None] - b[None]).square().sum(-1) / (2 * h * h)).exp()

    def off_diagonal(matrix):
        return (matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1))

    expected = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert mmd(x, y, bandwidth=h) == (pytest.approx(float(expected), abs=1e-12), h)


def test_bandwidth_is_the_median_distance_of_the_pool():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [7.0]])
    # Distances 1, 2, 3, 4, 6, 7: the lower of the two in the middle.
    assert mmd(x, y).bandwidth == 3.0
    many = randn(6000, 1)
    assert choose_bandwidth(many, None) == pytest.approx(
        math.sqrt(2) * stats.norm.ppf(0.75), rel=0.03
    )


def test_mmd_takes_images_and_is_blind_to_the_order():
    x, y = randn(20, 1, 2, 2), randn(30, 1, 2, 2, seed=1)
    forward, back = mmd(x, y), mmd(y.flip(0), x)
    assert isinstance(forward, MMD)
    assert forward == (pytest.approx(back.squared, abs=1e-14), back.bandwidth)


# --- permutation tests: the statistics ------------------------------------------


def direct(name, x, y, generator):
    if name == "energy":
        return energy_distance(x, y)
    if name == "mmd":
        return mmd(x, y).squared
    return sliced_wasserstein(x, y, num_directions=50, generator=generator)


@pytest.mark.parametrize("name", ["energy", "mmd", "sliced_wasserstein"])
def test_statistic_and_null_are_those_of_the_direct_formula(name):
    x, y = randn(20, 3), randn(20, 3, seed=1) + 0.3
    settings = {"num_permutations": 40, "num_directions": 50}
    fast = permutation_test(x, y, name, **settings, generator=rng(5))
    assert fast.statistic == pytest.approx(direct(name, x, y, rng(5)), abs=1e-10)

    # A callable takes the slow way; of one seed the splits are the same, once the directions are
    # drawn.
    source = rng(5)
    if name == "sliced_wasserstein":
        torch.randn(3, 50, generator=source, dtype=torch.float64)
    pool = torch.cat([x, y])
    h = choose_bandwidth(pool, None)

    def slow(a, b):
        return mmd(a, b, bandwidth=h).squared if name == "mmd" else direct(name, a, b, rng(5))

    other = permutation_test(x, y, slow, **settings, generator=source)
    assert other == pytest.approx(fast, abs=1e-10)


@pytest.mark.parametrize("name", ["energy", "mmd"])
def test_samples_of_unequal_size(name):
    x, y = randn(7, 2), randn(19, 2, seed=1) + 0.3
    found = permutation_test(x, y, name, 10, generator=rng())
    assert found.statistic == pytest.approx(direct(name, x, y, None), abs=1e-12)


# --- permutation tests: the p-values ------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"), [("energy", (3, 5)), ("mmd", (4, 4)), ("sliced_wasserstein", (4, 4))]
)
def test_p_value_is_that_of_all_splits(name, sizes):
    # With equal sizes every split has a mirror image of the same statistic: ties that rounding
    # must not break.
    n, m = sizes
    pool = randn(n + m, 1, seed=3)
    pool[:n] += 0.8
    h = choose_bandwidth(pool, None)

    def split(chosen):
        rest = [i for i in range(n + m) if i not in chosen]
        a, b = pool[list(chosen)], pool[rest]
        return mmd(a, b, bandwidth=h).squared if name == "mmd" else direct(name, a, b, rng())

    values = torch.tensor([split(c) for c in combinations(range(n + m), n)], dtype=torch.float64)
    exact = float((values >= values[0] - 1e-9).double().mean())
    assert 0.02 < exact < 0.6  # neither trivial
    count = 20_000
    found = permutation_test(pool[:n], pool[n:], name, count, num_directions=50, generator=rng(8))
    assert abs(found.p_value - exact) < 4 * math.sqrt(exact * (1 - exact) / count)
    error = float(values.std()) / math.sqrt(count)
    assert abs(found.null_mean - float(values.mean())) < 4 * error
    assert found.null_sd == pytest.approx(float(values.std(correction=0)), rel=0.05)


@pytest.mark.parametrize("name", ["energy", "mmd", "sliced_wasserstein"])
def test_p_values_are_uniform_under_the_null(name):
    repeats, count = 300, 99
    ranks = []
    for i in range(repeats):
        x, y = randn(8, 2, seed=2 * i), randn(8, 2, seed=2 * i + 1)
        p = permutation_test(x, y, name, count, num_directions=10, generator=rng(i)).p_value
        ranks.append(round(p * (count + 1)))
    # A rank is uniform on 1..100; spread within its step it is uniform on [0, 1].
    noise = torch.rand(repeats, generator=rng(77), dtype=torch.float64).numpy()
    values = (torch.tensor(ranks).double().numpy() - noise) / (count + 1)
    assert stats.kstest(values, stats.uniform.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["energy", "mmd", "sliced_wasserstein"])
def test_a_clear_shift_is_seen(name):
    found = [
        permutation_test(
            randn(60, 2, seed=2 * i),
            randn(60, 2, seed=2 * i + 1) + 0.8,
            name,
            99,
            num_directions=20,
            generator=rng(i),
        )
        for i in range(20)
    ]
    assert sum(test.p_value <= 0.05 for test in found) >= 19
    assert all(test.statistic > test.null_mean + 2 * test.null_sd for test in found)


def test_the_smallest_p_value_is_not_zero():
    found = permutation_test(randn(30, 1), randn(30, 1) + 9, num_permutations=19, generator=rng())
    assert found.p_value == 1 / 20 and found.num_permutations == 19


def test_generators_and_chunks():
    state = torch.get_rng_state()
    x, y = randn(20, 1), randn(20, 1, seed=1)
    one, again = (permutation_test(x, y, "mmd", 300, generator=rng(1)) for _ in range(2))
    other = permutation_test(x, y, "mmd", 300, generator=rng(2))
    assert one == again and one.null_mean != other.null_mean
    assert torch.equal(torch.get_rng_state(), state)


# --- refusals ------------------------------------------

X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mmd(torch.zeros(4), X), r"x: .*\(N, \.\.\.\); got \(4,\)"),
        (lambda: mmd(X, X[:1]), r"y: expected at least two"),
        (lambda: mmd(X, torch.zeros(4, 3)), r"\(4, 2\) and \(4, 3\)"),
        (lambda: mmd(X, X), "median distance of 0"),
        (lambda: mmd(X, X, bandwidth=0.0), "bandwidth: .*got 0"),
        (lambda: mmd(X, X + math.nan), "y: expected finite"),
        (lambda: permutation_test(X, X, "ks", generator=rng()), "statistic: .*energy.*'ks'"),
        (lambda: permutation_test(X, X, num_permutations=1, generator=rng()), "got 1"),
        (
            lambda: permutation_test(X, X[:3], "sliced_wasserstein", generator=rng()),
            "one size.*4 and 3",
        ),
        (
            lambda: permutation_test(torch.zeros(3000, 1), torch.zeros(3000, 1), generator=rng()),
            r"at most 4096 .*got 6000, .*0\.27 GiB.*fewer",
        ),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
