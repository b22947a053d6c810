"""Replica exchange between the reference and the target, around any local kernel."""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.global_moves import propose
from pyro_gebm.mcmc.kernel import Around, Info, Kernel, KernelState, evaluate, shared_settings
from pyro_gebm.mcmc.random import Generator, shared_parity, uniform
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.mcmc.tuning import Tuning


class Replicas(NamedTuple):
    """Positions of all levels while they are exchanged."""

    z: Tensor
    """(K, C, D)."""
    energy: Tensor
    """E = U - U_0, (K, C)."""
    accept_prob: Tensor
    """Of the exchange of a level with the next hotter one, (K, C); NaN where none was tried."""


@final
@dataclass(frozen=True, kw_only=True)
class ReplicaExchange(Around):
    """Parallel tempering (Geyer 1991; Syed et al. 2022) along U_λ = U_0 + λ (U - U_0).

    A batch holds a replica of every chain at each λ of the ladder, coldest (λ = 1) last. A step
    moves all by the local kernel, each level with its own step size and masses (the number
    of steps of HMC and ChEES is one for all); then the hottest level is
    offered an exact draw from the reference, which stands for a replica at λ = 0, and
    neighbours are exchanged with probability min(1, exp((λ_i - λ_j)(E_i - E_j))), E = U - U_0,
    even and odd pairs in turn. For a GEBM λ multiplies β on the energy only, and the reference
    is the base. It costs as many times the local kernel as there are levels, and a gradient.

    Args:
        local: the kernel within a level.
        ladder: 0 < λ_1 < ... < λ_K = 1.
        reference: the law at λ = 0.
    """

    ladder: tuple[float, ...]
    reference: Reference

    @property
    def name(self) -> str:
        """That of the local kernel."""
        return f"tempered {self.local.name}"

    @property
    def num_levels(self) -> int:
        """K."""
        return len(self.ladder)

    def level_potential(self, potential_fn: PotentialFn) -> PotentialFn:
        """U_λ of every replica of the batch."""

        def tempered(z: Tensor) -> Tensor:
            chains = len(z) // self.num_levels
            each = self._lambdas(z).repeat_interleave(chains)
            # At λ = 1 this is U itself, without rounding.
            return (1 - each) * self.reference.potential_fn(z) + each * potential_fn(z)

        return tempered

    def init(self, potential_fn: PotentialFn, z: Tensor) -> KernelState:
        """State of all replicas, ``z`` (K · C, D), level after level."""
        return self.local.init(self.level_potential(potential_fn), z)

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """A transition of every replica, and one round of exchanges."""
        tempered = self.level_potential(potential_fn)
        state, info = self.local.step(tempered, state, tuning, generator=generator)
        replicas = self._refresh(potential_fn, self._replicas(state), generator)
        replicas = self._exchange(replicas, generator)
        z = replicas.z.reshape(state.z.shape)
        fresh = evaluate(tempered, z)._replace(momentum=state.momentum)
        accept_prob = replicas.accept_prob.reshape(len(z))
        return fresh, info._replace(num_steps=info.num_steps + 1, swap_accept_prob=accept_prob)

    def _lambdas(self, z: Tensor) -> Tensor:
        return z.new_tensor(self.ladder)

    def _replicas(self, state: KernelState) -> Replicas:
        chains, dim = len(state.z) // self.num_levels, state.z.shape[1]
        with torch.no_grad():
            above = state.potential_energy - self.reference.potential_fn(state.z)
        energy = above.view(-1, chains) / self._lambdas(state.z)[:, None]
        return Replicas(state.z.view(-1, chains, dim), energy, torch.full_like(energy, torch.nan))

    def _refresh(
        self, potential_fn: PotentialFn, replicas: Replicas, generator: Generator
    ) -> Replicas:
        """Exchange the hottest level with exact draws from the reference."""
        fresh = propose(self.reference, replicas.z[0][:, None], generator)[:, 0]
        with torch.no_grad():
            energy = potential_fn(fresh) - self.reference.potential_fn(fresh)
        gain = self.ladder[0] * (replicas.energy[0] - energy)
        accept_prob = gain.clamp(max=0).exp().masked_fill(~torch.isfinite(energy), 0.0)
        take = uniform(accept_prob, generator) < accept_prob
        z, energies, told = (field.clone() for field in replicas)
        z[0] = torch.where(take[:, None], fresh, z[0])
        energies[0] = torch.where(take, energy, energies[0])
        told[0] = accept_prob
        return Replicas(z, energies, told)

    def _exchange(self, replicas: Replicas, generator: Generator) -> Replicas:
        """Exchange neighbours, every other pair; chains do it each for themselves."""
        noise = uniform(replicas.energy.reshape(-1), generator).view_as(replicas.energy)
        z, energy, told = (field.clone() for field in replicas)
        for hot in range(shared_parity(generator), self.num_levels - 1, 2):
            cold = hot + 1
            gain = (self.ladder[hot] - self.ladder[cold]) * (energy[hot] - energy[cold])
            told[cold] = gain.clamp(max=0).exp()
            swap = noise[cold] < told[cold]
            pair = [cold, hot]
            z[[hot, cold]] = torch.where(swap[None, :, None], z[pair], z[[hot, cold]])
            energy[[hot, cold]] = torch.where(swap[None], energy[pair], energy[[hot, cold]])
        return Replicas(z, energy, told)


def temper(local: Kernel, ladder: tuple[float, ...], reference: Reference) -> ReplicaExchange:
    """Replica exchange around ``local``, with its settings of adaptation."""
    return ReplicaExchange(
        local=local, ladder=ladder, reference=reference, **shared_settings(local)
    )
