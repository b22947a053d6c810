"""Fidelity and diversity by nearest-neighbour balls: precision, recall, density and coverage."""

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_count, check_dims, check_finite
from pyro_gebm.metrics.scores import distances

_ENTRIES = 2**23  # of a distance matrix held at once: 64 MiB


class PrecisionRecall(NamedTuple):
    """Improved precision and recall.

    Attributes:
        precision: share of the samples that lie on the manifold of the reference, in [0, 1].
        recall: share of the reference that lies on the manifold of the samples, in [0, 1].
        precision_error: standard error of the precision, by disjoint groups.
        recall_error: that of the recall.
    """

    precision: float
    recall: float
    precision_error: float
    recall_error: float


class DensityCoverage(NamedTuple):
    """Density and coverage.

    Attributes:
        density: mean number of reference balls that hold a sample, over k; >= 0, 1 on average
            for two samples of one law.
        coverage: share of the reference balls that hold a sample, in [0, 1].
        density_error: standard error of the density, by disjoint groups.
        coverage_error: that of the coverage.
        expected_coverage: mean coverage of two samples of one law of these sizes; below 1.
    """

    density: float
    coverage: float
    density_error: float
    coverage_error: float
    expected_coverage: float


def precision_recall(
    x: Tensor,
    reference: Tensor,
    *,
    k: int = 3,
    groups: int = 10,
    generator: torch.Generator,
    progress: bool = False,
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi, Karras, Laine, Lehtinen and Aila, 2019).

    The manifold of a set of features is the union of closed balls about each, out to its k-th
    nearest neighbour in the set. Both figures depend on the sizes: compare only those of equal N
    and M. An outlier has a large ball, and one is enough to admit a bad sample;
    ``density_coverage`` minds it less.

    A bootstrap would put duplicates at distance zero, so both sets are split at random into
    ``groups`` disjoint parts, which are scored pair by pair; the errors are the standard
    deviations over the pairs over √groups. They take the spread to fall as 1/√N: true sampling
    spreads of Gaussians were 0.8 to 1.7 times as large, the most where a few outliers decide.

    Args:
        x: features of the samples (N, K), N >= (k + 1) groups.
        reference: features of the real data (M, K), M >= (k + 1) groups.
        k: which neighbour sets the radius; 3 in the paper.
        groups: parts for the errors, >= 2.
        generator: source of the split.
        progress: show a progress bar.

    Returns:
        ``PrecisionRecall``.

    Raises:
        ValueError: if the features are not finite (N, K) and (M, K), or too few.

    Example:
        >>> import torch
        >>> real, fake = torch.arange(20.0)[:, None], torch.arange(10.0, 30.0)[:, None]
        >>> seeded = torch.Generator().manual_seed(0)
        >>> precision_recall(fake, real, k=1, groups=5, generator=seeded)[:2]
        (0.55, 0.55)
    """
    x, reference = _checked(x, reference, k, groups)
    whole = _precision_recall(x, reference, k, progress)
    parts = [_precision_recall(*pair, k) for pair in _pairs(x, reference, groups, generator)]
    return PrecisionRecall(*whole, *_errors(parts))


def density_coverage(
    x: Tensor,
    reference: Tensor,
    *,
    k: int = 5,
    groups: int = 10,
    generator: torch.Generator,
    progress: bool = False,
) -> DensityCoverage:
    """Density and coverage (Naeem, Oh, Uh, Choi and Yoo, 2020).

    With closed balls about each reference point out to its k-th nearest neighbour in the
    reference, density is Σ over samples of the number of balls that hold it, over k N; coverage
    is the share of balls that hold a sample. For two samples of one continuous law the mean
    density is 1, and the mean coverage 1 - Π_{i=1..k} (M - i)/(M + N - i), whatever the law.

    Errors by disjoint groups, as in ``precision_recall``.

    Args:
        x: features of the samples (N, K), N >= (k + 1) groups.
        reference: features of the real data (M, K), M >= (k + 1) groups.
        k: which neighbour sets the radius; 5 in the paper.
        groups: parts for the errors, >= 2.
        generator: source of the split.
        progress: show a progress bar.

    Returns:
        ``DensityCoverage``.

    Raises:
        ValueError: if the features are not finite (N, K) and (M, K), or too few.

    Example:
        >>> import torch
        >>> real, fake = torch.arange(20.0)[:, None], torch.arange(10.0, 30.0)[:, None]
        >>> seeded = torch.Generator().manual_seed(0)
        >>> density_coverage(fake, real, k=1, groups=5, generator=seeded)[:2]
        (1.5, 0.55)
    """
    x, reference = _checked(x, reference, k, groups)
    whole = _density_coverage(x, reference, k, progress)
    parts = [_density_coverage(*pair, k) for pair in _pairs(x, reference, groups, generator)]
    return DensityCoverage(*whole, *_errors(parts), _expected_coverage(len(x), len(reference), k))


def _precision_recall(
    x: Tensor, reference: Tensor, k: int, progress: bool = False
) -> tuple[float, float]:
    real_radii, radii = (_radii(points, k, progress) for points in (reference, x))
    admitted, recalled = 0, torch.zeros(len(reference), dtype=torch.bool, device=x.device)
    for start, apart in _chunks(x, reference, progress):
        own = radii[start : start + len(apart), None]
        admitted += int((apart <= real_radii).any(dim=1).sum())
        recalled |= (apart <= own).any(dim=0)
    return admitted / len(x), recalled.double().mean().item()


def _density_coverage(
    x: Tensor, reference: Tensor, k: int, progress: bool = False
) -> tuple[float, float]:
    radii = _radii(reference, k, progress)
    held, covered = 0, torch.zeros(len(reference), dtype=torch.bool, device=x.device)
    for _, apart in _chunks(x, reference, progress):
        inside = apart <= radii
        held += int(inside.sum())
        covered |= inside.any(dim=0)
    return held / (k * len(x)), covered.double().mean().item()


def _pairs(
    x: Tensor, reference: Tensor, groups: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Disjoint parts of both sets, at random; their sizes differ by one at most."""
    shuffled = []
    for points in (x, reference):
        order = torch.randperm(len(points), generator=generator, device=generator.device)
        shuffled.append(points[order.to(points.device)])
    for group in range(groups):
        yield shuffled[0][group::groups], shuffled[1][group::groups]


