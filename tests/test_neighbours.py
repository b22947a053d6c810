"""Nearest neighbours against brute force, with ties, duplicates and far origins."""

import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from pyro_gebm.metrics.neighbours import _Search, _smallest, nearest_neighbours


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lattice(count, dims, high, seed=0):
    """Small whole numbers: all distances exact, and many of them tied."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, (count, dims), generator=generator).double()


def by_sorting(points, reference, k, exclude_self=False):
    """All distances of whole numbers, sorted by distance and then by row."""
    squared = (points[:, None] - reference[None]).square().sum(2)
    if exclude_self:
        squared.fill_diagonal_(torch.inf)
    order = squared.sort(dim=1, stable=True)
    return order.values[:, :k].sqrt(), order.indices[:, :k]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("dims", "k"), [(1, 3), (5, 1), (32, 20), (200, 7)])
def test_agrees_with_scikit_learn(dims, k, dtype):
    points, reference = randn(150, dims, dtype=dtype), randn(700, dims, seed=1, dtype=dtype)
    oracle = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference.double().numpy())
    distances, indices = oracle.kneighbors(points.double().numpy())
    got = nearest_neighbours(points, reference, k, point_chunk=64, reference_chunk=100)
    assert got.distances.dtype == torch.float64 and got.indices.dtype == torch.int64
    # The oracle subtracts squares: its distances are good to the root of rounding.
    np.testing.assert_allclose(got.distances, distances, rtol=1e-9, atol=1e-7)
    direct = (points.double()[:, None] - reference.double()[got.indices]).norm(dim=2)
    np.testing.assert_allclose(got.distances, direct, rtol=1e-14)
    np.testing.assert_array_equal(got.indices, indices)


def test_without_itself_agrees_with_scikit_learn():
    x = randn(300, 4)
    distances, indices = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(x).kneighbors()
    got = nearest_neighbours(x, x, 5, exclude_self=True, point_chunk=70, reference_chunk=64)
    np.testing.assert_allclose(got.distances, distances, rtol=1e-9, atol=1e-7)
    np.testing.assert_array_equal(got.indices, indices)


@pytest.mark.parametrize("chunks", [(60, 1), (1, 60), (7, 15), (400, 1000)])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_ties_and_duplicates_go_to_the_lower_row_whatever_the_chunks(chunks, exclude_self):
    x = lattice(120, 3, high=3)  # 27 places: each row has about four duplicates, and many ties
    point_chunk, reference_chunk = chunks
    got = nearest_neighbours(
        x,
        x,
        6,
        exclude_self=exclude_self,
        point_chunk=point_chunk,
        reference_chunk=reference_chunk,
    )
    distances, indices = by_sorting(x, x, 6, exclude_self)
    assert torch.equal(got.distances, distances)
    assert torch.equal(got.indices, indices)


def test_far_from_the_origin_no_digit_is_lost():
    # Neighbours 2^-20 apart, 2^30 from the origin, one row far off so that the mean is too: the
    # product sees squares of 2^-40 behind those of 2^60, and cannot tell them apart.
    steps = lattice(200, 2, high=1000) * 2.0**-20 + 2.0**30
    x = torch.cat([steps, -steps[:1]])
    got = nearest_neighbours(x, x, 4, exclude_self=True)
    distances, indices = by_sorting(x, x, 4, exclude_self=True)
    assert torch.equal(got.distances, distances)
    assert torch.equal(got.indices, indices)


def test_what_the_product_settles_is_not_searched_again(monkeypatch):
    # Otherwise the tests above might show the slow way only.
    searched = []
    slow = _Search._by_differences

    def counting(self, x, own):
        searched.append(len(x))
        return slow(self, x, own)

    monkeypatch.setattr(_Search, "_by_differences", counting)
    nearest_neighbours(randn(100, 10), randn(3000, 10, seed=1) + 1e3, 5)
    assert searched == []
    nearest_neighbours(torch.zeros(3, 2), torch.ones(50, 2), 5)
    assert sum(searched) == 3


def test_all_rows_may_be_asked_for():
    x = lattice(12, 2, high=3)
    assert torch.equal(nearest_neighbours(x, x, 12).indices, by_sorting(x, x, 12)[1])
    got = nearest_neighbours(x, x, 11, exclude_self=True, reference_chunk=5)
    assert torch.equal(got.indices, by_sorting(x, x, 11, exclude_self=True)[1])


def test_whole_numbers_and_gradients_are_taken_as_values():
    x = randn(5, 2).requires_grad_()
    assert not nearest_neighbours(x, x, 2).distances.requires_grad
    pixels = torch.tensor([[0], [255]], dtype=torch.uint8)
    assert nearest_neighbours(pixels, pixels, 2).distances.tolist() == [[0, 255], [0, 255]]


def test_smallest_prefers_the_left_of_equals():
    values = torch.tensor([[2.0, 1.0, 1.0, 0.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    assert _smallest(values, 3).tolist() == [[1, 2, 3], [0, 1, 2]]


def test_progress_bar_only_when_asked(capsys):
    x = randn(10, 2)
    nearest_neighbours(x, x, 2)
    assert capsys.readouterr().err == ""
    nearest_neighbours(x, x, 2, progress=True)
    assert "10/10" in capsys.readouterr().err


def most_allocated(path, points, reference):
    """Bytes of tensors held at once; the peak of the process would have the allocator's, too."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        nearest_neighbours(points, reference, 10, point_chunk=500, reference_chunk=8500)
    profile.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "[memory]"]
    first, *held = [e["args"] for e in sorted(events, key=lambda event: event["ts"])]
    return max(e["Total Allocated"] for e in held) - first["Total Allocated"] + first["Bytes"]


@pytest.mark.parametrize("fill", [torch.randn, torch.ones], ids=["distinct", "tied"])
def test_memory_is_that_of_the_chunks(fill, tmp_path):
    # In one piece the product alone would take 204 MB.
    held = most_allocated(tmp_path / "trace.json", fill(1000, 32), fill(25_500, 32))
    assert 8 * 500 * 8500 < held <= 8 * (500 * 8500 + (3 * 500 + 3 * 8500) * 32 + 6 * 500 * 18)


# --- refusals ------------------------------------------

TWO = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_neighbours(torch.zeros(3), TWO, 1), r"points: .*\(3,\)"),
        (lambda: nearest_neighbours(TWO, torch.zeros(3, 1, 8, 8), 1), r"reference: .*\(3, 1, 8"),
        (lambda: nearest_neighbours(TWO, torch.zeros(0, 2), 1), r"reference: .*flatten"),
        (lambda: nearest_neighbours(TWO, torch.zeros(4, 3), 1), r"\(4, 2\) and \(4, 3\)"),
        (lambda: nearest_neighbours(TWO, TWO * torch.nan, 1), r"reference: .*nan at index"),
        (lambda: nearest_neighbours(TWO.cfloat(), TWO, 1), "points: .*real numbers.*complex64"),
        (lambda: nearest_neighbours(TWO, TWO, 5), "k: expected at most 4.*got 5"),
        (lambda: nearest_neighbours(TWO, TWO, 4, exclude_self=True), "k: .*at most 3"),
        (lambda: nearest_neighbours(TWO, TWO, 0), "k: .*>= 1; got 0"),
        (lambda: nearest_neighbours(TWO, TWO + 1, 1, exclude_self=True), "exclude_self: .*differ"),
        (lambda: nearest_neighbours(TWO, TWO, 1, point_chunk=0), "point_chunk: .*got 0"),
        (lambda: nearest_neighbours(TWO, TWO, 1, reference_chunk=0), "reference_chunk: .*got 0"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
