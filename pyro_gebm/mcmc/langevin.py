"""Overdamped Langevin kernels: one leapfrog step with fresh momentum, corrected or not."""

from dataclasses import dataclass
from typing import ClassVar, final

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.hmc import metropolis
from pyro_gebm.mcmc.integrators import trajectory
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, select, shared_settings
from pyro_gebm.mcmc.random import Generator, normal
from pyro_gebm.mcmc.tuning import Tuning


@final
@dataclass(frozen=True, kw_only=True)
class MALA(Kernel):
    """Metropolis-adjusted Langevin: z' = z - γ M⁻¹∇U(z) + √(2γ) M^(-1/2) ξ, then accept/reject.

    It is HMC with one leapfrog step of ε = √(2γ): the energy error of that step is minus
    the log of π(z') q(z|z') / (π(z) q(z'|z)) with log q(z'|z) = -|z' - z + γ∇U(z)|²/(4γ),
    the acceptance ratio of Roberts and Tweedie (1996).

    ``step_size`` is ε. In the other conventions: γ = ε²/2 here and in most of the
    literature; the GEBM authors' code calls γ what is ε² here.
    """

    # The optimum for smooth targets in high dimension (Roberts and Rosenthal 1998).
    target_accept_prob: ClassVar[float] = 0.574

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """One proposal of every chain; one gradient."""
        moved, proposal = metropolis(potential_fn, state, tuning, 1, generator)
        return moved, proposal.info


def warming_mala(kernel: Kernel) -> MALA:
    """MALA with the settings of an unadjusted kernel, which can run off while it is tuned."""
    return MALA(**shared_settings(kernel))


@final
@dataclass(frozen=True, kw_only=True)
class Langevin(Kernel):
    """Unadjusted Langevin (ULA): z' = z - γ M⁻¹∇U(z) + √(2γ) M^(-1/2) ξ, always taken.

    Biased: its stationary law is off by O(γ). The acceptance that a Metropolis correction
    would have had costs nothing here and is reported. Warm-up runs the corrected kernel
    (MALA) and tunes the step to that acceptance: raise ``target_accept_prob`` for less
    bias. Proposals that diverge (non-finite, or an energy error above 1,000 nats) are
    rejected, which is what keeps an unadjusted chain from running off to infinity.

    ``step_size`` is ε = √(2γ). The GEBM authors' code takes γ/2 and √γ: its γ is ε².
    """

    # At 0.8 the variance of a standard normal comes out as 1.24, at 0.95 as about 1.08.
    target_accept_prob: ClassVar[float] = 0.95

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
        """One move of every chain; one gradient."""
        momentum = normal(state.z, generator)
        proposal, _, info = trajectory(potential_fn, state, tuning, 1, momentum)
        return select(info.diverging, state, proposal), info