def _errors(parts: list[tuple[float, float]]) -> tuple[float, float]:
    first, second = (
        statistics.stdev(values) / math.sqrt(len(parts)) for values in zip(*parts, strict=True)
    )
    return first, second


def _expected_coverage(n: int, m: int, k: int) -> float:
    """Chance that n points of one law leave no gap of k in a row: at least one is in a ball."""
    return 1 - math.prod((m - i) / (m + n - i) for i in range(1, k + 1))


def _radii(points: Tensor, k: int, progress: bool) -> Tensor:
    """Distance of each point to its k-th nearest other one, (N,)."""
    # The nearest is the point itself, at distance 0; a duplicate in its place has the same 0.
    return torch.cat(
        [rows.kthvalue(k + 1, dim=1).values for _, rows in _chunks(points, points, progress)]
    )


def _chunks(points: Tensor, to: Tensor, progress: bool) -> Iterator[tuple[int, Tensor]]:
    """First row and distances (B, M) of each chunk of rows of ``points``."""
    rows = max(1, _ENTRIES // len(to))
    for start in tqdm(range(0, len(points), rows), desc="distances", disable=not progress):
        yield start, distances(points[start : start + rows], to)


def _checked(x: Tensor, reference: Tensor, k: int, groups: int) -> tuple[Tensor, Tensor]:
    """Both in float64 on the device of ``x``, or a ``ValueError``."""
    least = check_count("groups", groups, 2) * (check_count("k", k) + 1)
    for name, sample in (("x", x), ("reference", reference)):
        check_finite(name, check_dims(name, sample, 2, "(N, K)"))
        if len(sample) < least:
            raise ValueError(
                f"{name}: expected at least {least} features, {k + 1} in each of {groups} groups; "
                f"got {len(sample)}; lower k or groups"
            )
    if x.shape[1] != reference.shape[1] or x.shape[1] == 0:
        raise ValueError(
            f"x, reference: expected the same K >= 1 features of both; got {tuple(x.shape)} and "
            f"{tuple(reference.shape)}"
        )
    return x.detach().double(), reference.detach().to(x.device).double()
