"""Symplectic integration of Hamiltonian dynamics: a step, and a whole trajectory.

Momenta are scaled, p = M^(-1/2) r ~ N(0, I), and so are steps: the equations need no mass matrix,
and a leapfrog step within a trajectory costs two operations beside its gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.gradients import step_with
from pyro_gebm.mcmc.kernel import Info, KernelState, acceptance, evaluate, total_energy
from pyro_gebm.mcmc.tuning import Tuning


def leapfrog(
    potential_fn: PotentialFn, state: KernelState, momentum: Tensor, drift: Tensor, kick: Tensor
) -> tuple[KernelState, Tensor]:
    """One leapfrog step; one gradient, since the one at the start travels in ``state``.

    p ← p - k/2 ∇U(z);  z ← z + d p;  p ← p - k/2 ∇U(z), with d = k = ε M^(-1/2) or fitted to a
    normal. Second order, reversible and volume preserving (Neal 2011, section 2.3).

    Args:
        potential_fn: (C, D) -> (C,).
        state: where the step starts.
        momentum: p, (C, D).
        drift: d, (C, D).
        kick: k, (C, D); both negative go backward in time.

    Returns:
        The state at the new position and the new momentum (C, D).
    """
    half = torch.addcmul(momentum, kick, state.z_grad, value=-0.5)
    end = evaluate(potential_fn, torch.addcmul(state.z, drift, half))
    return end, torch.addcmul(half, kick, end.z_grad, value=-0.5)


class Proposal(NamedTuple):
    """Where a trajectory ends."""

    state: KernelState
    momentum: Tensor
    """(C, D)."""
    info: Info


class Landing(NamedTuple):
    """What the end of a trajectory tells of it."""

    momentum: Tensor
    """At the end, (C, D)."""
    hamiltonian: Tensor
    """At the start, (C,)."""
    energy_error: Tensor
    accept_prob: Tensor
    diverging: Tensor

    def info(self, steps: Tensor) -> Info:
        """The same for the reader, with the number of steps, (C,) int64."""
        return Info(self.accept_prob, self.diverging, steps, self.hamiltonian, self.energy_error)


def trajectory(
    potential_fn: PotentialFn,
    state: KernelState,
    tuning: Tuning,
    num_steps: int,
    momentum: Tensor,
) -> Proposal:
    """``num_steps`` leapfrog steps from ``momentum`` (C, D): the proposal, not yet accepted."""
    inputs = cruise(potential_fn, state, tuning, num_steps - 1, momentum)
    z, energy, gradient, flow = step_with(potential_fn, hop, inputs)(*inputs)
    end = KernelState(z, energy, gradient)
    landing = land(state.potential_energy, momentum, flow, tuning.strides().half_kick, end)
    return Proposal(end, landing.momentum, landing.info(step_counts(num_steps, state)))


def cruise(
    potential_fn: PotentialFn, state: KernelState, tuning: Tuning, num_hops: int, momentum: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The first hops of a trajectory: what the one after them starts from, but the potential.

    The last half kick of a leapfrog step and the first of the next are one.
    """
    drift, kick, half_kick = tuning.strides()
    inputs = state.z, state.z_grad, momentum, drift, half_kick
    if num_hops:
        step = step_with(potential_fn, hop, inputs)
        for _ in range(num_hops):
            z, _, gradient, flow = step(*inputs)
            inputs = z, gradient, flow, drift, kick
    return inputs


def hop(
    potential_fn: PotentialFn,
    z: Tensor,
    gradient: Tensor,
    flow: Tensor,
    drift: Tensor,
    kick: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A kick, a drift and the gradient there: z, U, ∇U and the momentum."""
    flow = torch.addcmul(flow, kick, gradient, value=-1.0)
    end = evaluate(potential_fn, torch.addcmul(z, drift, flow))
    return end.z, end.potential_energy, end.z_grad, flow


def arrive_at(potential_fn: PotentialFn, z: Tensor) -> KernelState:
    """The state at ``z`` (C, D), by a hop of length zero: compiled once with all others."""
    still = torch.zeros_like(z)
    inputs = z, still, still, still, still
    return KernelState(*step_with(potential_fn, hop, inputs)(*inputs)[:3])


def land(
    potential_energy: Tensor, momentum: Tensor, flow: Tensor, half_kick: Tensor, end: KernelState
) -> Landing:
    """The last half kick of a trajectory, and what is told of it.

    Args:
        potential_energy: U at the start, (C,).
        momentum: at the start, (C, D).
        flow: before the last half kick, (C, D).
        half_kick: (C, D).
        end: where it ends.
    """
    before = total_energy(potential_energy, momentum)
    last = torch.addcmul(flow, half_kick, end.z_grad, value=-1.0)
    error = total_energy(end.potential_energy, last) - before
    return Landing(last, before, error, *acceptance(error, end.z))


def step_counts(num_steps: int, state: KernelState) -> Tensor:
    """The same number of steps for every chain, (C,) int64."""
    return torch.full_like(state.potential_energy, num_steps, dtype=torch.int64)
