"""The held-out figures of a GEBM: its bound, KALE and log Z, each with a standard error."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_count, check_finite
from pyro_gebm.metrics.cloud import log_mean
from pyro_gebm.metrics.partition import base_energies, data_energies, warn_if_few
from pyro_gebm.model import GEBM
from pyro_gebm.objectives import importance_ess, kale_bound


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    standard_error: float


class HeldOutBound(NamedTuple):
    """Figures on held-out data and a sample of the base, in nats but for the last.

    Attributes:
        bound: F(E, c) = 1 - E_P[E + c] - E_B[exp(-(E + c))] with the learned c.
        kale: L(E) = -E_P[E] - log Z (Donsker-Varadhan), the bound at c = log Z: at most
            KL(P || B), the more the energy tells data from base.
        gap: L - F = e^δ - 1 - δ >= 0 with δ = log Z - c: what the bound loses by c.
        log_z: log E_B[exp(-E)] by importance sampling.
        log_partition_error: c - log Z.
        importance_ess: effective share of the base sample under exp(-E), in (0, 1].
    """

    bound: Estimate
    kale: Estimate
    gap: Estimate
    log_z: Estimate
    log_partition_error: Estimate
    importance_ess: float


def held_out_bound(
    gebm: GEBM, x: Tensor, num_latents: int, *, generator: torch.Generator, progress: bool = False
) -> HeldOutBound:
    """Judge a GEBM on data that it was not trained on, against fresh samples of its base.

    Data and base samples are independent, so that variances add. With w_i = exp(-E(G(z_i))):

        se(F)² = Var E(x)/N + e^{-2c} Var w / M,    se(L)² = Var E(x)/N + Var w / (M w̄²),

    the second by the delta method. L is biased high by about half of its second term (log Z is
    low by as much). Where the effective share of the base sample is worth fewer than 50 draws,
    log Z and all errors are likely too low, L too high, and a warning says so.

    Args:
        gebm: the model.
        x: held-out data (N, ...), N >= 2, independent of each other.
        num_latents: M >= 2, z_i ~ η.
        generator: source of the latents; torch's global ones are left as they were.
        progress: show a progress bar.

    Returns:
        ``HeldOutBound``.

    Raises:
        ValueError: there are fewer than two data, or an energy is not finite.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Identity(), StandardNormal(1)), nn.Flatten())
        >>> rng = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 1, generator=rng) - 1
        >>> kale, error = held_out_bound(gebm, x, 10_000, generator=rng).kale
        >>> abs(kale - 0.5) < 4 * error < 0.2  # E = x: -E_P[x] - log E_B[exp(-x)] = 1 - 1/2
        True
    """
    check_count("num_latents", num_latents, minimum=2)
    if x.ndim == 0 or len(x) < 2:
        raise ValueError(f"x: expected at least two data (N, ...); got {tuple(x.shape)}")
    real = check_finite("energy of x", data_energies(gebm, x))
    energy = base_energies(gebm, num_latents, generator=generator, progress=progress)
    share = float(importance_ess(energy))
    warn_if_few(share * num_latents, num_latents)

    c = gebm.log_partition.item()
    log_z, log_z_error = log_mean(-energy)
    real_error = float(real.std()) / math.sqrt(len(real))
    excess = log_z - c
    bound = float(kale_bound(real, energy, c))
    weight = float((-energy - c).exp().mean())
    return HeldOutBound(
        Estimate(bound, math.hypot(real_error, weight * log_z_error)),
        Estimate(-float(real.mean()) - log_z, math.hypot(real_error, log_z_error)),
        Estimate(weight - 1 - excess, abs(weight - 1) * log_z_error),
        Estimate(log_z, log_z_error),
        Estimate(-excess, log_z_error),
        share,
    )
