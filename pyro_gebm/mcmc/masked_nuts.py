"""One step of the trees of NUTS without looking at a value: all chains do all, under masks.

``grow_`` of ``nuts`` works on the chains that are concerned, which is less work; but to know which
these are the CPU must wait for the device. This form gives the same numbers, bit for bit, and can
be recorded as a CUDA graph, or compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.gradients import FIRST_CALLS, CapturedPotential, CompiledPotential, record
from pyro_gebm.mcmc.kernel import KernelState, Tuning, acceptance, evaluate, kinetic_energy
from pyro_gebm.mcmc.nuts import grow_, turns
from pyro_gebm.mcmc.tree import (
    LEAF,
    STEP,
    SUB,
    WHOLE,
    Tree,
    checkpoint_table,
    momentum_of,
    pack,
    unpack,
)


class _Leaf(NamedTuple):
    """The newest leaves, and the subtrees with them in."""

    edge: Tensor
    """(C, 3D + 1)."""
    sub_draw: Tensor
    numbers: list[Tensor]
    """The columns of ``Tree.numbers``, (C,) each."""
    total: Tensor
    """Σ p of the subtree, (C, D)."""
    diverging: Tensor
    turning: Tensor
    """A binary subtree that the leaf closes turns, (C,) bool."""


class Halves(NamedTuple):
    """A step before its gradient and after it."""

    drift: Callable[[Tree, Tensor], tuple[Tensor, Tensor, Tensor]]
    settle_: Callable[..., None]


@final
class Grower:
    """Grows the trees of a run by a step at each call: compiled or as a CUDA graph, where wanted.

    Args:
        potential_fn: (C, D) -> (C,). With ``CompiledPotential`` what a step does beside the
            gradient is compiled, too. With ``CapturedPotential`` on a CUDA device all of a step is
            recorded after a few calls and replayed from then on. With any other, and where
            either fails, ``grow_`` does it.
        tree: the trees, which keep their place in memory.
    """

    def __init__(self, potential_fn: PotentialFn, tree: Tree) -> None:
        self._potential_fn, self._tree = potential_fn, tree
        self._graph: Any = None
        self._calls = 0
        self._noise = tree.numbers.new_empty(4, len(tree.numbers))
        self._inverse_mass = torch.empty_like(momentum_of(tree.edge))
        self._recordable = tree.edge.is_cuda and isinstance(potential_fn, CapturedPotential)
        # Held here, where a graph reads it: the cache that it comes from forgets.
        self._slots = checkpoint_table(tree.num_slots, tree.edge.device)

    def __call__(self, tuning: Tuning, noise: Tensor) -> None:
        """What ``grow_`` does with the same arguments."""
        if self._recordable and self._graph is None:
            self._calls += 1
            if self._calls > FIRST_CALLS:
                self._record(tuning, noise)
        potential_fn = self._potential_fn
        if self._graph is not None:
            self._fill(tuning, noise)
            self._graph.replay()
        elif isinstance(potential_fn, CompiledPotential) and potential_fn.compiler.works:
            halves = Halves(potential_fn.companion(_drift), potential_fn.companion(_settle_))
            grow_masked_(potential_fn, self._tree, tuning, noise, self._slots, halves)
        else:
            grow_(potential_fn, self._tree, tuning, noise)

    def _fill(self, tuning: Tuning, noise: Tensor) -> None:
        self._noise.copy_(noise)
        self._inverse_mass.copy_(tuning.inverse_mass_matrix)

    def _record(self, tuning: Tuning, noise: Tensor) -> None:
        assert isinstance(self._potential_fn, CapturedPotential)
        plain = self._potential_fn.potential_fn
        self._fill(tuning, noise)
        still = tuning._replace(inverse_mass_matrix=self._inverse_mass)
        trial = Tree(*(field.clone() for field in self._tree))
        with torch.cuda.device(trial.edge.device):
            recorded = record(
                lambda: grow_masked_(plain, self._tree, still, self._noise, self._slots),
                rehearsal=lambda: grow_masked_(plain, trial, still, self._noise, self._slots),
            )
        self._recordable = False
        if recorded is not None:
            self._graph = recorded[0]


def grow_masked_(
    potential_fn: PotentialFn,
    tree: Tree,
    tuning: Tuning,
    noise: Tensor,
    slots: tuple[Tensor, Tensor],
    halves: Halves | None = None,
) -> None:
    """What ``grow_`` does with the same arguments.

    ``slots`` are of ``checkpoint_table``, ``halves`` compiled ones of this module's.
    """
    halves = halves or Halves(_drift, _settle_)
    z, half, scale = halves.drift(tree, tuning.inverse_mass_matrix)
    state = evaluate(potential_fn, z)
    halves.settle_(tree, state, half, scale, noise, slots)


def _drift(tree: Tree, inverse_mass_matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The leapfrog step up to its gradient: z, the half kicked momentum and the scale, (C, D)."""
    scale = tree.numbers[:, STEP, None] * inverse_mass_matrix.sqrt()
    start, momentum = unpack(tree.edge)
    half = torch.addcmul(momentum, scale, start.z_grad, value=-0.5)
    return torch.addcmul(start.z, scale, half), half, scale


