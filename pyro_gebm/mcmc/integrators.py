"""Symplectic integration of Hamiltonian dynamics: a step, and a whole trajectory.

Momenta are scaled, p = M^(-1/2) r ~ N(0, I), and so is the step: with s = ε M^(-1/2) the
equations need no mass matrix, and a leapfrog step within a trajectory costs two operations
beside its gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.kernel import Info, KernelState, Tuning, acceptance, evaluate, kinetic_energy


def leapfrog(
    potential_fn: PotentialFn, state: KernelState, momentum: Tensor, scale: Tensor
) -> tuple[KernelState, Tensor]:
    """One leapfrog step; one gradient, since the one at the start travels in ``state``.

    p ← p - s/2 ∇U(z);  z ← z + s p;  p ← p - s/2 ∇U(z). Second order, reversible and
    volume preserving (Neal 2011, section 2.3).

    Args:
        potential_fn: (C, D) -> (C,).
        state: where the step starts.
        momentum: p, (C, D).
        scale: s = ε M^(-1/2), (C, D); negative goes backward in time.

    Returns:
        The state at the new position and the new momentum (C, D).
    """
    half = torch.addcmul(momentum, scale, state.z_grad, value=-0.5)
    end = evaluate(potential_fn, torch.addcmul(state.z, scale, half))
    return end, torch.addcmul(half, scale, end.z_grad, value=-0.5)


class Proposal(NamedTuple):
    """Where a trajectory ends."""

    state: KernelState
    momentum: Tensor
    """(C, D)."""
    info: Info


def trajectory(
    potential_fn: PotentialFn,
    state: KernelState,
    tuning: Tuning,
    num_steps: int,
    momentum: Tensor,
) -> Proposal:
    """``num_steps`` leapfrog steps from ``momentum`` (C, D): the proposal, not yet accepted.

    The two half kicks between steps are one.
    """
    scale = tuning.scale()
    before = state.potential_energy + kinetic_energy(momentum)
    end, flow = state, torch.addcmul(momentum, scale, state.z_grad, value=-0.5)
    for left in range(num_steps, 0, -1):
        end = evaluate(potential_fn, torch.addcmul(end.z, scale, flow))
        flow = torch.addcmul(flow, scale, end.z_grad, value=-1.0 if left > 1 else -0.5)
    error = end.potential_energy + kinetic_energy(flow) - before
    accept_prob, diverging = acceptance(error, end.z)
    steps = torch.full_like(before, num_steps, dtype=torch.int64)
    info = Info(accept_prob, diverging, steps, hamiltonian=before, energy_error=error)
    return Proposal(end, flow, info)
