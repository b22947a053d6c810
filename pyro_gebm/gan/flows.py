"""Samples of a GAN moved by its discriminator's gradient: DDLS, DOT, gradient flow."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_gebm._checks import check_choice, check_count, check_finite, check_in_range
from pyro_gebm.base import UniformPrior
from pyro_gebm.gan.refined import (
    Counted,
    Refined,
    check_gebm,
    check_walk,
    refine_in_batches,
)
from pyro_gebm.mcmc import Langevin, Tuning
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.mcmc.random import generator_on, normal
from pyro_gebm.metrics.partition import draw_latents
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.target import gebm_target

_FLOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda log_r: log_r,
    "js": lambda log_r: log_r - F.softplus(log_r),
    "log_d": F.softplus,
}
"""f'(r) up to a constant, of log r = log b/p."""


def ddls(
    gebm: GEBM,
    num_samples: int,
    *,
    num_steps: int = 100,
    step_size: float = 0.1,
    beta: float = 1.0,
    batch_size: int = 1024,
    generator: torch.Generator,
    progress: bool = False,
) -> Refined:
    """DDLS: Langevin steps in latent space, of a fixed number and length, from z ~ η.

    z' = z - (ε²/2) ∇U(z) + ε ξ with U(z) = -log η(z) + E(G(z)) (Che et al., 2020, arXiv
    2003.06060, algorithm 1, whose ε is ε² here), by the library's own kernel ``Langevin``. It
    is biased, by the step and by what the steps do not reach: ``sample`` and ``generate`` tune,
    correct and diagnose their chains instead.

    Args:
        gebm: the model.
        num_samples: N chains, each of which gives one sample.
        num_steps: K.
        step_size: ε; under a prior of bounded support, in unconstrained coordinates.
        beta: inverse temperature of the energy.
        batch_size: chains that advance at once.
        generator: source of all noise; torch's global ones are left as they were.
        progress: show a progress bar.

    Returns:
        ``Refined``, at the cost of N (K + 1) gradients.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> found = ddls(gebm, 7, num_steps=10, generator=torch.Generator().manual_seed(0))
        >>> found.x.shape, found.num_gradients
        (torch.Size([7, 5]), 77)
    """
    check_walk(num_steps, step_size)
    check_in_range("beta", beta, 0.0)
    counted = Counted(gebm_target(check_gebm(gebm), beta).potential_fn)
    to_latent, from_latent, _ = gebm.base.latent_prior.coordinates()
    kernel, generator = Langevin(), generator_on(gebm.base.latent_prior.like.device, generator)

    def move(z: Tensor) -> Tensor:
        state = kernel.init(counted, from_latent(z))
        tuning = Tuning(torch.full_like(z[:, 0], step_size), torch.ones_like(z[0])).settled()
        for _ in range(num_steps):
            state, _ = kernel.step(counted, state, tuning, generator=generator)
        return to_latent(state.z)

    return refine_in_batches(
        gebm,
        counted,
        move,
        num_samples,
        batch_size,
        generator=generator,
        progress=progress,
        name="DDLS",
    )


def discriminator_transport(
    gebm: GEBM,
    num_samples: int,
    *,
    num_steps: int = 100,
    step_size: float = 0.02,
    lipschitz: float | None = None,
    num_pairs: int = 1000,
    batch_size: int = 1024,
    generator: torch.Generator,
    progress: bool = False,
) -> Refined:
    """DOT: each latent z ~ η goes down |y - z| + E(G(y))/k by gradient steps (Tanaka, 2019).

    The latent form of discriminator optimal transport (arXiv 1910.06832, section 3.4), k being
    the slope of E∘G. It transports where a critic's dual potential does, whatever the scale of
    E; the law of the samples is not the model's. The slope of |y - z| at y = z is taken as zero,
    where the paper adds a small vector; under ``UniformPrior``, y is cut to the box after every
    step, as there.

    Args:
        gebm: the model.
        num_samples: N.
        num_steps: K.
        step_size: of plain gradient descent.
        lipschitz: k; ``None`` takes the largest |E(G(z)) - E(G(z'))|/|z - z'| of ``num_pairs``
            pairs of draws, which is a lower bound.
        num_pairs: of that estimate.
        batch_size: samples that are moved at once.
        generator: source of the latents; torch's global ones are left as they were.
        progress: show a progress bar.

    Returns:
        ``Refined``, at the cost of N K gradients and twice ``num_pairs`` energies.

    Raises:
        ValueError: an argument is out of range, the prior has bounded support and is no
            ``UniformPrior``, the energy does not vary, or the steps ran off.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> source = torch.Generator().manual_seed(0)
        >>> discriminator_transport(gebm, 7, num_steps=10, generator=source).num_gradients
        70
    """
    check_walk(num_steps, step_size)
    check_count("num_pairs", num_pairs)
    check_count("batch_size", batch_size)
    into_support = _into_support(check_gebm(gebm))
    counted = Counted(gebm.latent_energy)
    generator = generator_on(gebm.base.latent_prior.like.device, generator)
    if lipschitz is None:
        lipschitz = _steepest(gebm, counted, num_pairs, batch_size, generator)
    k = check_in_range("lipschitz", lipschitz, 0.0, open_low=True)

    def move(z: Tensor) -> Tensor:
        def objective(y: Tensor) -> Tensor:
            way: Tensor = torch.linalg.vector_norm(y - z, dim=-1)
            return way + counted(y) / k

        y = z
        for _ in range(num_steps):
            y = into_support(y - step_size * evaluate(objective, y).z_grad)
        return _not_run_off(y)

    return refine_in_batches(
        gebm,
        counted,
        move,
        num_samples,
        batch_size,
        generator=generator,
        progress=progress,
        name="DOT",
    )


