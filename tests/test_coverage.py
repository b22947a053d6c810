"""Precision, recall, density and coverage against their definitions and known expectations."""

import math

import numpy as np
import pytest
import torch

from pyro_gebm.metrics import coverage as room
from pyro_gebm.metrics.coverage import density_coverage, precision_recall


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def all_four(x, reference, k):
    found = precision_recall(x, reference, k=k, groups=2, generator=generator())
    return *found[:2], *density_coverage(x, reference, k=k, groups=2, generator=generator())[:2]


def by_definition(x, reference, k):
    """The papers' sums, point by point."""
    x, reference = x.tolist(), reference.tolist()

    def radii(points):
        return [
            sorted(math.dist(p, q) for j, q in enumerate(points) if j != i)[k - 1]
            for i, p in enumerate(points)
        ]

    real, fake = (list(zip(points, radii(points), strict=True)) for points in (reference, x))
    precision = np.mean([any(math.dist(p, c) <= r for c, r in real) for p in x])
    recall = np.mean([any(math.dist(p, c) <= r for c, r in fake) for p in reference])
    density = sum(math.dist(p, c) <= r for p in x for c, r in real) / (k * len(x))
    coverage = np.mean([any(math.dist(p, c) <= r for p in x) for c, r in real])
    return precision, recall, density, coverage


SETS = {
    "alike": (randn(40, 3), randn(50, 3, seed=1)),
    "apart": (randn(50, 3) + 1, randn(40, 3, seed=1)),
    "narrow": (0.3 * randn(40, 2), randn(40, 2, seed=1)),
    "wide": (3 * randn(40, 2).float(), randn(30, 2, seed=1).float()),
    "lattice": ((randn(40, 2)).round(), (randn(40, 2, seed=1)).round()),  # ties and duplicates
}


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("name", SETS)
def test_the_definition(name, k, monkeypatch):
    x, reference = SETS[name]
    expected = by_definition(x, reference, k)
    assert all_four(x, reference, k) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(room, "_ENTRIES", 200)  # chunks of 4 to 6 rows
    assert all_four(x, reference, k) == pytest.approx(expected, abs=1e-12)


def test_no_chunk_is_larger_than_it_may_be(monkeypatch):
    sizes = []
    cdist = torch.cdist

    def spy(*args, **kwargs):
        sizes.append(cdist(*args, **kwargs).numel())
        return cdist(*args, **kwargs)

    monkeypatch.setattr(room, "_ENTRIES", 500)
    monkeypatch.setattr(torch, "cdist", spy)
    all_four(randn(100, 2), randn(90, 2, seed=1), 3)
    assert max(sizes) <= 500


@pytest.mark.parametrize("k", [3, 5])
def test_agrees_with_the_authors_package(k, capsys):
    prdc = pytest.importorskip("prdc", exc_type=ImportError)
    x, reference = randn(200, 8) + 0.3, randn(150, 8, seed=1)
    theirs = prdc.compute_prdc(reference.numpy(), x.numpy(), k)
    expected = [theirs[name] for name in ("precision", "recall", "density", "coverage")]
    assert all_four(x, reference, k) == pytest.approx(expected, abs=1e-12)


def test_agrees_with_torch_fidelity():
    prc = pytest.importorskip("torch_fidelity.metric_prc", exc_type=ImportError)
    x, reference = randn(200, 8) + 0.3, randn(150, 8, seed=1)
    expected = prc.calculate_precision_recall_full(x, reference, 3)
    # Theirs averages in float32.
    assert all_four(x, reference, 3)[:2] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "m", "k", "width"), [(60, 60, 5, 2), (40, 100, 3, 5), (90, 50, 1, 1)]
)
def test_two_samples_of_one_law_have_known_expectations(n, m, k, width):
    seeded, sets = generator(3), 200
    found = []
    for _ in range(sets):
        # Skewed: the expectations hold whatever the law.
        x, reference = (torch.randn(s, width, generator=seeded).exp() for s in (n, m))
        found.append(density_coverage(x, reference, k=k, groups=2, generator=seeded))
    density, coverage = torch.tensor([f[:2] for f in found], dtype=torch.float64).T
    # Choose n + m points, name m of them real: all that matters is the order about one real point.
    expected = 1 - math.comb(m - 1, k) / math.comb(m + n - 1, k)
    assert found[0].expected_coverage == pytest.approx(expected, rel=1e-12)
    assert abs(density.mean() - 1) < 4 * density.std() / sets**0.5
    assert abs(coverage.mean() - expected) < 4 * coverage.std() / sets**0.5


