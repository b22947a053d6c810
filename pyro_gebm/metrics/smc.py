"""Annealed log Z: chains led from draws of a reference law to a target, weighted on the way."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_count, check_dims, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc import HMC, MALA, Kernel, KernelState, Tuning
from pyro_gebm.mcmc.adaptation import find_step_size
from pyro_gebm.mcmc.random import generator_on
from pyro_gebm.metrics.cloud import (
    Cloud,
    check_weighable,
    conditional_ess,
    log_mean,
    resample,
    reweight,
    start_cloud,
)

_MAX_STAGES = 10_000
_BISECTIONS = 60
_STEP_TOLERANCE = 0.01  # relative: any step will do, this one is only a good size
_PRIOR_DRAWS = 5.0  # what the masses so far count for, in draws


class AnnealedLogZ(NamedTuple):
    """log Z by sequential Monte Carlo over β; T stages, C chains in R islands.

    Attributes:
        log_z: log of the mean of the islands' Ẑ, in nats.
        standard_error: of ``log_z``, from the spread of the islands' Ẑ.
        betas: from 0 to 1, (T + 1,).
        ess: effective share of an island's chains after the reweighting to each β and before
            any resampling, mean over islands, (T,), in (0, 1].
        accept_prob: mean acceptance of the moves at each β, (T,).
        log_z_by_island: (R,).
        z: where the chains end: with ``log_weights`` a sample of the target, (C, D).
        log_weights: log of weights that sum to one over all chains, (C,).
    """

    log_z: float
    standard_error: float
    betas: Tensor
    ess: Tensor
    accept_prob: Tensor
    log_z_by_island: Tensor
    z: Tensor
    log_weights: Tensor


@torch.no_grad()
def smc_log_z(
    z: Tensor,
    reference_potential_fn: PotentialFn,
    energy_fn: PotentialFn,
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
    """log Z = log E_reference[exp(-E)] by sequential Monte Carlo along π_β ∝ reference · exp(-βE).

    At each stage the chains are weighted by exp(-(β' - β) E(z)), whose weighted mean estimates
    Z_β'/Z_β; islands of uneven weights are resampled (systematically); then a few steps of a
    Markov kernel move the chains at β' (Neal, 2001, "Annealed importance sampling"; Del Moral,
    Doucet and Jasra, 2006, "Sequential Monte Carlo samplers"). The next β is where the conditional
    effective share of the chains falls to ``cess`` (Zhou, Johansen and Aston, 2016), found by
    bisection. Masses and step size follow the chains.

    With ``resample_below=0`` this is annealed importance sampling, whose error is too small where
    ``ess`` ends low (at 0.09 of 64 chains it was off by three errors). With an energy that is
    minus a log likelihood, log Z is the log evidence. With ``betas`` given and a kernel that
    adapts neither step size nor masses, Ẑ is unbiased; adaptation costs a bias that vanishes with
    the number of chains. log Ẑ is low by about half its variance. The error comes from
    independent islands of C/R chains (only the adaptation is common to them); it does not see a
    mode that every island has missed.

    Args:
        z: independent draws of the reference, (C, D), in unconstrained coordinates.
        reference_potential_fn: minus the log density of the reference up to a constant.
        energy_fn: E, (C, D) -> (C,); +inf is weight zero.
        kernel: ``HMC`` or ``MALA``; ``None`` is ``HMC()``.
        num_moves: transitions at each β, at least 1.
        num_islands: R >= 2, of which C is a multiple.
        betas: rising from 0 to 1, (T + 1,); ``None`` chooses them as it goes.
        cess: effective share to keep from one β to the next, in (0, 1); ignored with ``betas``.
        resample_below: effective share of an island below which it is resampled, in [0, 1].
        generator: source of all noise.
        progress: show a progress bar over β.

    Returns:
        ``AnnealedLogZ``.

    Raises:
        ValueError: an argument is out of its range; an energy is NaN or -inf; all energies of an
            island are +inf; or β does not reach 1 in 10,000 stages.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> found = smc_log_z(  # log E[exp(-50 z²)] = -log(101)/2 = -2.3076
        ...     torch.randn(512, 1, generator=rng), lambda z: 0.5 * (z**2).sum(-1),
        ...     lambda z: 50 * (z**2).sum(-1), generator=rng)
        >>> abs(found.log_z + 2.3076) < 4 * found.standard_error < 0.2
        True
    """
    kernel = kernel or HMC()
    next_beta = _schedule(betas, cess)
    _check(z, kernel, num_moves, num_islands, resample_below)
    source = generator_on(z.device, generator)
    cloud = start_cloud(z.detach(), num_islands)
    masses = z.detach().var(0) if kernel.adapt_mass_matrix else torch.ones_like(z[0])
    step_size: Tensor | None = None
    path, shares, accepted, beta = [0.0], [], [], 0.0
    with _bar(len(z), progress) as bar:
        while beta < 1:
            if len(path) > _MAX_STAGES:
                raise ValueError(
                    f"energy_fn: β got no further than {beta:.3g} in {_MAX_STAGES} stages; the "
                    "energy is too steep for its chains: check it, or lower cess"
                )
            energy = _energies(energy_fn, cloud.z).view_as(cloud.log_weights)
            step_to = next_beta(len(path), beta, cloud.log_weights, energy)
            cloud, ess = reweight(cloud, (step_to - beta) * energy)
            bar.update(step_to - beta)
            beta = step_to
            potential_fn = _tempered(reference_potential_fn, energy_fn, beta)
            if kernel.adapt_mass_matrix:
                masses = _masses(cloud, ess, masses)
            cloud = resample(cloud, ess < resample_below, source)
            cloud, step_size, accept = _move(
                kernel, potential_fn, cloud, masses, step_size, num_moves, source
            )
            path.append(beta)
            shares.append(ess.mean())
            accepted.append(accept)
    log_z, error = log_mean(cloud.log_z)
    log_weights = torch.log_softmax((cloud.log_weights + cloud.log_z[:, None]).flatten(), 0)
    return AnnealedLogZ(
        log_z,
        error,
        torch.tensor(path, dtype=torch.float64),
        torch.stack(shares),
        torch.stack(accepted),
        cloud.log_z,
        cloud.z,
        log_weights,
    )


def _tempered(
    reference_potential_fn: PotentialFn, energy_fn: PotentialFn, beta: float
) -> PotentialFn:
    def potential_fn(z: Tensor) -> Tensor:
        return reference_potential_fn(z) + beta * energy_fn(z)

    return potential_fn


def _energies(energy_fn: PotentialFn, z: Tensor) -> Tensor:
    """E in float64, (C,); +inf is allowed, being a weight of zero."""
    energy = energy_fn(z).double()
    if energy.shape != z.shape[:1]:
        raise ValueError(
            f"energy_fn: expected shape ({len(z)},) for positions {tuple(z.shape)}; got "
            f"{tuple(energy.shape)}"
        )
    return check_weighable("energy_fn", energy)


# --- temperatures ------------------------------------------


def _schedule(betas: Tensor | None, cess: float) -> Callable[[int, float, Tensor, Tensor], float]:
    """(stage from 1, β, log-weights, energies) -> the next β."""
    if betas is None:
        if not 0 < cess < 1:
            raise ValueError(f"cess: expected a number in (0, 1); got {cess!r}")
        return lambda stage, beta, log_weights, energy: _next_beta(beta, log_weights, energy, cess)
    given = check_dims("betas", betas, 1, "(T + 1,)").double().tolist()
    rising = all(a < b for a, b in pairwise(given))
    if len(given) < 2 or given[0] != 0 or given[-1] != 1 or not rising:
        raise ValueError(
            f"betas: expected numbers rising from 0 to 1, such as torch.linspace(0, 1, 50); got "
            f"{given}"
        )
    return lambda stage, beta, log_weights, energy: given[stage]


def _next_beta(beta: float, log_weights: Tensor, energy: Tensor, cess: float) -> float:
    """The β up to 1 at which the conditional effective share falls to ``cess``."""
    low, high = 0.0, 1.0 - beta
    if conditional_ess(log_weights, high * energy) >= cess:
        return 1.0
    for _ in range(_BISECTIONS):  # the share falls with every step in β
        if high - low < _STEP_TOLERANCE * high:
            break
        middle = 0.5 * (low + high)
        if conditional_ess(log_weights, middle * energy) >= cess:
            low = middle
        else:
            high = middle
    return beta + high


# --- moves ------------------------------------------


def _masses(cloud: Cloud, ess: Tensor, before: Tensor) -> Tensor:
    """Weighted variances of the chains, (D,), kept off zero by those before."""
    weights = (cloud.log_weights.exp() / len(ess)).flatten().to(cloud.z)
    variance = weights @ (cloud.z - weights @ cloud.z).square()
    draws = float(ess.mean()) * len(cloud.z)
    return (draws * variance + _PRIOR_DRAWS * before) / (draws + _PRIOR_DRAWS)


def _first_step(
    kernel: Kernel,
    potential_fn: PotentialFn,
    state: KernelState,
    masses: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The kernel's own step size, or one searched for, (C,)."""
    given = Tuning(torch.full_like(state.potential_energy, kernel.step_size or 1.0), masses)
    if kernel.step_size is not None or not kernel.adapt_step_size:
        return given.step_size
    return find_step_size(potential_fn, state, given, generator)[0]


def _move(
    kernel: Kernel,
    potential_fn: PotentialFn,
    cloud: Cloud,
    masses: Tensor,
    step_size: Tensor | None,
    num_moves: int,
    generator: torch.Generator,
) -> tuple[Cloud, Tensor, Tensor]:
    """The chains after some transitions, the next step size, and the mean acceptance."""
    state = kernel.init(potential_fn, cloud.z)
    weights = cloud.log_weights.flatten().softmax(0)
    if step_size is None:
        step_size = _first_step(kernel, potential_fn, state, masses, generator)
    accepted = []
    for _ in range(num_moves):
        tuning = Tuning(step_size, masses)
        state, info = kernel.step(potential_fn, state, tuning, generator=generator)
        accepted.append(weights @ info.accept_prob.double())
        if kernel.adapt_step_size:
            step_size = step_size * (accepted[-1] - kernel.target_accept_prob).exp().to(step_size)
    return cloud._replace(z=state.z), step_size, torch.stack(accepted).mean()


def _check(
    z: Tensor, kernel: Kernel, num_moves: int, num_islands: int, resample_below: float
) -> None:
    check_count("num_moves", num_moves)
    check_count("num_islands", num_islands, minimum=2)
    check_in_range("resample_below", resample_below, 0.0, 1.0)
    check_dims("z", z, 2, "(C, D)")
    if len(z) % num_islands or len(z) < 2 * num_islands:
        raise ValueError(
            f"num_islands: expected {num_islands} islands of two or more chains each; got "
            f"{len(z)} chains; take a multiple of the islands"
        )
    if not isinstance(kernel, HMC | MALA):
        raise ValueError(
            "kernel: expected HMC or MALA, which are exact and move all chains in step; got "
            f"{type(kernel).__name__}"
        )


def _bar(num_chains: int, progress: bool) -> Any:
    """A bar over β."""
    return tqdm(
        total=1.0,
        desc=f"SMC x {num_chains} chains",
        bar_format="{l_bar}{bar}| β = {n:.4f} [{elapsed}<{remaining}]",
        disable=not progress,
        leave=False,
    )
