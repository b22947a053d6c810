"""log Z of a GEBM three ways: importance sampling from the base, annealing, and the learned c."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_count
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc import Kernel
from pyro_gebm.mcmc.random import draw_seed, sample_seeded
from pyro_gebm.metrics.cloud import check_weighable, log_mean
from pyro_gebm.metrics.smc import AnnealedLogZ, smc_log_z
from pyro_gebm.model import GEBM
from pyro_gebm.objectives import importance_ess

TRUSTED_ESS = 50
"""Weighted draws that are worth fewer even ones say little of log Z, or of their own error."""

_CHUNK = 1024  # latents whose data are held at once


class ImportanceLogZ(NamedTuple):
    """log Z by importance sampling from the base.

    Attributes:
        log_z: log of the mean weight, in nats.
        standard_error: of ``log_z`` by the delta method; much too small where ``ess`` is.
        ess: the number of even draws that the weighted ones are worth, in [1, num_latents].
        num_latents: draws from the base.
    """

    log_z: float
    standard_error: float
    ess: float
    num_latents: int


class LogPartitionEstimates(NamedTuple):
    """log Z three ways.

    Attributes:
        importance: by importance sampling from the base.
        annealed: by sequential Monte Carlo from the base to the model.
        learned: c, which has no error of its own.
    """

    importance: ImportanceLogZ
    annealed: AnnealedLogZ
    learned: float

    @property
    def learned_error(self) -> float:
        """c - log Z, with the annealed log Z for the truth, in nats."""
        return self.learned - self.annealed.log_z

    @property
    def standard_score(self) -> float:
        """(importance - annealed) in standard errors: beyond about ±3 one of them is off."""
        error = math.hypot(self.importance.standard_error, self.annealed.standard_error)
        return (self.importance.log_z - self.annealed.log_z) / error


def log_partition_estimates(
    gebm: GEBM,
    *,
    num_latents: int = 100_000,
    num_chains: int = 1024,
    kernel: Kernel | None = None,
    generator: torch.Generator,
    progress: bool = False,
) -> LogPartitionEstimates:
    """Estimate log Z = log E_B[exp(-E)] three ways, to be compared.

    Args:
        gebm: the model.
        num_latents: of ``importance_log_z``.
        num_chains: of ``annealed_log_z``.
        kernel: of ``annealed_log_z``.
        generator: source of all noise.
        progress: show progress bars.

    Returns:
        ``LogPartitionEstimates``.

    Raises:
        ValueError: see ``importance_log_z`` and ``annealed_log_z``.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Identity(), StandardNormal(2)), nn.Linear(2, 1))
        >>> _ = nn.init.constant_(gebm.energy.weight, 0.5), nn.init.zeros_(gebm.energy.bias)
        >>> found = log_partition_estimates(  # log E[exp(-(z1 + z2)/2)] = 1/4
        ...     gebm, num_latents=4000, num_chains=256, generator=torch.Generator().manual_seed(0))
        >>> abs(found.importance.log_z - 0.25) < 0.05, abs(found.annealed.log_z - 0.25) < 0.1
        (True, True)
        >>> found.learned  # c of a model that has not been trained
        0.0
    """
    importance = importance_log_z(gebm, num_latents, generator=generator, progress=progress)
    annealed = annealed_log_z(
        gebm, num_chains, kernel=kernel, generator=generator, progress=progress
    )
    return LogPartitionEstimates(importance, annealed, gebm.log_partition.item())


def importance_log_z(
    gebm: GEBM, num_latents: int, *, generator: torch.Generator, progress: bool = False
) -> ImportanceLogZ:
    """log Z = log E_B[exp(-E)] by the mean weight of base samples: log (1/N) Σ exp(-E(G(z_i))).

    Its exponential is unbiased; the logarithm is low by about half its variance. Where a few
    draws carry all the weight it is likely far too low, and so is its error: a warning says so.

    Args:
        gebm: the model.
        num_latents: N >= 2, z_i ~ η.
        generator: source of the latents; torch's global ones are left as they were.
        progress: show a progress bar.

    Returns:
        ``ImportanceLogZ``.

    Raises:
        ValueError: an energy is NaN or -inf, or all are +inf.
    """
    check_count("num_latents", num_latents, minimum=2)
    energy = base_energies(gebm, num_latents, generator=generator, progress=progress)
    ess = num_latents * float(importance_ess(energy))
    warn_if_few(ess, num_latents)
    return ImportanceLogZ(*log_mean(-energy), ess, num_latents)


def annealed_log_z(
    gebm: GEBM,
    num_chains: int = 1024,
    *,
    kernel: Kernel | None = None,
    num_moves: int = 3,
    num_islands: int = 16,
    betas: Tensor | None = None,
    cess: float = 0.9,
    resample_below: float = 0.5,
    generator: torch.Generator,
    progress: bool = False,
) -> AnnealedLogZ:
    """log Z by sequential Monte Carlo over β: chains led from z ~ η to ν ∝ η exp(-E∘G).

    It holds where importance sampling fails, since each stage only reweights by a little. Cost:
    ``num_moves`` transitions of every chain at every β. See ``smc_log_z`` for the method and the
    arguments; ``resample_below=0`` is annealed importance sampling.

    Args:
        gebm: the model; its modes and gradient flags are left as they were.
        num_chains: C, a multiple of ``num_islands``; all are advanced in one batch.
        kernel: ``HMC`` or ``MALA``; ``None`` is ``HMC()``.
        num_moves: transitions at each β.
        num_islands: independent groups of chains, whose spread gives the error.
        betas: rising from 0 to 1; ``None`` chooses them as it goes.
        cess: conditional effective share that the next β is chosen by.
        resample_below: effective share of an island below which it is resampled.
        generator: source of all noise; torch's global ones are left as they were.
        progress: show a progress bar over β.

    Returns:
        ``AnnealedLogZ``, whose ``z`` are latents, in the support of the prior.

    Raises:
        ValueError: see ``smc_log_z``.
    """
    return lead_from_base(
        gebm,
        gebm.latent_energy,
        num_chains,
        kernel=kernel,
        num_moves=num_moves,
        num_islands=num_islands,
        betas=betas,
        cess=cess,
        resample_below=resample_below,
        generator=generator,
        progress=progress,
    )


def lead_from_base(
    gebm: GEBM,
    energy_fn: PotentialFn,
    num_chains: int,
    *,
    generator: torch.Generator,
    **settings: Any,
) -> AnnealedLogZ:
    """log E_η[exp(-E(z))] of any energy of latents z (C, D); settings are those of ``smc_log_z``.

    The networks are frozen; ``z`` of the result are latents, in the support of the prior.
    """
    check_count("num_chains", num_chains)
    prior = gebm.base.latent_prior
    to_latent, from_latent, log_det = prior.coordinates()

    def reference_potential_fn(u: Tensor) -> Tensor:
        z = to_latent(u)
        return -prior.log_prob(z) - log_det(u, z)

    with gebm.frozen():
        start = from_latent(draw_latents(gebm, num_chains, generator))
        found = smc_log_z(
            start,
            reference_potential_fn,
            lambda u: energy_fn(to_latent(u)),
            generator=generator,
            **settings,
        )
    return found._replace(z=to_latent(found.z))


@torch.no_grad()
def base_energies(
    gebm: GEBM, num_latents: int, *, generator: torch.Generator, progress: bool = False
) -> Tensor:
    """E(G(z)) of z ~ η, (num_latents,) float64, with the networks in eval mode.

    Raises:
        ValueError: an energy is NaN or -inf, or all are +inf, which is a weight of zero.
    """
    z = draw_latents(gebm, num_latents, generator)
    bar = tqdm(torch.split(z, _CHUNK), desc="energies", disable=not progress, leave=False)
    with gebm.evaluating():
        energy = torch.cat([gebm.latent_energy(part) for part in bar])
    return check_weighable("energy", energy.double())


@torch.no_grad()
def data_energies(gebm: GEBM, x: Tensor) -> Tensor:
    """E(x) of data (N, ...), (N,) float64, with the networks in eval mode."""
    like = gebm.log_partition
    with gebm.evaluating():
        parts = [gebm.evaluate_energy(part.to(like)) for part in torch.split(x, _CHUNK)]
    return torch.cat(parts).double()


def draw_latents(gebm: GEBM, num_latents: int, generator: torch.Generator) -> Tensor:
    """z ~ η, (num_latents, D), seeded from ``generator``; the global ones are left as they were."""
    prior = gebm.base.latent_prior
    devices = [prior.like.device] if prior.like.is_cuda else []
    with torch.random.fork_rng(devices):
        return sample_seeded(prior.sample, [num_latents], [draw_seed(generator)], prior.like)


def warn_if_few(ess: float, num_latents: int) -> None:
    """Warn where importance weights say little of log Z; to be called by a public function."""
    if ess < TRUSTED_ESS:
        warnings.warn(
            f"importance sampling: {num_latents} weighted draws of the base are worth {ess:.1f}, "
            f"fewer than {TRUSTED_ESS}: log Z is likely too low, and so is its standard error; "
            "take more latents, or annealed_log_z",
            stacklevel=3,
        )
