"""One step of the trees of NUTS without looking at a value: all chains do all, under masks.

``advance_`` of ``nuts`` works on the chains that are concerned, which is less work; but to know
which these are the CPU must wait for the device, and Python calls a hundred operations. This
form gives the same numbers, bit for bit, and can be recorded as a CUDA graph, or compiled: on a
CPU all but the matrix products become a single loop over the chains.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.gradients import (
    FIRST_CALLS,
    CapturedPotential,
    compiled_step,
    record,
    step_with,
    uncompiled,
)
from pyro_gebm.mcmc.integrators import leapfrog
from pyro_gebm.mcmc.kernel import KernelState, acceptance, kinetic_energy, take_rows
from pyro_gebm.mcmc.nuts import advance_, turns
from pyro_gebm.mcmc.tree import (
    ENERGY,
    LEAF,
    STEP,
    SUB,
    SUB_WEIGHT,
    WHOLE,
    Ended,
    Tree,
    checkpoint_table,
    momentum_of,
    pack,
    summary,
    unpack,
)
from pyro_gebm.mcmc.tuning import Tuning, strides


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


class _All(NamedTuple):
    """What every tree tells after a step, whether it has ended with it or not."""

    ended: Ended
    """A row for each chain."""
    done: Tensor
    """Whose rows are meant, (C,) bool."""


@final
class Advancer:
    """Takes the trees of a run a step further at each call: compiled or as a CUDA graph, if wanted.

    Args:
        potential_fn: (C, D) -> (C,). With ``CompiledPotential`` all of a step is compiled; with
            ``CapturedPotential`` on a CUDA device it is recorded after a few calls and
            replayed from then on. With any other, and where either fails, ``advance_`` does it.
        tree: the trees, which keep their place in memory.
    """

    def __init__(self, potential_fn: PotentialFn, tree: Tree) -> None:
        self._potential_fn, self._tree = potential_fn, tree
        self._graph: _Graph | None = None
        self._compiled: Callable[..., Any] | None = None
        self._calls = 0
        self._flat = torch.zeros_like(tree.numbers[:, 0])
        # By rows the gradient alone would be compiled first, for nothing.
        compiles = uncompiled(potential_fn) is not potential_fn
        self._record_at = 1 if compiles else FIRST_CALLS + 1
        # Held here, where a graph reads it: the cache that it comes from forgets.
        self._slots = checkpoint_table(tree.num_slots, tree.edge.device)

    def __call__(
        self, tuning: Tuning, noise: Tensor, momentum: Tensor
    ) -> tuple[Tensor, Ended | None]:
        """What ``advance_`` does with the same arguments."""
        curvature = self._flat if tuning.curvature is None else tuning.curvature
        given = tuning.step_size, tuning.inverse_mass_matrix, curvature, noise, momentum
        inputs = tuple(x.contiguous() for x in given)
        self._calls += 1
        if self._calls == 1:
            tensors = *self._tree, *self._slots, *inputs
            self._compiled = compiled_step(self._potential_fn, _advance_flat, tensors)
        if self._calls == self._record_at:
            self._record(inputs)
        if self._graph is not None:
            return _chosen(self._graph(inputs))
        if self._compiled is not None:
            return _chosen(self._compiled(*self._tree, *self._slots, *inputs))
        return advance_(self._potential_fn, self._tree, tuning, noise, momentum)

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        if not (isinstance(self._potential_fn, CapturedPotential) and self._tree.edge.is_cuda):
            return
        rooms = tuple(x.clone() for x in inputs)
        trial = Tree(*(field.clone() for field in self._tree))
        tensors = *trial, *self._slots, *rooms
        advance = step_with(self._potential_fn.potential_fn, _advance_flat, tensors)
        with torch.cuda.device(trial.edge.device):
            recorded = record(
                lambda: advance(*self._tree, *self._slots, *rooms),
                rehearsal=lambda: advance(*trial, *self._slots, *rooms),
            )
        if recorded is not None:
            self._graph = _Graph(recorded[0], rooms, recorded[1])


class _Graph(NamedTuple):
    """A recorded step."""

    graph: Any
    rooms: tuple[Tensor, ...]
    """What it reads beside the trees."""
    written: tuple[Tensor, ...]

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for room, given in zip(self.rooms, inputs, strict=True):
            room.copy_(given)
        self.graph.replay()
        return self.written


def _chosen(found: tuple[Tensor, ...]) -> tuple[Tensor, Ended | None]:
    """The chains whose trees have ended, and their rows: copies."""
    *fields, done = found
    rows = done.nonzero()[:, 0]
    # None at most steps of few chains, and of long trees.
    return rows, take_rows(Ended(*fields), rows) if len(rows) else None


def _advance_flat(potential_fn: PotentialFn, *tensors: Tensor) -> tuple[Tensor, ...]:
    """``advance_masked_`` of tensors alone."""
    fields = len(Tree._fields)
    slot, closes, *inputs = tensors[fields:]
    ended, done = advance_masked_(potential_fn, Tree(*tensors[:fields]), (slot, closes), *inputs)
    return *ended, done


def advance_masked_(
    potential_fn: PotentialFn,
    tree: Tree,
    slots: tuple[Tensor, Tensor],
    step_size: Tensor,
    inverse_mass_matrix: Tensor,
    curvature: Tensor,
    noise: Tensor,
    momentum: Tensor,
) -> _All:
    """What ``advance_`` does with the same arguments; ``slots`` are of ``checkpoint_table``."""
    drift, kick = strides(tree.numbers[:, STEP], inverse_mass_matrix, curvature)
    start, before = unpack(tree.edge)
    state, after = leapfrog(potential_fn, start, before, drift, kick)
    _settle_(tree, state, after, noise, slots)
    found = _All(_harvest(tree), tree.done.clone())
    _plant_(tree, found, step_size, momentum, noise[:, 3])
    return found


def _settle_(
    tree: Tree, state: KernelState, momentum: Tensor, noise: Tensor, slots: tuple[Tensor, Tensor]
) -> None:
    """All that ``grow_`` does after the leapfrog step."""
    leaf = _add_leaf(tree, state, momentum, noise[:, 0], slots)
    count, depth, steps = tree.counts.unbind(1)
    done = leaf.turning | leaf.diverging
    whole = (count + 1 == 1 << depth) & ~done
    turning = _join_(tree, leaf, whole, noise[:, 1], noise[:, 2])
    depth = depth + whole
    done = torch.where(whole, turning | (depth >= tree.num_slots), done)
    tree.counts.copy_(torch.stack([torch.where(whole, 0, count + 1), depth, steps + 1], 1))
    tree.diverging.copy_(leaf.diverging)
    tree.done.copy_(done)


def _harvest(tree: Tree) -> Ended:
    """What ``harvest`` gives, of all chains."""
    draw, numbers, counts, diverging = tree.draw, tree.numbers, tree.counts, tree.diverging
    ended = summary(draw.clone(), numbers, counts, diverging, tree.num_slots)
    return ended._replace(counts=ended.counts.clone())


def _plant_(tree: Tree, found: _All, step_size: Tensor, momentum: Tensor, way: Tensor) -> None:
    """What ``plant_`` does, of the trees that are done, where they have ended."""
    state, done = unpack(found.ended.point)[0], found.done
    point = pack(state, momentum)
    for field in (tree.left, tree.right, tree.draw, tree.edge):
        field.copy_(_where(done, point, field))
    energy = state.potential_energy + kinetic_energy(momentum)
    columns = [torch.zeros_like(energy)] * tree.numbers.shape[1]
    columns[ENERGY] = energy
    columns[SUB_WEIGHT] = torch.full_like(energy, -torch.inf)
    columns[STEP] = torch.where(way < 0.5, step_size, -step_size)
    tree.numbers.copy_(_where(done, torch.stack(columns, 1), tree.numbers))
    sums = torch.stack([momentum, torch.zeros_like(momentum)], 1)
    tree.sums.copy_(torch.where(done[:, None, None], sums, tree.sums))
    tree.counts.copy_(torch.where(done[:, None], 0, tree.counts))


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
    # One tensor of all masks: compiled, each is then worked out once, not at every coordinate.
    masks = whole & forward, whole & ~forward, whole & way & ~forward, whole & ~way & forward, take
    to_right, to_left, from_right, from_left, take = torch.stack(masks, 1).unbind(1)
    right = _where(to_right, leaf.edge, tree.right)
    left = _where(to_left, leaf.edge, tree.left)
    ends = momentum_of(left), momentum_of(right)
    total = tree.sums[:, WHOLE] + leaf.total
    edge = _where(from_right, right, leaf.edge)
    tree.edge.copy_(_where(from_left, left, edge))
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
