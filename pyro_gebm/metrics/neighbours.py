"""Exact nearest neighbours of many points among many, in bounded memory."""

from collections.abc import Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_count, check_dims, check_finite
from pyro_gebm.metrics.scores import distances

POINT_CHUNK, REFERENCE_CHUNK = 1024, 16_384
_SPARE = 8  # candidates beyond k; ties and rounding at the k-th place are settled among them


class Neighbours(NamedTuple):
    """The k nearest reference rows of N points, nearest first.

    Attributes:
        distances: Euclidean distances (N, k), float64, in units of the data.
        indices: rows of the reference (N, k), int64; of equal distances the lower row comes first.
    """

    distances: Tensor
    indices: Tensor


def nearest_neighbours(
    points: Tensor,
    reference: Tensor,
    k: int,
    *,
    exclude_self: bool = False,
    point_chunk: int = POINT_CHUNK,
    reference_chunk: int = REFERENCE_CHUNK,
    progress: bool = False,
) -> Neighbours:
    """The k nearest rows of ``reference`` for each point, by Euclidean distance.

    Candidates are chosen by |y|² - 2 x·y, a matrix product in float64 about the mean of the
    reference; their distances are then computed anew from differences, so that no digits
    cancel. The choice is proved for each point: with X = |x - mean|, T the k-th distance and u the
    rounding unit, the product errs by at most 2 (d + 8) u (2 X + T)² for any row that could matter.
    Where the best row left out is not farther than T by more than that (ties, duplicates, data
    far from their mean), the point is searched again by differences alone. So the neighbours
    are exact up to the rounding of a float64 distance, relative d u, whatever the input's dtype.

    Beyond its arguments and result the search holds about
    8 (P R + (3 P + 3 R) d + 6 P (k + 8)) bytes, P and R the two chunk sizes: 150 MB as set for
    d = 32 and k = 10. Cost is that of the product, 2 N M d operations in float64; points
    searched again cost about ten times as much each.

    Args:
        points: (N, d), real numbers; the work is done on their device.
        reference: (M, d); moved there chunk by chunk, so it may stay on the CPU.
        k: number of neighbours, at most M (M - 1 with ``exclude_self``).
        exclude_self: points and reference are the same rows, and row i is no neighbour of point i.
            Its duplicates are, at distance zero.
        point_chunk: P, points at a time.
        reference_chunk: R, reference rows at a time.
        progress: show a progress bar.

    Returns:
        ``Neighbours``, on the points' device.

    Raises:
        ValueError: if the shapes do not fit, a number is not finite or not real, k is not within
            its range, or ``exclude_self`` is asked for two different sets.

    Example:
        >>> import torch
        >>> line = torch.tensor([[0.0], [1.0], [3.0]])
        >>> nearest_neighbours(line, line, 1, exclude_self=True)
        Neighbours(distances=tensor([[1.],
            [1.],
            [2.]], dtype=torch.float64), indices=tensor([[1],
            [0],
            [1]]))
    """
    check_count("point_chunk", point_chunk)
    check_count("reference_chunk", reference_chunk)
    _check_sets(points, reference, exclude_self)
    _check_k(k, len(reference) - exclude_self)
    points, reference = points.detach(), reference.detach()
    search = _Search(reference, points.device, k, exclude_self, reference_chunk)
    found = []
    with tqdm(total=len(points), desc="neighbours", disable=not progress) as bar:
        for start in range(0, len(points), point_chunk):
            rows = points[start : start + point_chunk].double()
            found.append(search.among(rows, start))
            bar.update(len(rows))
    return Neighbours(torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]))


