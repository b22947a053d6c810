"""Weighted chains on independent islands: reweighting, resampling, and the mean of weights."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_finite


class Cloud(NamedTuple):
    """Weighted chains of R islands of M."""

    z: Tensor
    """(C, D), island after island."""
    log_weights: Tensor
    """Summing to one in each island, (R, M)."""
    log_z: Tensor
    """So far, (R,)."""


def start_cloud(z: Tensor, num_islands: int) -> Cloud:
    """Exact draws of the reference: equal weights, Z = 1."""
    size = len(z) // num_islands
    zeros = torch.zeros(num_islands, size, dtype=torch.float64, device=z.device)
    return Cloud(z, zeros - math.log(size), zeros[:, 0])


def reweight(cloud: Cloud, loss: Tensor) -> tuple[Cloud, Tensor]:
    """Chains weighted by exp(-loss), (R, M), and the effective share of each island, (R,)."""
    log_weights = cloud.log_weights - loss
    ratio = torch.logsumexp(log_weights, 1)  # log of Z_β' / Z_β
    if not bool(torch.isfinite(ratio).all()):
        raise ValueError(
            "energy_fn: expected chains of finite energy on every island; got +inf for all of "
            "one; take more chains or fewer islands"
        )
    log_weights = log_weights - ratio[:, None]
    ess = 1 / (log_weights.shape[1] * (2 * log_weights).exp().sum(1))
    return Cloud(cloud.z, log_weights, cloud.log_z + ratio), ess


def resample(cloud: Cloud, due: Tensor, generator: torch.Generator) -> Cloud:
    """Systematic resampling of the islands that are ``due``, (R,) bool; their weights even out."""
    islands, size = cloud.log_weights.shape
    rows = torch.arange(islands * size, device=due.device).view(islands, size)
    chosen = systematic(cloud.log_weights.exp(), generator) + rows[:, :1]
    rows = torch.where(due[:, None], chosen, rows).flatten()
    even = torch.full_like(cloud.log_weights, -math.log(size))
    return Cloud(cloud.z[rows], torch.where(due[:, None], even, cloud.log_weights), cloud.log_z)


def systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Indices (R, M) of rows drawn by weights (R, M): row j ⌊M W_j⌋ or ⌈M W_j⌉ times.

    One uniform for each island: (u + i)/M, i < M, are looked up in the cumulative weights.

    Example:
        >>> systematic(torch.tensor([[0.5, 0.0, 0.25, 0.25]]), torch.Generator().manual_seed(0))
        tensor([[0, 0, 2, 3]])
    """
    islands, size = weights.shape
    cumulative = weights.cumsum(1)
    cumulative = cumulative / cumulative[:, -1:]
    start = torch.rand(islands, 1, generator=generator, dtype=weights.dtype, device=weights.device)
    points = (start + torch.arange(size, device=weights.device)) / size
    # A last point that rounds to 1 would fall off the end.
    return torch.searchsorted(cumulative, points, right=True).clamp(max=size - 1)


def conditional_ess(log_weights: Tensor, loss: Tensor) -> float:
    """(Σ W w)² / Σ W w² of w = exp(-loss), mean over islands, (R, M) each, in (0, 1].

    How evenly a step weighs what the weights W, summing to one in each island, make of the
    chains. Chains of infinite loss are left out: they are lost at any step, however small.
    """
    alive = torch.isfinite(loss)
    log_w = torch.log_softmax(log_weights.masked_fill(~alive, -torch.inf), 1)
    loss = loss.masked_fill(~alive, 0.0)
    first, second = (torch.logsumexp(log_w - k * loss, 1) for k in (1, 2))
    return float((2 * first - second).exp().mean())


def log_mean(log_values: Tensor) -> tuple[float, float]:
    """Log of the mean of exp(log_values), (N,), N >= 2, and its standard error.

    By the delta method: sd / (mean √N), with both of the exponentials.

    Example:
        >>> log_mean(torch.tensor([0.0, math.log(3.0)], dtype=torch.float64))  # log 2, 1/2
        (0.6931..., 0.5)
    """
    top = log_values.max()
    values = (log_values - top).exp()
    mean = values.mean()
    error = values.std() / (mean * math.sqrt(len(values)))
    return float(top + mean.log()), float(error)


def check_weighable(name: str, energy: Tensor) -> Tensor:
    """Return energies (N,) if exp(-E) are weights: no NaN or -inf, and not all +inf."""
    check_finite(name, energy[energy != torch.inf])
    if bool((energy == torch.inf).all()):
        raise ValueError(f"{name}: expected some finite energies; got +inf everywhere")
    return energy