def discriminator_gradient_flow(
    gebm: GEBM,
    num_samples: int,
    *,
    divergence: str = "kl",
    num_steps: int = 100,
    step_size: float = 0.1,
    noise: float = 0.01,
    batch_size: int = 1024,
    generator: torch.Generator,
    progress: bool = False,
) -> Refined:
    """DG-flow: z' = z - η ∇f'(r(G(z))) + √(2 γ η) ξ from draws of the prior.

    The latent form (Ansari, Ang and Soh, 2021, arXiv 2012.00780, section 3.3) of the gradient
    flow of an entropy-regularised f-divergence, r = b/p = exp(E + c) being the ratio of base and
    data: up to constants f'(r) is log r for "kl", log r - log(1 + r) for "js", and log(1 + r)
    for "log_d". For "kl" and γ = 1 it is Langevin in the energy alone: the prior is not in it,
    and the law of the samples is not the model's. The scale of E matters, and its c for all but
    "kl".

    Args:
        gebm: the model.
        num_samples: N.
        divergence: "kl", "js" or "log_d".
        num_steps: K.
        step_size: η; under a prior of bounded support, in unconstrained coordinates.
        noise: γ >= 0, of the entropy; 0.01 in the paper.
        batch_size: samples that are moved at once.
        generator: source of all noise; torch's global ones are left as they were.
        progress: show a progress bar.

    Returns:
        ``Refined``, at the cost of N K gradients.

    Raises:
        ValueError: an argument is out of range, or the steps ran off.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> source = torch.Generator().manual_seed(0)
        >>> discriminator_gradient_flow(gebm, 7, num_steps=10, generator=source).num_gradients
        70
    """
    check_walk(num_steps, step_size)
    check_in_range("noise", noise, 0.0)
    derivative = _FLOWS[check_choice("divergence", divergence, _FLOWS)]
    counted = Counted(check_gebm(gebm).latent_energy)
    to_latent, from_latent, _ = gebm.base.latent_prior.coordinates()
    generator = generator_on(gebm.base.latent_prior.like.device, generator)

    def move(z: Tensor) -> Tensor:
        u = from_latent(z)
        constant = gebm.log_partition.detach()
        for _ in range(num_steps):
            slope = evaluate(lambda v: derivative(counted(to_latent(v)) + constant), u).z_grad
            u = u - step_size * slope + (2 * noise * step_size) ** 0.5 * normal(u, generator)
        return _not_run_off(to_latent(u))

    return refine_in_batches(
        gebm,
        counted,
        move,
        num_samples,
        batch_size,
        generator=generator,
        progress=progress,
        name="DG-flow",
    )


def _steepest(
    gebm: GEBM, counted: Counted, num_pairs: int, batch_size: int, generator: torch.Generator
) -> float:
    """Largest slope of E∘G between pairs of draws."""
    z = draw_latents(gebm, 2 * num_pairs, generator)
    with torch.no_grad(), gebm.frozen():
        energy = torch.cat([counted(part) for part in torch.split(z, batch_size)])
    rise = (energy[:num_pairs] - energy[num_pairs:]).abs()
    steepest = rise / torch.linalg.vector_norm(z[:num_pairs] - z[num_pairs:], dim=1)
    largest = float(check_finite("slope of the energy", steepest).max())
    if largest == 0:
        raise ValueError(
            "lipschitz: expected an energy that varies; got one value at all draws; give a number"
        )
    return largest


def _into_support(gebm: GEBM) -> Callable[[Tensor], Tensor]:
    prior = gebm.base.latent_prior
    if isinstance(prior, UniformPrior):
        return lambda z: z.clamp(prior.low, prior.high)
    if not prior.is_unconstrained:
        raise ValueError(
            "gebm: expected a prior on all of R^D, or UniformPrior; got one with support "
            f"{prior.support}, which gradient steps would leave"
        )
    return lambda z: z


def _not_run_off(z: Tensor) -> Tensor:
    bad = int((~torch.isfinite(z)).any(-1).sum())
    if bad:
        raise ValueError(
            f"step_size: expected steps that stay finite; got {bad} of {len(z)} samples that ran "
            "off; lower it"
        )
    return z
