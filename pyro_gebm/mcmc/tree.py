"""The trees that NUTS grows, one for each chain of a batch, updated in place.

What belongs together lies in one tensor, so that a chain's tree is started, joined or read by
a handful of operations: the cost of a step of the batch is in their number. A point of phase
space, with all that the next leapfrog step needs, is a row of 3D + 1 numbers: position,
gradient, momentum, potential.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm.mcmc.kernel import Info, KernelState

ENERGY, DRAW_ERROR, WEIGHT, SUB_ERROR, SUB_WEIGHT, STEP, ACCEPT, WORST = range(8)
LEAF, DEPTH, STEPS = range(3)
WHOLE, SUB = range(2)


class Tree(NamedTuple):
    """The trajectory of every chain while it doubles; its tensors are its own."""

    left: Tensor
    """Leftmost point, (C, 3D + 1)."""
    right: Tensor
    """Rightmost point."""
    draw: Tensor
    """The point chosen so far."""
    edge: Tensor
    """Newest leaf of the subtree, from which the next step starts."""
    sub_draw: Tensor
    """The point chosen from the subtree."""
    numbers: Tensor
    """H₀; H - H₀ of the draw; log Σ exp(H₀ - H) over the leaves; the same two of the subtree;
    signed step ε; Σ acceptance probability; H - H₀ of largest size, (C, 8)."""
    counts: Tensor
    """Leaves of the subtree (it is whole at 2^depth), doublings, gradients, (C, 3) int64."""
    sums: Tensor
    """Σ p over the leaves of the tree and of the subtree, (C, 2, D)."""
    first: Tensor
    """p at the first leaf of each binary subtree still open, (C, K + 1, D); the last is scrap."""
    before: Tensor
    """Σ p of the subtree up to there, less half of that p, (C, K + 1, D)."""
    diverging: Tensor
    """The newest leaf diverged, (C,) bool."""
    done: Tensor
    """The tree is finished and must be planted anew before the next step, (C,) bool."""
    every: Tensor
    """0 ... C - 1."""

    @property
    def depth(self) -> Tensor:
        """Doublings, (C,), a view."""
        return self.counts[:, DEPTH]

    @property
    def num_slots(self) -> int:
        """K, the largest depth."""
        return self.first.shape[1] - 1


class Ended(NamedTuple):
    """What trees tell when they end, a row for each."""

    point: Tensor
    """Where the chain is now, (R, 3D + 1); its momentum means nothing."""
    numbers: Tensor
    """Mean acceptance probability, H₀, H - H₀ of the draw and the one of largest size, (R, 4)."""
    counts: Tensor
    """Doublings, gradients, (R, 2) int64."""
    flags: Tensor
    """Diverged, at the largest depth, (R, 2) bool."""


def pack(state: KernelState, momentum: Tensor) -> Tensor:
    """A point of phase space as one row per chain."""
    return torch.cat([state.z, state.z_grad, momentum, state.potential_energy[:, None]], 1)


def unpack(point: Tensor) -> tuple[KernelState, Tensor]:
    """State and momentum, views of ``point``."""
    dim = point.shape[1] // 3
    z, gradient, momentum, energy = torch.split(point, [dim, dim, dim, 1], 1)
    return KernelState(z, energy[:, 0], gradient), momentum


def momentum_of(point: Tensor) -> Tensor:
    """p, a view of ``point``."""
    dim = point.shape[-1] // 3
    return point.narrow(-1, 2 * dim, dim)


def summary(
    point: Tensor,
    numbers: Tensor,
    counts: Tensor,
    diverging: Tensor,
    max_tree_depth: int,
) -> Ended:
    """What is told of trees, given where their chains are and rows of their fields."""
    _, depth, num_steps = counts.unbind(1)
    accept_prob = numbers[:, ACCEPT] / num_steps.clamp(min=1)
    told = accept_prob, numbers[:, ENERGY], numbers[:, DRAW_ERROR], numbers[:, WORST]
    flags = diverging, depth >= max_tree_depth
    return Ended(point, torch.stack(told, 1), counts[:, DEPTH:], torch.stack(flags, 1))


def told(ended: Ended) -> tuple[KernelState, Info]:
    """Where chains are whose trees have ended, and what the reader is told of them: views."""
    accept_prob, hamiltonian, error, worst = ended.numbers.unbind(1)
    depth, num_steps = ended.counts.unbind(1)
    diverging, reached = ended.flags.unbind(1)
    info = Info(
        accept_prob=accept_prob,
        diverging=diverging,
        num_steps=num_steps,
        hamiltonian=hamiltonian,
        energy_error=error,
        tree_depth=depth,
        max_energy_error=worst,
        reached_max_treedepth=reached,
    )
    return unpack(ended.point)[0], info


def new_trees(state: KernelState, max_tree_depth: int) -> Tree:
    """Room for a tree of every chain, none planted yet."""
    z, chains = state.z, len(state.z)
    flag = torch.zeros(chains, dtype=torch.bool, device=z.device)
    slots = z.new_zeros(chains, max_tree_depth + 1, z.shape[1])
    left, right, draw, edge, sub_draw = z.new_zeros(5, chains, 3 * z.shape[1] + 1)
    return Tree(
        left=left,
        right=right,
        draw=draw,
        edge=edge,
        sub_draw=sub_draw,
        numbers=z.new_zeros(chains, 8),
        counts=torch.zeros(chains, 3, dtype=torch.int64, device=z.device),
        sums=z.new_zeros(chains, 2, z.shape[1]),
        first=slots,
        before=slots.clone(),
        diverging=flag,
        done=flag.clone(),
        every=torch.arange(chains, device=z.device),
    )


@lru_cache(maxsize=8)
def checkpoint_table(num_slots: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where a leaf is stored, and the stored leaves that it closes a subtree with.

    With the leaves of a subtree numbered from 0, leaf n opens or closes binary subtrees; those
    still open are told apart by the 1-bits of n // 2, and an odd n closes as many as it has
    trailing 1-bits.

    Returns:
        Slot of each leaf n < 2^num_slots (``num_slots``, scrap, if it is odd), and which slots
        it closes, (2^num_slots, num_slots) bool.
    """
    leaf = torch.arange(2**num_slots, device=device)
    places = torch.arange(num_slots, device=device)
    bits = (leaf[:, None] >> places) & 1
    last = bits[:, 1:].sum(-1)
    closed = bits.cumprod(-1).sum(-1)
    odd = bits[:, 0] == 1
    closes = (places <= last[:, None]) & (places > (last - closed)[:, None]) & odd[:, None]
    return torch.where(odd, num_slots, last), closes
