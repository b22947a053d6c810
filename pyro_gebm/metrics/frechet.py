"""Fréchet distance between Gaussians fitted to features, in float64 and without a matrix root."""

import statistics
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import trange

from pyro_gebm._checks import check_count
from pyro_gebm.metrics.moments import FeatureStatistics, feature_statistics


class FrechetEstimate(NamedTuple):
    """A squared Fréchet distance, and how far other samples of the same size would move it.

    Attributes:
        estimate: ``frechet_distance`` of the sample.
        standard_error: standard deviation of the distance over bootstrap samples.
        bias: by how much their mean exceeds ``estimate``: about what ``estimate`` itself exceeds
            the distance of infinitely many features by.
        repeats: number of bootstrap samples.
    """

    estimate: float
    standard_error: float
    bias: float
    repeats: int


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Fréchet (2-Wasserstein) distance between two Gaussians, as is usual for scores.

    |m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁^½ C₂ C₁^½)^½) (Dowson and Landau, 1982). With Cᵢ = Fᵢ Fᵢᵀ from
    ``eigh``, the trace of the root is the sum of the singular values of F₁ᵀ F₂: exact to rounding
    for rank-deficient covariances too, where the root of a product loses half the digits.

    Args:
        a: statistics of K features.
        b: statistics of the same K features.

    Returns:
        The squared distance, >= 0, in squared units of the features.

    Raises:
        ValueError: if the two have different numbers of features.

    Example:
        >>> import torch
        >>> one, eye = torch.ones(2).double(), torch.eye(2).double()
        >>> frechet_distance(FeatureStatistics(9, 0 * one, eye), FeatureStatistics(9, one, 4 * eye))
        4.0
    """
    reference = _comparable("frechet_distance", a, b)
    return _distance(a, reference, _factor(reference.covariance))


def frechet_with_error(
    features: Tensor,
    reference: FeatureStatistics,
    *,
    repeats: int = 100,
    generator: torch.Generator,
    progress: bool = False,
) -> FrechetEstimate:
    """Squared Fréchet distance of a sample to fixed statistics, with its bootstrap standard error.

    Each of the ``repeats`` draws N of the N features with replacement (Efron, 1979) and scores
    them. The statistics of the reference are taken as exact: the error is that of the sample.

    The plug-in distance is biased upwards, by about b/N. The bootstrap adds that bias once more:
    its mean is above ``estimate`` by about b/N, and that excess is ``bias``. It is measured, not
    subtracted, and the error is the spread about the bootstrap's own mean. For N much larger than
    K the error is calibrated where the distance is well above ``bias``; where the two are alike
    the error is too large, 1.7 to 1.9 times for Gaussians of one law: it does not understate.
    Resampling repeats features, and for N not much larger than K neither figure is to be
    trusted: score independent sets instead.

    Args:
        features: features of the sample (N, K), N >= 2.
        reference: statistics of the same K features of the real data.
        repeats: bootstrap samples; the error is itself uncertain by 1/√(2 repeats). Each costs
            two decompositions of K x K: 11 s for K = 2048 on one CPU core.
        generator: source of the resampling.
        progress: show a progress bar.

    Returns:
        ``FrechetEstimate``, in squared units of the features.

    Raises:
        ValueError: if the features are not finite (N, K) with N >= 2, K is not that of the
            reference, or ``repeats`` < 2.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 2, generator=generator) + 1
        >>> exact = FeatureStatistics(None, torch.zeros(2).double(), torch.eye(2).double())
        >>> found = frechet_with_error(x, exact, generator=generator)
        >>> abs(found.estimate - 2) < 4 * found.standard_error
        True
    """
    check_count("repeats", repeats, 2)
    sample = feature_statistics(features)
    reference = _comparable("frechet_with_error", sample, reference)
    values, factor = features.detach().double(), _factor(reference.covariance)
    scores = []
    for _ in trange(repeats, desc="bootstrap", disable=not progress):
        rows = torch.randint(
            len(values), (len(values),), generator=generator, device=generator.device
        )
        drawn = feature_statistics(values[rows.to(values.device)])
        scores.append(_distance(drawn, reference, factor))
    estimate = _distance(sample, reference, factor)
    bias = statistics.fmean(scores) - estimate
    return FrechetEstimate(estimate, statistics.stdev(scores), bias, repeats)


def _comparable(name: str, a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    """Return ``b`` on the device of ``a`` if it is of as many features."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"{name}: expected statistics of the same features; got {len(a.mean)} and "
            f"{len(b.mean)}; use one feature function for both samples"
        )
    return FeatureStatistics(b.count, b.mean.to(a.mean.device), b.covariance.to(a.mean.device))


def _distance(a: FeatureStatistics, b: FeatureStatistics, factor: Tensor) -> float:
    """``frechet_distance`` with ``factor``, that of the covariance of ``b``, at hand."""
    root_trace = torch.linalg.svdvals(_factor(a.covariance).T @ factor).sum()
    traces = a.covariance.trace() + b.covariance.trace()
    squared = (a.mean - b.mean).square().sum() + traces - 2 * root_trace
    return max(0.0, float(squared))


def _factor(covariance: Tensor) -> Tensor:
    """Return F with F Fᵀ = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    # Eigenvalues below rounding are zeros of a rank-deficient covariance: their square roots,
    # about 1e-8, would count as directions of their own.
    negligible: Tensor = len(values) * torch.finfo(values.dtype).eps * values[-1]
    factor: Tensor = vectors * torch.where(values > negligible, values, 0.0).sqrt()
    return factor
