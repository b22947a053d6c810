"""Hamiltonian Monte Carlo with a jittered trajectory length."""

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from pyro_gebm._checks import check_count, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.gradients import step_with
from pyro_gebm.mcmc.integrators import Landing, Proposal, cruise, hop, land, step_counts
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, select
from pyro_gebm.mcmc.random import Generator, normal, shared_jitter, uniform
from pyro_gebm.mcmc.tuning import Tuning


@final
@dataclass(frozen=True, kw_only=True)
class HMC(Kernel):
    """Hamiltonian Monte Carlo: L leapfrog steps, then accept or reject (Neal 2011).

    Steps are fitted to the target's curvature where that pays (see ``Kernel``).

    The length of each trajectory is jittered, because a fixed one resonates with
    near-Gaussian potentials: their variances come out wrong at high acceptance. All chains
    of a batch share the jitter of an iteration, which does not depend on their states, so
    every transition leaves the target invariant.

    Args:
        trajectory_length: mean of L·ε in units of the scaled coordinates, where a
            standard normal takes π/2 to forget its start.
        jitter: each length is drawn from U(1 - jitter, 1 + jitter) times the mean.
        max_num_steps: limit on L.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> kernel = HMC(trajectory_length=2.0)
        >>> state = kernel.init(lambda z: 0.5 * (z**2).sum(-1), torch.zeros(3, 2))
        >>> tuning = Tuning(step_size=torch.full((3,), 0.5), inverse_mass_matrix=torch.ones(2))
        >>> rng = torch.Generator().manual_seed(0)
        >>> state, info = kernel.step(
        ...     lambda z: 0.5 * (z**2).sum(-1), state, tuning, generator=rng)
        >>> state.z.shape, info.num_steps.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    integrator: str = "fitted"
    trajectory_length: float = math.pi / 2
    jitter: float = 0.5
    max_num_steps: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_in_range("trajectory_length", self.trajectory_length, 0.0, open_low=True)
        check_in_range("jitter", self.jitter, 0.0, 1.0)
        check_count("max_num_steps", self.max_num_steps)

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """One trajectory of every chain, all of the same number of steps."""
        draw = shared_jitter(generator)
        length = self.trajectory_length * (1 + self.jitter * (2 * draw - 1))
        num_steps = count_steps(length, tuning.typical_step(), self.max_num_steps)
        moved, proposal = metropolis(potential_fn, state, tuning, num_steps, generator)
        return moved, with_length(proposal.info, tuning)


def count_steps(length: float, step: float, max_num_steps: int) -> int:
    """Steps that cover ``length``, between 1 and the limit."""
    if length >= max_num_steps * step:  # also a step that shrank to zero
        return max_num_steps
    # 1e-4: so that a length of exactly L steps is not rounded up to L + 1.
    return max(1, math.ceil(length / step - 1e-4))


def metropolis(
    potential_fn: PotentialFn,
    state: KernelState,
    tuning: Tuning,
    num_steps: int,
    generator: Generator,
) -> tuple[KernelState, Proposal]:
    """Fresh momentum, ``num_steps`` leapfrog steps, one accept/reject per chain."""
    momentum, noise = normal(state.z, generator), uniform(state.potential_energy, generator)
    first = cruise(potential_fn, state, tuning, num_steps - 1, momentum)
    inputs = *first, tuning.strides().half_kick, *state[:3], momentum, noise
    found = step_with(potential_fn, _arrive, inputs)(*inputs)
    moved, end, landing = KernelState(*found[:3]), KernelState(*found[3:6]), Landing(*found[6:])
    return moved, Proposal(end, landing.momentum, landing.info(step_counts(num_steps, state)))


def _arrive(
    potential_fn: PotentialFn,
    z: Tensor,
    gradient: Tensor,
    flow: Tensor,
    drift: Tensor,
    kick: Tensor,
    half_kick: Tensor,
    *rest: Tensor,
) -> tuple[Tensor, ...]:
    """The last hop of a trajectory and all that follows: where chains are, where it ends, and why.

    ``rest``: z, U and ∇U where it started, its momentum there, (C, D), and uniforms (C,).
    """
    start, (momentum, noise) = KernelState(*rest[:3]), rest[3:]
    *there, flow = hop(potential_fn, z, gradient, flow, drift, kick)
    end = KernelState(*there)
    landing = land(start.potential_energy, momentum, flow, half_kick, end)
    moved = select(noise < landing.accept_prob, end, start)
    return *moved[:3], *end[:3], *landing


def with_length(info: Info, tuning: Tuning) -> Info:
    """Info that tells the length of its trajectory, L ε."""
    return info._replace(trajectory_length=info.num_steps * tuning.step_size)