def test_modes_lost_and_invented_are_told_apart():
    left, right = randn(100, 2), randn(100, 2, seed=1) + 20
    both = torch.cat([left, right])
    new = randn(200, 2, seed=2)
    lost = all_four(new, both, 5)
    assert lost[0] > 0.9 and lost[1] == pytest.approx(0.5, abs=0.06)
    assert lost[2] == pytest.approx(1, abs=0.2) and lost[3] == pytest.approx(0.5, abs=0.06)
    invented = all_four(torch.cat([new[:100], new[100:] + 20]), left, 5)
    assert invented[0] == pytest.approx(0.5, abs=0.06) and invented[1] > 0.9


def test_one_outlier_moves_precision_but_hardly_density():
    x, reference = randn(200, 2) + 6, randn(200, 2, seed=1)
    spoilt = torch.cat([reference[:-1], torch.tensor([[6.0, 6.0]])])
    before, after = all_four(x, reference, 3), all_four(x, spoilt, 3)
    assert before[0] < 0.05 and after[0] > 0.9
    assert after[2] < 0.4


def test_errors_are_near_the_spread_of_independent_sets():
    seeded, sets = generator(4), 100
    scores, errors = [], []
    for _ in range(sets):
        x, reference = torch.randn(150, 2, generator=seeded), torch.randn(150, 2, generator=seeded)
        a = precision_recall(x + 0.5, reference, groups=5, generator=seeded)
        b = density_coverage(x + 0.5, reference, groups=5, generator=seeded)
        scores.append((*a[:2], *b[:2]))
        errors.append((*a[2:], *b[2:4]))
    spread = torch.tensor(scores, dtype=torch.float64).std(dim=0)
    said = torch.tensor(errors, dtype=torch.float64).square().mean(dim=0).sqrt()
    assert ((said / spread > 0.6) & (said / spread < 1.6)).all()


def test_the_groups_are_disjoint_random_parts_of_both_sets():
    x, reference = torch.arange(11.0)[:, None], torch.arange(100.0, 107.0)[:, None]
    firsts = []
    for seed in range(5):
        pairs = list(room._pairs(x, reference, 3, generator(seed)))
        for side, points in enumerate((x, reference)):
            parts = [pair[side].flatten().tolist() for pair in pairs]
            assert sorted(row for part in parts for row in part) == points.flatten().tolist()
            assert max(map(len, parts)) - min(map(len, parts)) == 1
        firsts.append(tuple(pairs[0][0].flatten().tolist()))
    assert len(set(firsts)) > 3


def test_where_the_origin_lies_does_not_matter():
    # Multiples of 2^-10, so that the shift is exact; distances by matrix products are not.
    x, reference = ((randn(80, 2, seed=s) * 1024).round() / 1024 for s in (0, 1))
    x[:20] = reference[:20]  # copies: at distance 0
    far = all_four(x + 2.0**20, reference + 2.0**20, 1)
    assert far == all_four(x, reference, 1)


def test_follows_its_generator_only():
    x, reference = randn(60, 2), randn(60, 2, seed=1)
    state = torch.get_rng_state()
    for score in (precision_recall, density_coverage):
        first, again, other = (score(x, reference, generator=generator(seed)) for seed in (0, 0, 1))
        assert first == again and first[:2] == other[:2] and first[2:4] != other[2:4]
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_shown_on_request_only(capsys):
    x = randn(60, 2)
    density_coverage(x, x, generator=generator())
    assert capsys.readouterr().err == ""
    density_coverage(x, x, generator=generator(), progress=True)
    assert "1/1" in capsys.readouterr().err


@pytest.mark.parametrize("score", [precision_recall, density_coverage])
@pytest.mark.parametrize(
    ("x", "reference", "settings", "message"),
    [
        (randn(9, 2), randn(60, 2), {"k": 4, "groups": 2}, "x: .*at least 10.*got 9"),
        (randn(60, 2), randn(9, 2), {"k": 4, "groups": 2}, "reference: .*at least 10.*got 9"),
        (randn(60, 2), randn(60, 3), {}, r"\(60, 2\) and \(60, 3\)"),
        (randn(60), randn(60, 3), {}, r"x: .*\(60,\)"),
        (randn(60, 2), randn(60, 2), {"k": 0}, "k: .*got 0"),
        (randn(60, 2), randn(60, 2), {"groups": 1}, "groups: .*got 1"),
        (randn(60, 2), randn(60, 2) / 0, {}, r"reference: .*inf at index \(0, 0\)|-inf"),
    ],
)
def test_refusals_say_what_came(score, x, reference, settings, message):
    with pytest.raises(ValueError, match=message):
        score(x, reference, generator=generator(), **settings)
