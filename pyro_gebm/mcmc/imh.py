"""Independence Metropolis-Hastings from the reference, for a GEBM its latent prior."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from pyro_gebm._checks import check_choice
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.global_moves import propose
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, acceptance, select
from pyro_gebm.mcmc.random import Generator, uniform
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.mcmc.tuning import Tuning


@final
@dataclass(frozen=True, kw_only=True)
class IMH(Kernel):
    """Independence Metropolis-Hastings: z' ~ η, accepted with min(1, w(z')/w(z)).

    w = exp(U_0 - U) is the density ratio of target and reference; for a GEBM it is
    exp(-β E(G(z))), and the acceptance min(1, exp(β (E(G(z)) - E(G(z'))))). It needs no
    gradient (``num_steps`` counts its evaluations of the potential) and nothing to tune, and
    it freezes where the two laws hardly overlap. ``global_moves=`` offers many such proposals
    at a time beside a local kernel.

    Args:
        reference: what it proposes from; ``sample`` fills it in for a GEBM or a Pyro model.
    """

    adapt_step_size: bool = False
    adapt_mass_matrix: bool = False
    reference: Reference | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("integrator", self.integrator, ("leapfrog",))  # it has none to fit

    def bind(self, reference: Reference | None) -> Kernel:
        """The same kernel, proposing from ``reference`` unless it has one already."""
        return replace(self, reference=self.reference or reference)

    def init(self, potential_fn: PotentialFn, z: Tensor) -> KernelState:
        """State at ``z``; its gradient is not computed and stands as zero."""
        with torch.no_grad():
            return KernelState(z.detach(), potential_fn(z.detach()), torch.zeros_like(z))

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """One proposal of every chain."""
        if self.reference is None:
            raise ValueError(
                "IMH: expected a reference to propose from; got None; sample a GEBM or a Pyro "
                "model, or give IMH(reference=Reference(sample, potential_fn))"
            )
        z = propose(self.reference, state.z[:, None], generator)[:, 0]
        proposal = self.init(potential_fn, z)
        gap = _log_ratio(self.reference.potential_fn, state)
        error = gap - _log_ratio(self.reference.potential_fn, proposal)
        accept_prob, _ = acceptance(error, proposal.z)
        # Not by the size of the error: a proposal may be as bad as it likes.
        diverging = ~torch.isfinite(error)
        accept = uniform(accept_prob, generator) < accept_prob
        steps = torch.ones_like(diverging, dtype=torch.int64)
        return select(accept, proposal, state), Info(accept_prob, diverging, steps)


def _log_ratio(base: PotentialFn, state: KernelState) -> Tensor:
    """log w = U_0 - U, (C,)."""
    with torch.no_grad():
        return base(state.z) - state.potential_energy
