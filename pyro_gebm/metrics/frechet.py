"""Fréchet distance between Gaussians fitted to features, in float64 and without a matrix root."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_dims, check_finite


class FeatureStatistics(NamedTuple):
    """What the Fréchet distance needs of a sample of features.

    Attributes:
        count: number of features N.
        mean: mean (K,), float64.
        covariance: unbiased covariance (K, K), float64.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Tensor
    covariance: Tensor


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Count, mean and unbiased covariance of features, in float64 on their device.

    Args:
        features: features (N, K), N >= 2.

    Returns:
        ``FeatureStatistics``.

    Raises:
        ValueError: if features are not (N, K) with N >= 2 and K >= 1, or not all finite.

    Example:
        >>> import torch
        >>> feature_statistics(torch.tensor([[0.0], [2.0]])).covariance
        tensor([[2.]], dtype=torch.float64)
    """
    check_dims("features", features, 2, "(N, K)")
    count, width = features.shape
    if count < 2 or width < 1:
        raise ValueError(
            f"features: expected (N, K) with N >= 2 and K >= 1; got {tuple(features.shape)}; "
            f"a covariance needs two samples"
        )
    values = check_finite("features", features).detach().double()
    mean = values.mean(dim=0)
    centred = values - mean
    return FeatureStatistics(count, mean, centred.T @ centred / (count - 1))


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
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"frechet_distance: expected statistics of the same features; got {len(a.mean)} and "
            f"{len(b.mean)}; use one feature function for both samples"
        )
    root_trace = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
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
