"""Maximum mean discrepancy with a Gaussian kernel."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_finite, check_in_range
from pyro_gebm.metrics.scores import distances

MAX_POOLED = 4096
"""Points whose pairwise matrix is held at once: 128 MiB in float64."""

_CHUNK = 1024  # rows of a kernel matrix held at once


class MMD(NamedTuple):
    """Unbiased estimate of the squared maximum mean discrepancy.

    Attributes:
        squared: MMD², without unit; about 0 for one law, slightly negative as often as not.
        bandwidth: h of the kernel, in the units of the data.
    """

    squared: float
    bandwidth: float


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> MMD:
    """Squared maximum mean discrepancy of two samples: E k(X, X') + E k(Y, Y') - 2 E k(X, Y).

    k(a, b) = exp(-|a - b|²/2h²); the U-statistic of Gretton, Borgwardt, Rasch, Schölkopf and
    Smola (2012, eq. 3), which leaves out the pairs of a point with itself and is unbiased for a
    given h. Cost (N + M)² d; memory is bounded by chunks.

    Args:
        x: sample (N, ...), N >= 2.
        y: sample (M, ...), M >= 2, of the same data shape.
        bandwidth: h > 0; ``None`` takes the median distance between the points of both samples
            together (of 4,096 evenly spaced rows where there are more). That h depends on the
            data: compare only figures of one bandwidth.

    Returns:
        The estimate and the bandwidth.

    Raises:
        ValueError: the shapes do not fit, a sample has fewer than two points, a number is not
            finite, or the bandwidth is not positive (the median is 0 where most points coincide).

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]])
        >>> mmd(x, y, bandwidth=1.0)  # exp(-2) - 1
        MMD(squared=-0.8646..., bandwidth=1.0)
    """
    x, y = flat_pair(x, y)
    h = choose_bandwidth(torch.cat([x, y]), bandwidth)
    within_x = (_kernel_sum(x, x, h) - len(x)) / (len(x) * (len(x) - 1))
    within_y = (_kernel_sum(y, y, h) - len(y)) / (len(y) * (len(y) - 1))
    between = _kernel_sum(x, y, h) / (len(x) * len(y))
    return MMD(within_x + within_y - 2 * between, h)


def choose_bandwidth(pooled: Tensor, bandwidth: float | None) -> float:
    """The bandwidth given, checked, or the median distance of pooled points (n, d)."""
    if bandwidth is not None:
        return float(check_in_range("bandwidth", bandwidth, 0.0, open_low=True))
    if len(pooled) > MAX_POOLED:
        rows = torch.linspace(0, len(pooled) - 1, MAX_POOLED, dtype=torch.float64).round().long()
        pooled = pooled[rows.to(pooled.device)]
    median = float(torch.pdist(pooled).median())
    if median == 0:
        raise ValueError(
            "bandwidth: expected points that differ; got a median distance of 0, since most "
            "points coincide; pass a bandwidth"
        )
    return median


def gaussian_kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """exp(-|x_i - y_j|²/2h²), (N, d) and (M, d) -> (N, M)."""
    return (distances(x, y) / bandwidth).square_().mul_(-0.5).exp_()


def flat_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two samples as vectors of float64 on one device, (N, ...) -> (N, d), checked."""
    for name, sample in (("x", x), ("y", y)):
        if sample.ndim < 2 or len(sample) < 2:
            raise ValueError(
                f"{name}: expected at least two points (N, ...); got {tuple(sample.shape)}; give "
                "numbers as (N, 1)"
            )
        check_finite(name, sample)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"x, y: expected points of one shape; got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = x.detach().flatten(1).double(), y.detach().flatten(1).to(x.device).double()
    return x, y


def _kernel_sum(x: Tensor, y: Tensor, bandwidth: float) -> float:
    chunks = torch.split(x, _CHUNK)
    return math.fsum(float(gaussian_kernel(rows, y, bandwidth).sum()) for rows in chunks)