@final
class _Search:
    """The reference (M, d), and how it is searched."""

    def __init__(
        self, reference: Tensor, device: torch.device, k: int, exclude_self: bool, chunk: int
    ) -> None:
        self.reference, self.device, self.k = reference, device, k
        self.exclude_self, self.chunk = exclude_self, chunk
        self.available = len(reference) - exclude_self
        self.centre = torch.zeros(reference.shape[1], dtype=torch.float64, device=device)
        for _, rows in self.chunks():
            self.centre += rows.sum(0) / len(reference)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """First row and rows (R, d) of each chunk, float64 on the points' device."""
        for start in range(0, len(self.reference), self.chunk):
            rows = self.reference[start : start + self.chunk]
            yield start, rows.to(self.device).double()

    def among(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Distances and rows of the k nearest of points x (P, d), number ``first`` on."""
        scores, rows, size = self._candidates(x, first)
        apart, rows = self._ordered(x, rows)
        apart, rows = apart[:, : self.k], rows[:, : self.k]
        if scores.shape[1] < self.available:
            farthest = apart[:, -1]
            error = (x.shape[1] + 8) * torch.finfo(x.dtype).eps * (2 * size + farthest).square()
            unsure = (~(scores.amax(1) - error > farthest.square())).nonzero().flatten()
            if len(unsure) > 0:
                # An eighth at a time: this way takes several matrices of the product's size.
                for again in torch.split(unsure, max(1, len(x) // 8)):
                    best = self._by_differences(x[again], again + first)
                    apart[again], rows[again] = self._ordered(x[again], best)
        return apart, rows

    def _candidates(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances by the matrix product, the rows they belong to, and |x - mean|."""
        width = min(self.k + _SPARE, self.available)
        own = torch.arange(first, first + len(x), device=self.device)
        x = x - self.centre
        scores, found = x.new_empty(len(x), 0), own.new_empty(len(x), 0)
        for start, uncentred in self.chunks():
            rows = uncentred - self.centre
            product = torch.addmm(rows.square().sum(1), x, rows.T, alpha=-2)
            self._forget_self(product, own, start)
            best = product.topk(min(width, len(rows)), dim=1, largest=False, sorted=False)
            del product  # before the next one is made
            scores = torch.cat([scores, best.values], 1)
            found = torch.cat([found, best.indices + start], 1)
            if scores.shape[1] > width:
                scores, kept = scores.topk(width, dim=1, largest=False, sorted=False)
                found = found.gather(1, kept)
        squared = x.square().sum(1)
        return scores + squared[:, None], found, squared.sqrt()

    def _by_differences(self, x: Tensor, own: Tensor) -> Tensor:
        """The k nearest rows of each point, without the product: slower, and exact."""
        nearest, found = x.new_empty(len(x), 0), own.new_empty(len(x), 0)
        for start, rows in self.chunks():
            direct = distances(x, rows)
            self._forget_self(direct, own, start)
            best = _smallest(direct, min(self.k, len(rows)))
            nearest = torch.cat([nearest, direct.gather(1, best)], 1)
            found = torch.cat([found, best + start], 1)
            del direct  # before the next one is made
            if nearest.shape[1] > self.k:
                kept = _smallest(nearest, self.k)
                nearest, found = nearest.gather(1, kept), found.gather(1, kept)
        return found

    def _forget_self(self, values: Tensor, own: Tensor, start: int) -> None:
        if not self.exclude_self:
            return
        here = ((own >= start) & (own < start + values.shape[1])).nonzero().flatten()
        values[here, own[here] - start] = torch.inf

    def _ordered(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Distances from differences of x (P, d) and its candidates (P, K), nearest first."""
        rows = rows.sort(dim=1).values  # then a stable sort leaves ties in the order of rows
        apart = torch.empty(rows.shape, dtype=torch.float64, device=self.device)
        for place, column in enumerate(rows.unbind(1)):  # one at a time: (P, d), not (P, K, d)
            y = self.reference[column.to(self.reference.device)].to(self.device).double()
            apart[:, place] = (x - y).square().sum(1).sqrt()
        apart, order = apart.sort(dim=1, stable=True)
        return apart, rows.gather(1, order)


def _smallest(values: Tensor, k: int) -> Tensor:
    """Columns (P, k) of the k smallest of each row, ties to the lower column, in their order."""
    # topk alone may take any of the tied ones.
    last = values.topk(k, dim=1, largest=False).values.amax(1, keepdim=True)
    below, tied = values < last, values == last
    room = k - below.sum(1, keepdim=True)
    chosen = below | (tied & (tied.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].reshape(len(values), k)


def _check_sets(points: Tensor, reference: Tensor, exclude_self: bool) -> None:
    for name, rows in (("points", points), ("reference", reference)):
        check_dims(name, rows, 2, "(N, d)")
        if rows.numel() == 0 or rows.is_complex():
            raise ValueError(
                f"{name}: expected real numbers (N, d), N and d >= 1; got {rows.dtype} of shape "
                f"{tuple(rows.shape)}; flatten images to (N, d) first"
            )
        # By chunks, since isfinite makes a copy; the whole is for a message with the right index.
        if not all(bool(part.isfinite().all()) for part in torch.split(rows, REFERENCE_CHUNK)):
            check_finite(name, rows)
    if points.shape[1] != reference.shape[1]:
        raise ValueError(
            f"points, reference: expected points of one dimension; got {tuple(points.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if exclude_self and points is not reference and not _same(points, reference):
        raise ValueError(
            f"exclude_self: expected points and reference to be the same rows; got "
            f"{tuple(points.shape)} and {tuple(reference.shape)} that differ; leave it out for two "
            f"different sets"
        )


def _same(points: Tensor, reference: Tensor) -> bool:
    return points.shape == reference.shape and bool((points == reference.to(points.device)).all())


def _check_k(k: int, available: int) -> None:
    check_count("k", k)
    if k > available:
        raise ValueError(f"k: expected at most {available}, the rows there are; got {k}")
