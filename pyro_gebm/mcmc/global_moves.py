"""Global moves: iterated sampling-importance-resampling with proposals from the reference."""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_count
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.integrators import arrive_at
from pyro_gebm.mcmc.kernel import KernelState, select
from pyro_gebm.mcmc.random import Generator, draw_seed, sample_seeded, uniform
from pyro_gebm.mcmc.reference import Reference


@final
@dataclass(frozen=True, kw_only=True)
class GlobalMoves:
    """Jumps between modes beside a local kernel: i-SIR (Samsonov et al. 2022, arXiv 2111.02702).

    After a transition of the local kernel, with probability 1/every (all chains at once; with
    NUTS each chain after one in ``every`` of its own): draw n proposals from the
    reference (for a GEBM z' ~ η), weigh them and the current position by w = exp(U_0 - U)
    (for a GEBM exp(-β E(G(z)))), and draw one of the n + 1. The target stays invariant. The
    proposals need no gradient and take one batched forward pass; a move needs one gradient,
    where it leads.

    Args:
        num_proposals: n.
        every: transitions of the local kernel per global move; on average where all chains go
            in step.

    Raises:
        ValueError: a setting is not a whole number >= 1.

    Example:
        >>> GlobalMoves(num_proposals=32, every=5)
        GlobalMoves(num_proposals=32, every=5)
    """

    num_proposals: int = 32
    every: int = 5

    def __post_init__(self) -> None:
        check_count("num_proposals", self.num_proposals)
        check_count("every", self.every)


class Jump(NamedTuple):
    """What a global move of some chains gives."""

    z: Tensor
    """Where the chains are now, (R, D)."""
    accept_prob: Tensor
    """Probability of having moved, (R,)."""


def jump(
    potential_fn: PotentialFn,
    reference: Reference,
    z: Tensor,
    potential_energy: Tensor,
    proposals: Tensor,
    noise: Tensor,
) -> Jump:
    """One move of chains at ``z`` (R, D) with ``proposals`` (R, n, D) and uniforms (R,).

    A proposal whose density is not finite has weight zero.
    """
    rows, n, dim = proposals.shape
    log_weight = log_weights(potential_fn, reference, proposals.reshape(rows * n, dim))
    with torch.no_grad():
        current = reference.potential_fn(z) - potential_energy
    share = torch.cat([current[:, None], log_weight.view(rows, n)], 1).softmax(1)
    chosen = (share.cumsum(1) < noise[:, None]).sum(1).clamp(max=n)
    moved = chosen > 0
    place = torch.arange(rows, device=z.device), (chosen - 1).clamp(min=0)
    return Jump(torch.where(moved[:, None], proposals[place], z), 1 - share[:, 0])


def log_weights(potential_fn: PotentialFn, reference: Reference, z: Tensor) -> Tensor:
    """log w = U_0 - U of proposals (N, D), (N,); -inf where that is not finite."""
    with torch.no_grad():
        log_weight = reference.potential_fn(z) - potential_fn(z)
    return torch.where(torch.isfinite(log_weight), log_weight, -torch.inf)


def propose(reference: Reference, like: Tensor, generator: Generator) -> Tensor:
    """Draws from the reference of the shape of ``like`` (C, n, D), by block of chains."""
    chains, n, _ = like.shape
    if isinstance(generator, torch.Generator):
        counts, seeds = [chains * n], [draw_seed(generator)]
    else:
        counts = [len(part) * n for part in torch.split(like, generator.size)]
        seeds = [draw_seed(block) for block in generator.blocks[: len(counts)]]
    return sample_seeded(reference.sample, counts, seeds, like).view_as(like)


def jump_all(
    moves: GlobalMoves,
    potential_fn: PotentialFn,
    reference: Reference,
    state: KernelState,
    generator: Generator,
) -> tuple[KernelState, Tensor]:
    """A global move of every chain; one gradient. Returns the acceptance probability, too."""
    like = state.z[:, None].expand(-1, moves.num_proposals, -1)
    proposals = propose(reference, like, generator)
    noise = uniform(state.potential_energy, generator)
    result = jump(potential_fn, reference, state.z, state.potential_energy, proposals, noise)
    fresh = arrive_at(potential_fn, result.z)._replace(momentum=state.momentum)
    # A chain could never leave a point without gradient by a trajectory.
    usable = torch.isfinite(fresh.potential_energy + fresh.z_grad.sum(-1))
    return select(usable, fresh, state), result.accept_prob
