"""Intrinsic dimension of a sample by the distances to nearest neighbours."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_choice, check_count, check_sizes
from pyro_gebm.metrics.neighbours import nearest_neighbours

VARIANTS = ("inverse", "unbiased", "original")
DUPLICATES = ("refuse", "drop")


class IntrinsicDimension(NamedTuple):
    """What ``intrinsic_dimension`` finds.

    Attributes:
        dimension: the estimate d̂.
        standard_error: of the estimate, over the centres; bias is not in it.
        k: number of neighbours.
        variant: which estimator.
        num_points: points that neighbours were sought among, N.
        num_centres: points whose neighbours were sought.
    """

    dimension: float
    standard_error: float
    k: int
    variant: str
    num_points: int
    num_centres: int


class DimensionCurve(NamedTuple):
    """Estimates over S numbers of points and K numbers of neighbours.

    Attributes:
        dimension: d̂ (S, K), float64 on the CPU.
        standard_error: (S, K), likewise.
        ks: the K numbers of neighbours.
        sizes: the S numbers of points, duplicates dropped where that was asked.
        variant: which estimator.
        num_centres: for each size, the points whose neighbours were sought.
    """

    dimension: Tensor
    standard_error: Tensor
    ks: tuple[int, ...]
    sizes: tuple[int, ...]
    variant: str
    num_centres: tuple[int, ...]


def intrinsic_dimension(
    x: Tensor,
    k: int = 20,
    *,
    variant: str = "inverse",
    duplicates: str = "refuse",
    num_centres: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> IntrinsicDimension:
    """Intrinsic dimension of the set that points lie on, by maximum likelihood.

    Levina and Bickel (2004): with T_j the distance to the j-th neighbour, the k - 1 values
    log(T_k / T_j) of a point are exponential with rate d where the density is constant across its
    neighbourhood. With S = Σ_{j<k} log(T_k / T_j) the estimate is

    * "inverse": (k - 1) / mean S, the likelihood of all points together (MacKay and Ghahramani,
      2005); nearly unbiased, and the steadiest for small k;
    * "unbiased": the mean over points of (k - 2) / S, each unbiased by itself;
    * "original": the mean of (k - 1) / S, which is too large by (k - 1) / (k - 2).

    All of them fall short in high dimension, where neighbours are far and see the edge of the data
    (a cube of dimension 20 reads about 15 at 4,000 points), and read too much at distances below
    that of noise. So look at ``intrinsic_dimension_curve`` too. Where the dimension differs from
    place to place, "inverse" is the harmonic mean of the local ones, the others the arithmetic.

    The standard error is the spread over centres divided by √(their number), as if they were
    independent. They share neighbours, so it is a guide: on spheres of dimension 2 to 15 the true
    error is 0.8 to 1.4 times that.

    Args:
        x: points (N, ...), flattened to vectors.
        k: number of neighbours; more of them give less noise and more bias.
        variant: "inverse", "unbiased" or "original".
        duplicates: "refuse" those that fall on another point, or "drop" all but the first of each
            before the search.
        num_centres: seek the neighbours of as many random points only, among all; None for all.
        generator: source of the random centres.
        progress: show a progress bar.

    Returns:
        ``IntrinsicDimension``.

    Raises:
        ValueError: if there are duplicates and they are refused (they are counted), if all k
            neighbours of a point are at one distance and the variant divides by zero, if k or
            ``num_centres`` is out of its range, an option is unknown, a number is not finite, or
            the generator that a random choice needs is missing.

    Example:
        >>> import torch
        >>> plane = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> found = intrinsic_dimension(plane @ torch.ones(2, 7).tril(), k=20)
        >>> round(found.dimension, 1), round(found.standard_error, 2)
        (2.0, 0.01)
    """
    curve = intrinsic_dimension_curve(
        x,
        [k],
        variant=variant,
        duplicates=duplicates,
        num_centres=num_centres,
        generator=generator,
        progress=progress,
    )
    return IntrinsicDimension(
        float(curve.dimension),
        float(curve.standard_error),
        k,
        variant,
        curve.sizes[0],
        curve.num_centres[0],
    )


def intrinsic_dimension_curve(
    x: Tensor,
    ks: Sequence[int],
    *,
    sizes: Sequence[int] | None = None,
    variant: str = "inverse",
    duplicates: str = "refuse",
    num_centres: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> DimensionCurve:
    """``intrinsic_dimension`` over several numbers of neighbours and of points.

    Each size takes one search, for the largest k. The points of a size are the first ones of a
    random order, the same for all sizes, and its centres the first ones of those.

    Args:
        x: points (N, ...), flattened to vectors.
        ks: numbers of neighbours.
        sizes: numbers of points, at most N each; None for all of them.
        variant: as in ``intrinsic_dimension``.
        duplicates: likewise; dropped within each size.
        num_centres: likewise, for each size; all points of a smaller one.
        generator: source of the random order; needed with ``sizes`` or ``num_centres``.
        progress: show a progress bar for each size.

    Returns:
        ``DimensionCurve``.

    Raises:
        ValueError: as in ``intrinsic_dimension``, or if a size is out of its range.

    Example:
        >>> import torch
        >>> line = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> generator = torch.Generator().manual_seed(1)
        >>> curve = intrinsic_dimension_curve(line, [5, 20], sizes=[200, 1000], generator=generator)
        >>> curve.dimension.shape, bool(((curve.dimension - 1).abs() < 0.1).all())
        (torch.Size([2, 2]), True)
    """
    check_choice("variant", variant, VARIANTS)
    check_choice("duplicates", duplicates, DUPLICATES)
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"x: expected points (N, ...), N >= 3; got shape {tuple(x.shape)}")
    x = x.detach().reshape(len(x), -1)
    wanted = _check_ks(ks, variant)
    asked = _check_subsets(sizes, num_centres, len(x))
    if sizes is not None or num_centres is not None:
        x = x[_order(len(x), generator).to(x.device)]
    figures, counts, centres = [], [], []
    for size in asked:
        rows = _distinct(x[:size]) if duplicates == "drop" else x[:size]
        count = len(rows) if num_centres is None else min(num_centres, len(rows))
        distances = _to_neighbours(rows, count, max(wanted), progress)
        figures.append([_estimate(distances[:, :k].log(), variant) for k in wanted])
        counts.append(len(rows))
        centres.append(count)
    table = torch.tensor(figures, dtype=torch.float64)
    return DimensionCurve(
        table[..., 0], table[..., 1], tuple(wanted), tuple(counts), variant, tuple(centres)
    )


def _to_neighbours(x: Tensor, centres: int, k: int, progress: bool) -> Tensor:
    """Distances (centres, k) of the first points to their nearest others, all above zero."""
    if k >= len(x):
        raise ValueError(
            f"ks: expected at most {len(x) - 1} neighbours, one less than the (distinct) points; "
            f"got {k}"
        )
    if centres == len(x):
        distances = nearest_neighbours(x, x, k, exclude_self=True, progress=progress).distances
    else:
        # Each centre is among the rows, at distance zero: the first, with any duplicates.
        found = nearest_neighbours(x[:centres], x, k + 1, progress=progress)
        distances = found.distances[:, 1:]
    on_another = int((distances[:, 0] == 0).sum())
    if on_another > 0:
        raise ValueError(
            f"x: expected distinct points; got {on_another} of {centres} that fall on another one; "
            f"pass duplicates='drop' to keep one of each, or add the noise of the measurement"
        )
    return distances


def _estimate(logs: Tensor, variant: str) -> tuple[float, float]:
    """Estimate and standard error from log T_j, j = 1..k, of each centre (C, k)."""
    k = logs.shape[1]
    sums = (logs[:, -1:] - logs[:, :-1]).sum(1)
    if variant == "inverse":
        mean = _refuse_zeros(sums.mean().expand(1), k)
        relative = sums.std() / mean / math.sqrt(len(sums))
        return (k - 1) / float(mean), (k - 1) / float(mean) * float(relative)
    local = (k - 2 if variant == "unbiased" else k - 1) / _refuse_zeros(sums, k)
    return float(local.mean()), float(local.std()) / math.sqrt(len(local))


def _refuse_zeros(sums: Tensor, k: int) -> Tensor:
    if bool((sums == 0).any()):
        raise ValueError(
            f"x: expected neighbours at different distances; got points whose {k} nearest are all "
            f"equally far ({int((sums == 0).sum())} in all), as on a grid; take more neighbours, "
            f"or variant='inverse'"
        )
    return sums


def _distinct(x: Tensor) -> Tensor:
    """The first of each set of equal rows, in the order of x."""
    _, group = torch.unique(x, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(x), device=x.device)
    rows = torch.arange(len(x), device=x.device)
    return x[first.scatter_reduce(0, group, rows, "amin").sort().values]


def _order(count: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ValueError(
            "generator: expected a torch.Generator, since points are chosen at random; got None"
        )
    return torch.randperm(count, generator=generator, device=generator.device)


def _check_ks(ks: Sequence[int], variant: str) -> list[int]:
    least = 3 if variant == "unbiased" else 2
    if len(ks) == 0:
        raise ValueError("ks: expected at least one number of neighbours; got none")
    return [check_count("k", k, least) for k in ks]


def _check_subsets(sizes: Sequence[int] | None, num_centres: int | None, count: int) -> list[int]:
    if num_centres is not None:
        check_count("num_centres", num_centres, 2)
    listed = [count] if sizes is None else check_sizes("sizes", sizes, 1)
    for name, largest in (("sizes", max(listed)), ("num_centres", num_centres or 0)):
        if largest > count:
            raise ValueError(
                f"{name}: expected at most the number of points, {count}; got {largest}"
            )
    return listed
