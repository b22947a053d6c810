"""How heavy the tail of importance weights is: the shape of a generalised Pareto law."""

import math

import torch
from torch import Tensor

from pyro_gebm._checks import check_count, check_dims

_PRIOR_DRAWS, _PRIOR_SHAPE = 10.0, 0.5


def tail_shape(log_weights: Tensor) -> float:
    """k̂ of importance weights: the shape of a generalised Pareto law fitted to the largest ones.

    A law of shape k has moments of order below 1/k: at k >= 1/2 the weights' variance is
    infinite, at k >= 1 their mean. The min(N/5, 3√N) largest weights are fitted (Vehtari et al.,
    2024, "Pareto smoothed importance sampling") by the nearly Bayesian estimate of Zhang and
    Stephens, 2009, drawn towards 1/2 by the weight of ten draws.

    Args:
        log_weights: (N,), N >= 25, up to a constant; -inf is a weight of zero.

    Returns:
        k̂; -inf where the largest weights are all the same.

    Raises:
        ValueError: there are too few.

    Example:
        >>> u = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).double()
        >>> abs(tail_shape(-0.3 * u.log()) - 0.3) < 0.1  # u^-0.3 has shape 0.3
        True
    """
    check_dims("log_weights", log_weights, 1, "(N,)")
    check_count("number of log_weights", len(log_weights), minimum=25)
    num = len(log_weights)
    tail = math.ceil(min(num / 5, 3 * math.sqrt(num)))
    top = log_weights.double().topk(tail + 1).values
    weights = (top - top[0]).exp()
    excess = weights[:-1] - weights[-1]
    excess = excess[excess > 0].flip(0)
    if len(excess) == 0:
        return -math.inf
    return math.inf if len(excess) < 5 else _shape(excess)


def tail_shape_limit(num_draws: int) -> float:
    """The k̂ below which N weighted draws are enough: min(1 - 1/log10 N, 0.7)."""
    return min(1 - 1 / math.log10(num_draws), 0.7)


def _shape(excess: Tensor) -> float:
    """Of excesses over a threshold, (n,), rising."""
    num = len(excess)
    grid = 30 + int(math.sqrt(num))
    steps = torch.arange(1, grid + 1, dtype=torch.float64, device=excess.device) - 0.5
    quartile = excess[int(num / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - torch.sqrt(grid / steps)) / (3 * quartile)
    shapes = torch.log1p(-theta[:, None] * excess).mean(1)
    profile = num * (torch.log(-theta / shapes) - shapes - 1)
    best = (profile.softmax(0) * theta).sum()
    shape = float(torch.log1p(-best * excess).mean())
    return (num * shape + _PRIOR_DRAWS * _PRIOR_SHAPE) / (num + _PRIOR_DRAWS)
