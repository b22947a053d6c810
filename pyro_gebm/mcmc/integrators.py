"""Symplectic integration of Hamiltonian dynamics: a step, and a whole trajectory."""

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.kernel import (
    Info,
    KernelState,
    Tuning,
    acceptance,
    draw_momentum,
    evaluate,
    hamiltonian,
)


def leapfrog(
    potential_fn: PotentialFn,
    state: KernelState,
    momentum: Tensor,
    step: Tensor,
    tuning: Tuning,
) -> tuple[KernelState, Tensor]:
    """One leapfrog step; one gradient, since the one at the start travels in ``state``.

    r ← r - ε/2 ∇U(z);  z ← z + ε M⁻¹ r;  r ← r - ε/2 ∇U(z). Second order, reversible and
    volume preserving (Neal 2011, section 2.3).

    Args:
        potential_fn: (C, D) -> (C,).
        state: where the step starts.
        momentum: r, (C, D).
        step: signed step ε, (C,); negative goes backward in time.
        tuning: only its mass matrix is read.

    Returns:
        The state at the new position and the new momentum (C, D).
    """
    epsilon = step[:, None]
    half = momentum - 0.5 * epsilon * state.z_grad
    end = evaluate(potential_fn, state.z + epsilon * tuning.inverse_mass_matrix * half)
    return end, half - 0.5 * epsilon * end.z_grad


def trajectory(
    potential_fn: PotentialFn,
    state: KernelState,
    tuning: Tuning,
    num_steps: int,
    generator: torch.Generator,
) -> tuple[KernelState, Info]:
    """Fresh momentum and ``num_steps`` leapfrog steps: the proposal, not yet accepted."""
    start = draw_momentum(state, tuning, generator)
    before = hamiltonian(state.potential_energy, start, tuning.inverse_mass_matrix)
    end, momentum = state, start
    for _ in range(num_steps):
        end, momentum = leapfrog(potential_fn, end, momentum, tuning.step_size, tuning)
    after = hamiltonian(end.potential_energy, momentum, tuning.inverse_mass_matrix)
    accept_prob, diverging = acceptance(after - before, end)
    steps = torch.full_like(before, num_steps, dtype=torch.int64)
    return end, Info(accept_prob, diverging, steps, hamiltonian=before, energy_error=after - before)
