"""ChEES-HMC: Hamiltonian Monte Carlo that learns its trajectory length across chains."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_count
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.hmc import count_steps, metropolis, with_length
from pyro_gebm.mcmc.integrators import Proposal
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, shared_settings
from pyro_gebm.mcmc.random import Generator, shared_jitter
from pyro_gebm.mcmc.tuning import Tuning

SHORTEST = 0.2
"""Of the longest trajectory. A very short one spends the noise of a fresh momentum for nothing,
and takes from the criterion what tells its maximum from the lesser ones at longer trajectories."""

THRIFT = 0.05
"""The criterion is divided by τ to this power, for longer trajectories cost more."""

FIRST_LENGTH = 2.2
"""Longest trajectory to start from: where the criterion is largest for a standard normal. Noise
could find its lesser maxima, which are at longer ones, from farther away."""


@dataclass(frozen=True, kw_only=True)
class _Jittered(Kernel):
    """HMC of length h τ with h in (0.2, 1), the same for all chains, and τ from the tuning."""

    target_accept_prob: ClassVar[float] = 0.75

    integrator: str = "fitted"
    max_num_steps: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_num_steps", self.max_num_steps)

    def _move(
        self, potential_fn: PotentialFn, state: KernelState, tuning: Tuning, generator: Generator
    ) -> tuple[KernelState, Proposal]:
        longest = tuning.longest()
        longest = FIRST_LENGTH if longest is None else longest
        length = (SHORTEST + (1 - SHORTEST) * shared_jitter(generator)) * longest
        num_steps = count_steps(length, tuning.typical_step(), self.max_num_steps)
        moved, proposal = metropolis(potential_fn, state, tuning, num_steps, generator)
        return moved, proposal._replace(info=with_length(proposal.info, tuning))


@final
@dataclass(frozen=True, kw_only=True)
class ChEES(_Jittered):
    """ChEES-HMC (Hoffman, Radul and Sountsov, AISTATS 2021).

    Trajectories are of length h τ, where h runs through (0.2, 1) evenly (a van der Corput
    sequence, the same for all chains), and warm-up learns τ by gradient ascent on the change
    in the estimator of the expected square, C = ¼ E[(|q' - μ|² - |q - μ|²)²], with q in scaled
    coordinates and expectations over the chains of the batch. All chains take as many
    steps, so that none waits: with many chains nothing is faster. With few, the criterion
    is noisy; take ``HMC`` or ``NUTS``.

    In four things this is not the paper's. h starts at 0.2, not at 0; the criterion is
    C/τ^0.05; and where τ is longer than at the start when the first mass matrix is there, it is
    cut back to that. Without these τ strays, on targets near a normal, to two, four and more times
    what is best, the farther the longer warm-up is. And where values mix more slowly than
    squares, of which the criterion is, τ is made up to a quarter longer at the end of a warm-up
    that learns masses, too, and starts from no tuning. Steps are fitted where that pays (see
    ``Kernel``); the paper's are leapfrog's.

    Args:
        max_num_steps: limit on L.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> kernel = ChEES()
        >>> state = kernel.init(lambda z: 0.5 * (z**2).sum(-1), torch.zeros(3, 2))
        >>> tuning = Tuning(torch.full((3,), 0.5), torch.ones(2), torch.tensor(2.0))
        >>> rng = torch.Generator().manual_seed(0)
        >>> state, info = kernel.step(
        ...     lambda z: 0.5 * (z**2).sum(-1), state, tuning, generator=rng)
        >>> bool((info.num_steps <= 4).all())
        True
    """

    def for_warmup(self) -> Kernel:
        """The same, computing the gradient of the criterion beside."""
        return _LearningChEES(max_num_steps=self.max_num_steps, **shared_settings(self))

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """One trajectory of every chain, all of the same number of steps."""
        moved, proposal = self._move(potential_fn, state, tuning, generator)
        return moved, proposal.info


@final
@dataclass(frozen=True, kw_only=True)
class _LearningChEES(_Jittered):
    """What ChEES runs in warm-up."""

    def first_length(self, step_size: Tensor) -> Tensor:
        """That of a standard normal, but few steps while the scales are unknown."""
        return (20.0 * step_size.median()).clamp(max=FIRST_LENGTH)

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        moved, proposal = self._move(potential_fn, state, tuning, generator)
        gradient = chees_gradient(state.z, proposal, tuning)
        return moved, proposal.info._replace(
            length_gradient=gradient.expand_as(proposal.info.accept_prob)
        )


def chees_gradient(z: Tensor, proposal: Proposal, tuning: Tuning) -> Tensor:
    """Gradient of the criterion in log τ, a scalar, up to a positive factor.

    Of C: t E[(|q' - μ'|² - |q - μ|²) (q' - μ')·p'] for a trajectory of time t; of C/τ^0.05 that
    less 0.05 C. Expectations are over the chains, weighted by their acceptance probabilities;
    what diverged has weight zero.
    """
    weight = proposal.info.accept_prob
    rsqrt = tuning.inverse_mass_matrix.rsqrt()
    start = z * rsqrt
    keep = ~proposal.info.diverging
    # Where a proposal is not finite, its start stands in, with weight zero.
    end = torch.where(keep[:, None], proposal.state.z * rsqrt, start)
    momentum = torch.where(keep[:, None], proposal.momentum, 0.0)
    total = weight.sum()
    # Weighted, too: a chain that is stuck far away is no part of the centre.
    start, end = (q - (weight[:, None] * q).sum(0) / total for q in (start, end))
    change = torch.where(keep, end.square().sum(-1) - start.square().sum(-1), 0.0)
    length = proposal.info.num_steps * tuning.step_size
    pull = change * (length * torch.linalg.vecdot(end, momentum) - THRIFT / 4 * change)
    gradient: Tensor = (weight * pull).sum() / total
    return gradient