def _settle_(
    tree: Tree,
    state: KernelState,
    half: Tensor,
    scale: Tensor,
    noise: Tensor,
    slots: tuple[Tensor, Tensor],
) -> None:
    """All that follows the gradient; ``slots`` are of ``checkpoint_table``."""
    momentum = torch.addcmul(half, scale, state.z_grad, value=-0.5)
    leaf = _add_leaf(tree, state, momentum, noise[0], slots)
    count, depth, steps = tree.counts.unbind(1)
    done = leaf.turning | leaf.diverging | tree.fresh
    whole = (count + 1 == torch.exp2(depth)) & ~done
    turning = _join_(tree, leaf, whole, noise[1], noise[2])
    depth = depth + whole
    done = torch.where(whole, turning | (depth >= tree.num_slots), done)
    tree.counts.copy_(torch.stack([torch.where(whole, 0, count + 1), depth, steps + 1], 1))
    tree.diverging.copy_(leaf.diverging)
    tree.done.copy_(done)


def _add_leaf(
    tree: Tree, state: KernelState, momentum: Tensor, noise: Tensor, slots: tuple[Tensor, Tensor]
) -> _Leaf:
    """Statistics of the newest leaves, their place in the subtrees, and whether these turn."""
    start, draw_error, weight, sub_error, sub_weight, step, accept, worst = tree.numbers.unbind(1)
    error = state.potential_energy + kinetic_energy(momentum) - start
    accept_prob, diverging = acceptance(error, state.z)
    error = error.masked_fill(diverging, torch.inf)
    worst = torch.where(error.abs() > worst.abs(), error, worst)
    sub_weight = torch.logaddexp(sub_weight, -error)
    take = noise < (-(sub_weight + error)).exp()
    edge, total = pack(state, momentum), tree.sums[:, SUB] + momentum
    sub_error = torch.where(take, error, sub_error)
    accept = accept + accept_prob
    return _Leaf(
        edge=edge,
        sub_draw=torch.where(take[:, None], edge, tree.sub_draw),
        numbers=[start, draw_error, weight, sub_error, sub_weight, step, accept, worst],
        total=total,
        diverging=diverging,
        turning=_close_(tree, momentum, torch.add(total, momentum, alpha=-0.5), slots),
    )


def _close_(tree: Tree, momentum: Tensor, middle: Tensor, slots: tuple[Tensor, Tensor]) -> Tensor:
    """Store the newest leaves; whether any binary subtree that they close turns, (C,) bool."""
    slot, closes = slots
    leaf = tree.counts[:, LEAF]
    place = (tree.every, slot[leaf])
    tree.first.index_put_(place, momentum)
    tree.before.index_put_(place, middle)
    first, before = tree.first[:, :-1], tree.before[:, :-1]
    turned = turns(first, momentum[:, None].expand_as(first), middle[:, None] - before)
    return (turned & closes[leaf]).any(1)


def _join_(tree: Tree, leaf: _Leaf, whole: Tensor, draw_noise: Tensor, way_noise: Tensor) -> Tensor:
    """Double the trees whose subtree is ``whole``; whether they turn then, (C,) bool."""
    start, draw_error, weight, sub_error, sub_weight, step, accept, worst = leaf.numbers
    forward, way = step > 0, way_noise < 0.5
    take = whole & (draw_noise < (sub_weight - weight).exp())
    right = _where(whole & forward, leaf.edge, tree.right)
    left = _where(whole & ~forward, leaf.edge, tree.left)
    ends = momentum_of(left), momentum_of(right)
    total = tree.sums[:, WHOLE] + leaf.total
    edge = _where(whole & way & ~forward, right, leaf.edge)
    tree.edge.copy_(_where(whole & ~way & forward, left, edge))
    tree.right.copy_(right)
    tree.left.copy_(left)
    tree.draw.copy_(_where(take, leaf.sub_draw, tree.draw))
    tree.sub_draw.copy_(leaf.sub_draw)
    sums = _where(whole, total, tree.sums[:, WHOLE]), _where(whole, 0.0, leaf.total)
    tree.sums.copy_(torch.stack(sums, 1))
    size = step.abs()
    numbers = [
        start,
        torch.where(take, sub_error, draw_error),
        torch.where(whole, torch.logaddexp(weight, sub_weight), weight),
        sub_error,
        torch.where(whole, -torch.inf, sub_weight),
        torch.where(whole, torch.where(way, size, -size), step),
        accept,
        worst,
    ]
    tree.numbers.copy_(torch.stack(numbers, 1))
    return turns(*ends, total.add(ends[0] + ends[1], alpha=-0.5))


def _where(mask: Tensor, chosen: Tensor | float, other: Tensor) -> Tensor:
    return torch.where(mask[:, None], chosen, other)
