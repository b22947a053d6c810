"""Kinetic (underdamped) Langevin dynamics, unadjusted."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_choice, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.kernel import (
    Info,
    Kernel,
    KernelState,
    acceptance,
    evaluate,
    kinetic_energy,
    select,
    total_energy,
)
from pyro_gebm.mcmc.langevin import warming_mala
from pyro_gebm.mcmc.random import Generator, normal
from pyro_gebm.mcmc.tuning import Tuning

SCHEMES = ("BAOAB", "ABOBA")


@final
@dataclass(frozen=True, kw_only=True)
class Kinetic(Kernel):
    """Kinetic Langevin: dz = M^(-1/2) p dt, dp = -M^(-1/2)∇U dt - κ p dt + √(2κ) dW, always taken.

    A step of length ε splits the flow into drift A, kick B and refreshment O, which sets
    p ← e^(-κε) p + √(1 - e^(-2κε)) ξ. "BAOAB" (Leimkuhler and Matthews 2013) carries its
    gradient and costs one; in the position its error is the smallest of its kind. "ABOBA"
    is "Algorithm 2" of the GEBM paper, with one gradient half way and, here, a second one
    at the end, where the state is reported. The momentum persists in the state.

    Biased by O(ε²). ``accept_prob`` is what the energy error of the deterministic parts would
    have given a correction; a step that diverges is not taken and its momentum is reversed.
    Warm-up runs MALA and tunes ε to that acceptance.

    Args:
        friction: κ, per unit of time in scaled coordinates; large gives ``Langevin``.
        scheme: "BAOAB" or "ABOBA".

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> kernel = Kinetic(friction=2.0)
        >>> state = kernel.init(lambda z: 0.5 * (z**2).sum(-1), torch.zeros(3, 2))
        >>> tuning = Tuning(step_size=torch.full((3,), 0.5), inverse_mass_matrix=torch.ones(2))
        >>> rng = torch.Generator().manual_seed(0)
        >>> state, info = kernel.step(
        ...     lambda z: 0.5 * (z**2).sum(-1), state, tuning, generator=rng)
        >>> state.momentum.shape
        torch.Size([3, 2])
    """

    target_accept_prob: ClassVar[float] = 0.95

    friction: float = 1.0
    scheme: str = "BAOAB"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_in_range("friction", self.friction, 0.0, open_low=True)
        check_choice("scheme", self.scheme, SCHEMES)
        check_choice("integrator", self.integrator, ("leapfrog",))

    def for_warmup(self) -> Kernel:
        """MALA with the same settings."""
        return warming_mala(self)

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """One step of every chain; one gradient, or two with "ABOBA"."""
        if state.momentum is None:
            state = state._replace(momentum=normal(state.z, generator))
        keep = (-self.friction * tuning.step_size).exp()[:, None]
        noise = normal(state.z, generator)
        move = _baoab if self.scheme == "BAOAB" else _aboba
        end, heat = move(potential_fn, state, tuning.strides().kick, keep, noise)
        assert state.momentum is not None and end.momentum is not None
        before = total_energy(state.potential_energy, state.momentum)
        error = total_energy(end.potential_energy, end.momentum) - before - heat
        accept_prob, diverging = acceptance(error, end.z)
        gradients = 1 if self.scheme == "BAOAB" else 2
        steps = torch.full_like(before, gradients, dtype=torch.int64)
        info = Info(accept_prob, diverging, steps, hamiltonian=before, energy_error=error)
        stay = state._replace(momentum=-state.momentum)
        return select(diverging, stay, end), info


def _refresh(momentum: Tensor, keep: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The O part, and the kinetic energy (C,) that it brought."""
    fresh = keep * momentum + (1 - keep.square()).sqrt() * noise
    return fresh, kinetic_energy(fresh) - kinetic_energy(momentum)


def _baoab(
    potential_fn: PotentialFn, state: KernelState, scale: Tensor, keep: Tensor, noise: Tensor
) -> tuple[KernelState, Tensor]:
    assert state.momentum is not None
    momentum = torch.addcmul(state.momentum, scale, state.z_grad, value=-0.5)
    z = torch.addcmul(state.z, scale, momentum, value=0.5)
    momentum, heat = _refresh(momentum, keep, noise)
    end = evaluate(potential_fn, torch.addcmul(z, scale, momentum, value=0.5))
    momentum = torch.addcmul(momentum, scale, end.z_grad, value=-0.5)
    return end._replace(momentum=momentum), heat


def _aboba(
    potential_fn: PotentialFn, state: KernelState, scale: Tensor, keep: Tensor, noise: Tensor
) -> tuple[KernelState, Tensor]:
    assert state.momentum is not None
    middle = evaluate(potential_fn, torch.addcmul(state.z, scale, state.momentum, value=0.5))
    momentum = torch.addcmul(state.momentum, scale, middle.z_grad, value=-0.5)
    momentum, heat = _refresh(momentum, keep, noise)
    momentum = torch.addcmul(momentum, scale, middle.z_grad, value=-0.5)
    end = evaluate(potential_fn, torch.addcmul(middle.z, scale, momentum, value=0.5))
    return end._replace(momentum=momentum), heat
