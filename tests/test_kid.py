"""The kernel distance against its definition, other libraries, and Monte Carlo."""

import math

import pytest
import torch

from pyro_gebm.metrics.kid import _unbiased_mmd, kernel_distance


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def double_loop(x, y):
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    x, y, m = x.tolist(), y.tolist(), len(x)
    off = [(i, j) for i in range(m) for j in range(m) if i != j]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in off) / (m * (m - 1))
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / m**2


def test_a_subset_has_the_definition():
    x, y = randn(9, 4), randn(9, 4, seed=1) * 1.5 + 0.3
    assert _unbiased_mmd(x, y) == pytest.approx(double_loop(x, y), rel=1e-12)


def test_a_subset_agrees_with_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid", exc_type=ImportError)
    x, y = randn(60, 16), randn(60, 16, seed=1) + 0.2
    assert _unbiased_mmd(x, y) == pytest.approx(float(kid.poly_mmd(x, y)), rel=1e-12)


def test_the_whole_agrees_with_torch_fidelity():
    kid = pytest.importorskip("torch_fidelity.metric_kid", exc_type=ImportError)
    x, y = randn(600, 8), randn(700, 8, seed=1) + 0.2
    settings = {"kid_subsets": 400, "kid_subset_size": 100, "verbose": False}
    theirs = kid.kid_features_to_metric(x, y, **settings)
    ours = kernel_distance(x, y, num_subsets=400, subset_size=100, generator=generator())
    # Both average 400 random subsets of the same data: their noise is sd/√400 each.
    noise = ours.subset_sd * math.sqrt(2 / 400)
    assert abs(ours.estimate - theirs["kernel_inception_distance_mean"]) < 4 * noise
    sd = theirs["kernel_inception_distance_std"]
    assert ours.subset_sd == pytest.approx(sd, rel=4 / math.sqrt(400))


def test_the_mean_and_spread_are_over_the_subsets(monkeypatch):
    values = iter([1.0, 2.0, 6.0])
    monkeypatch.setattr("pyro_gebm.metrics.kid._unbiased_mmd", lambda x, y: next(values))
    found = kernel_distance(
        randn(20, 2), randn(40, 2), num_subsets=3, subset_size=5, generator=generator()
    )
    assert found.estimate == 3.0 and found.subset_sd == pytest.approx(math.sqrt(7))
    assert found.standard_error == pytest.approx(math.sqrt(7 * (1 / 3 + 0.25 / 0.75)))
    assert found[3:] == (3, 5)


def test_subsets_are_new_each_time_and_without_replacement(monkeypatch):
    seen = []

    def spy(x, y):
        seen.append((x.flatten().tolist(), y.flatten().tolist()))
        return 0.0

    monkeypatch.setattr("pyro_gebm.metrics.kid._unbiased_mmd", spy)
    rows = torch.arange(10.0)[:, None]
    kernel_distance(rows, rows + 100, num_subsets=50, subset_size=5, generator=generator())
    for side in (0, 1):
        subsets = [pair[side] for pair in seen]
        assert all(len(set(subset)) == 5 for subset in subsets)
        assert len({tuple(sorted(subset)) for subset in subsets}) > 30  # of 252
        assert len({value for subset in subsets for value in subset}) == 10


def gaussian_mmd(shift):
    """MMD² in one dimension between N(0, 1) and N(s, 1), for (a b + 1)³."""
    # E (XY + 1)³ = Σ_j C(3, j) E[X^j] E[Y^j], so MMD² = Σ_j C(3, j) (E X^j - E Y^j)².
    moments = [0, shift, shift**2, shift**3 + 3 * shift]  # of N(s, 1) less those of N(0, 1)
    return sum(math.comb(3, j) * moments[j] ** 2 for j in range(4))


def monte_carlo(shift, sets=200):
    seeded = generator(5)
    found = [
        kernel_distance(
            torch.randn(200, 1, generator=seeded),
            torch.randn(200, 1, generator=seeded) + shift,
            num_subsets=10,
            subset_size=40,
            generator=seeded,
        )
        for _ in range(sets)
    ]
    estimates = torch.tensor([f.estimate for f in found], dtype=torch.float64)
    errors = torch.tensor([f.standard_error for f in found], dtype=torch.float64)
    return estimates, errors.square().mean().sqrt()


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_unbiased_with_an_honest_error(shift):
    estimates, error = monte_carlo(shift)
    assert abs(estimates.mean() - gaussian_mmd(shift)) < 4 * estimates.std() / 200**0.5
    # Spreads of 200 heavy-tailed draws are known to about 8 %; for like laws the error is larger.
    low, high = (1.2, 2.5) if shift == 0 else (0.75, 1.25)
    assert low < error / estimates.std() < high


def test_follows_its_generator_only():
    x, y = randn(40, 2).float(), randn(40, 2, seed=1).float()
    state = torch.get_rng_state()
    first, again, other = (
        kernel_distance(x, y, num_subsets=4, subset_size=10, generator=generator(seed))
        for seed in (0, 0, 1)
    )
    assert first == again and first.estimate != other.estimate
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("x", "y", "settings", "message"),
    [
        (randn(30, 2), randn(40, 2), {}, "subset_size: .*2 to 15.*got 1000"),
        (randn(30, 2), randn(40, 2), {"subset_size": 16}, "got 16"),
        (randn(30, 2), randn(40, 2), {"subset_size": 1}, "got 1"),
        (randn(30, 2), randn(40, 2), {"num_subsets": 1, "subset_size": 5}, "num_subsets: .*got 1"),
        (randn(30, 2), randn(40, 3), {"subset_size": 5}, r"\(30, 2\) and \(40, 3\)"),
        (randn(30), randn(40, 3), {"subset_size": 5}, r"x: .*\(30,\)"),
        (randn(30, 2) / 0, randn(40, 2), {"subset_size": 5}, r"x: .*inf at index \(0, 0\)"),
    ],
)
def test_refusals_say_what_came(x, y, settings, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(x, y, generator=generator(), **settings)
