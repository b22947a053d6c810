"""Kernel distance (KID) between two samples of features: unbiased, with its standard error."""

import math
import statistics
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import trange

from pyro_gebm._checks import check_count, check_dims, check_finite


class KernelDistance(NamedTuple):
    """A squared maximum mean discrepancy.

    Attributes:
        estimate: mean over the subsets; unbiased, so slightly negative for like samples.
        standard_error: of ``estimate``, over new samples.
        subset_sd: standard deviation over the subsets, which is what KID is often printed with.
        num_subsets: number of subsets.
        subset_size: size of each.
    """

    estimate: float
    standard_error: float
    subset_sd: float
    num_subsets: int
    subset_size: int


def kernel_distance(
    x: Tensor,
    y: Tensor,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    generator: torch.Generator,
    progress: bool = False,
) -> KernelDistance:
    """Squared MMD of two samples under the kernel k(a, b) = (a·b/K + 1)³; KID for Inception.

    Bińkowski, Sutherland, Arbel and Gretton (2018). Each subset takes m of the N and of the M
    features without replacement and gives the unbiased
    1/(m(m-1)) Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] - 2/m² Σ_{i,j} k(x_i, y_j).
    Unlike the Fréchet distance its mean does not depend on the sizes. In Inception features at
    the standard protocol, with the default subsets, it is called KID.

    Subsets overlap, so that their spread over √S is not the error of their mean. With s their
    standard deviation, n = min(N, M) and f = m/n, the error given is s √(1/S + f/(1 - f)): the
    part from drawing subsets, and that from the sample, which each subset shows at f of its size.
    It is right where the laws differ clearly; for like laws, or for N and M far apart, too large.

    Args:
        x: features (N, K).
        y: features (M, K).
        num_subsets: S, >= 2.
        subset_size: m, from 2 to half of the smaller sample; smaller samples than 2000 need a
            smaller one.
        generator: source of the subsets.
        progress: show a progress bar.

    Returns:
        ``KernelDistance``.

    Raises:
        ValueError: if the features are not finite (N, K) and (M, K), or the sizes do not fit.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = (torch.randn(400, 2, generator=generator) for _ in range(2))
        >>> near = kernel_distance(x, y, subset_size=100, generator=generator)
        >>> far = kernel_distance(x, y + 1, subset_size=100, generator=generator)
        >>> abs(near.estimate) < 4 * near.standard_error, far.estimate > 4 * far.standard_error
        (True, True)
    """
    check_count("num_subsets", num_subsets, 2)
    smaller = _check_samples(x, y)
    if not 2 <= check_count("subset_size", subset_size) <= smaller / 2:
        raise ValueError(
            f"subset_size: expected 2 to {smaller // 2}, half of the smaller sample, for an error "
            f"to be seen; got {subset_size}; set a smaller one, or bring more features"
        )
    x, y = x.detach(), y.detach().to(x.device)
    values = [
        _unbiased_mmd(_subset(x, subset_size, generator), _subset(y, subset_size, generator))
        for _ in trange(num_subsets, desc="kernel distance", disable=not progress)
    ]
    sd, share = statistics.stdev(values), subset_size / smaller
    error = sd * math.sqrt(1 / num_subsets + share / (1 - share))
    return KernelDistance(statistics.fmean(values), error, sd, num_subsets, subset_size)


def _unbiased_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of (m, K) and (m, K), float64."""
    m = len(x)
    within = sum(_kernel(a, a).sum() - _kernel_diagonal(a).sum() for a in (x, y))
    return float(within / (m * (m - 1)) - 2 * _kernel(x, y).mean())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_diagonal(a: Tensor) -> Tensor:
    return (a.square().mean(dim=1) + 1) ** 3


def _subset(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    rows = torch.randperm(len(features), generator=generator, device=generator.device)[:size]
    return features[rows.to(features.device)].double()


def _check_samples(x: Tensor, y: Tensor) -> int:
    """Check both, and return the size of the smaller one."""
    for name, sample in (("x", x), ("y", y)):
        check_finite(name, check_dims(name, sample, 2, "(N, K)"))
    if x.shape[1] != y.shape[1] or x.shape[1] == 0:
        raise ValueError(
            f"kernel_distance: expected the same K >= 1 features of both; got {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    return min(len(x), len(y))
