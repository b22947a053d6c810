"""The No-U-Turn sampler, iterative and batched: every chain grows a tree of its own."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_count, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.integrators import leapfrog
from pyro_gebm.mcmc.kernel import (
    Info,
    Kernel,
    KernelState,
    acceptance,
    kinetic_energy,
    put_rows_,
    take_rows,
)
from pyro_gebm.mcmc.random import Generator, Streams, draw_seed, normal, uniform
from pyro_gebm.mcmc.tree import (
    ACCEPT,
    DEPTH,
    DRAW_ERROR,
    ENERGY,
    LEAF,
    STEP,
    STEPS,
    SUB,
    SUB_ERROR,
    SUB_WEIGHT,
    WEIGHT,
    WORST,
    Ended,
    Tree,
    checkpoint_table,
    momentum_of,
    new_trees,
    pack,
    summary,
    told,
    unpack,
)
from pyro_gebm.mcmc.tuning import Tuning, strides


@final
@dataclass(frozen=True, kw_only=True)
class NUTS(Kernel):
    """The No-U-Turn sampler (Hoffman and Gelman 2014) with multinomial draws (Betancourt 2017).

    The tree is grown iteratively, with the momenta of open subtrees kept in O(max_tree_depth)
    memory (Phan, Pradhan and Jankowiak 2019), so that a batch of chains grows its trees side
    by side. ``step`` waits for the deepest tree of the batch; a run does not: a chain whose
    tree is finished stores its draw and starts the next one at the next step of the batch. Steps
    are fitted to the target's curvature where that pays (see ``Kernel``).

    Args:
        max_tree_depth: at most 2**max_tree_depth - 1 leapfrog steps a draw.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> def potential_fn(z):
        ...     return 0.5 * (z**2).sum(-1)
        >>> kernel = NUTS(max_tree_depth=5)
        >>> tuning = Tuning(step_size=torch.full((3,), 0.5), inverse_mass_matrix=torch.ones(2))
        >>> state = kernel.init(potential_fn, torch.zeros(3, 2))
        >>> rng = torch.Generator().manual_seed(0)
        >>> state, info = kernel.step(potential_fn, state, tuning, generator=rng)
        >>> bool((info.num_steps < 2**5).all())
        True
    """

    # Trees double: steps that are a little longer make them no smaller.
    least_growth: ClassVar[float] = math.sqrt(2.0)

    integrator: str = "fitted"
    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_tree_depth", self.max_tree_depth)
        check_in_range("max_tree_depth", self.max_tree_depth, 1, 20)

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """One tree of every chain; what is done early grows on and is not looked at."""
        # The batch draws until its deepest tree ends: from streams of this transition's own,
        # so that no chain's next transition depends on the depth of another's tree.
        streams = Streams(draw_seed(generator), len(state.z), state.z.device)
        tree = new_trees(state, self.max_tree_depth)
        momentum, way = normal(state.z, streams), uniform(state.potential_energy, streams)
        plant_(tree, tree.every, state, tuning, momentum, way)
        waiting, batch_step = torch.ones_like(tree.done), 0
        result = harvest(tree, tree.every)
        while bool(waiting.any()):
            noise = tree_noise(state.potential_energy, streams.at(batch_step))
            momentum = normal(state.z, streams)
            rows, ended = advance_(potential_fn, tree, tuning, noise, momentum)
            if ended is not None:
                keep = waiting[rows]
                put_rows_(result, rows[keep], take_rows(ended, keep))
                waiting[rows] = False
            batch_step += 1
        return told(result)


def tree_noise(like: Tensor, generator: Generator) -> Tensor:
    """Uniforms of one step of the batch, (C, 4): leaf, join, next direction, first direction."""
    return uniform(like[:, None].expand(-1, 4), generator)


def advance_(
    potential_fn: PotentialFn, tree: Tree, tuning: Tuning, noise: Tensor, momentum: Tensor
) -> tuple[Tensor, Ended | None]:
    """One step of every tree; those that end with it tell of it, and are planted anew.

    Args:
        potential_fn: (C, D) -> (C,).
        tree: the trees, changed in place.
        tuning: its mass matrix is of this step, its step sizes are of the new trees.
        noise: of ``tree_noise``.
        momentum: what new trees start with, (C, D), standard normals.

    Returns:
        The chains whose trees have ended, (R,), and what is told of them; ``None`` of nobody.
    """
    grow_(potential_fn, tree, tuning, noise)
    rows = tree.done.nonzero()[:, 0]
    if not len(rows):
        return rows, None
    ended = harvest(tree, rows)
    plant_(tree, rows, unpack(ended.point)[0], tuning, momentum[rows], noise[rows, 3])
    return rows, ended


def plant_(
    tree: Tree, rows: Tensor, state: KernelState, tuning: Tuning, momentum: Tensor, way: Tensor
) -> None:
    """Start the trees of some chains at ``state`` (R rows) with ``momentum`` and a direction."""
    point = pack(state, momentum)
    for field in (tree.left, tree.right, tree.draw, tree.edge):
        field.index_copy_(0, rows, point)
    energy = state.potential_energy + kinetic_energy(momentum)
    numbers = energy.new_zeros(len(rows), 8)
    numbers[:, ENERGY] = energy
    numbers[:, SUB_WEIGHT] = -torch.inf
    step_size = tuning.step_size[rows]
    numbers[:, STEP] = torch.where(way < 0.5, step_size, -step_size)
    tree.numbers.index_copy_(0, rows, numbers)
    tree.sums[rows] = torch.stack([momentum, torch.zeros_like(momentum)], 1)
    tree.counts[rows] = 0


def grow_(potential_fn: PotentialFn, tree: Tree, tuning: Tuning, noise: Tensor) -> None:
    """One leapfrog step of every chain; a subtree that is whole joins its tree.

    Args:
        potential_fn: (C, D) -> (C,).
        tree: the trees, changed in place.
        tuning: its mass matrix is read; steps are those that the trees were planted with.
        noise: of ``tree_noise``.
    """
    masses, curvature = tuning.inverse_mass_matrix, tuning.curvature
    drift, kick = strides(tree.numbers[:, STEP], masses, curvature)
    start, momentum = unpack(tree.edge)
    state, momentum = leapfrog(potential_fn, start, momentum, drift, kick)
    tree.edge.copy_(pack(state, momentum))
    error = record_(tree, state, momentum)
    turning = add_leaf_(tree, momentum, error, noise[:, 0])
    done = turning.logical_or_(tree.diverging)
    tree.done.copy_(done)
    whole = (tree.counts[:, LEAF] == 1 << tree.counts[:, DEPTH]).logical_and_(~done)
    rows = whole.nonzero()[:, 0]
    if len(rows):
        join_(tree, rows, noise[rows, 1], noise[rows, 2])


def record_(tree: Tree, state: KernelState, momentum: Tensor) -> Tensor:
    """Counts and statistics of the newest leaves; their energy errors (+inf where bad)."""
    numbers = tree.numbers
    error = state.potential_energy + kinetic_energy(momentum) - numbers[:, ENERGY]
    accept_prob, diverging = acceptance(error, state.z)
    error = error.masked_fill_(diverging, torch.inf)
    numbers[:, ACCEPT].add_(accept_prob)
    worst = numbers[:, WORST]
    worst.copy_(torch.where(error.abs() > worst.abs(), error, worst))
    tree.counts[:, STEPS].add_(1)
    tree.diverging.copy_(diverging)
    return error


def add_leaf_(tree: Tree, momentum: Tensor, error: Tensor, noise: Tensor) -> Tensor:
    """One more leaf for the subtrees: whether any binary subtree that it closes turns, (C,)."""
    weight, leaf = tree.numbers[:, SUB_WEIGHT], tree.counts[:, LEAF]
    log_weight = torch.logaddexp(weight, -error)
    weight.copy_(log_weight)
    # Multinomial draw, streamed: each leaf replaces the draw with its share of the weight.
    rows = (noise < (log_weight.add_(error).neg_()).exp_()).nonzero()[:, 0]
    copy_rows_(tree.sub_draw, tree.edge, rows)
    tree.numbers[rows, SUB_ERROR] = error[rows]
    total = tree.sums[:, SUB].add_(momentum)

    slot, closes = checkpoint_table(tree.num_slots, error.device)
    middle = torch.add(total, momentum, alpha=-0.5)
    place = (tree.every, slot[leaf])
    tree.first.index_put_(place, momentum)
    tree.before.index_put_(place, middle)
    chain, opened = closes[leaf].nonzero(as_tuple=True)
    leaf.add_(1)
    turning = torch.zeros_like(tree.done)
    if len(chain):
        spanned = middle[chain] - tree.before[chain, opened]
        turned = turns(tree.first[chain, opened], momentum[chain], spanned)
        turning[chain[turned]] = True
    return turning


def turns(first: Tensor, last: Tensor, middle: Tensor) -> Tensor:
    """U-turn criterion of Betancourt (2017) over the last dimension; symmetric in time.

    ``middle`` is the sum of the momenta with half of each end left out, as in Pyro and
    NumPyro: an approximation of (position difference)/ε by the trapezoidal rule.
    """
    ahead = torch.linalg.vecdot(middle, first), torch.linalg.vecdot(middle, last)
    return torch.minimum(*ahead) <= 0


def join_(tree: Tree, rows: Tensor, draw_noise: Tensor, way_noise: Tensor) -> None:
    """Double some trees by their whole subtrees, and start the next subtrees."""
    numbers = tree.numbers[rows]
    new, old, step = numbers[:, SUB_WEIGHT], numbers[:, WEIGHT], numbers[:, STEP]
    forward, way = step > 0, way_noise < 0.5
    # Biased towards the new half (Betancourt 2017, A.3.2), for longer moves.
    take = draw_noise < (new - old).exp()
    copy_rows_(tree.draw, tree.sub_draw, rows[take])
    copy_rows_(tree.right, tree.edge, rows[forward])
    copy_rows_(tree.left, tree.edge, rows[~forward])
    first, last = (momentum_of(end).index_select(0, rows) for end in (tree.left, tree.right))
    total = tree.sums[rows].sum(1)
    turning = turns(first, last, total.add(first + last, alpha=-0.5))

    # A tree that grows on the same way does so from where it is.
    copy_rows_(tree.edge, tree.right, rows[way > forward])
    copy_rows_(tree.edge, tree.left, rows[way < forward])
    size = step.abs()
    numbers[:, DRAW_ERROR] = torch.where(take, numbers[:, SUB_ERROR], numbers[:, DRAW_ERROR])
    numbers[:, WEIGHT] = torch.logaddexp(old, new)
    numbers[:, SUB_WEIGHT] = -torch.inf
    numbers[:, STEP] = torch.where(way, size, -size)
    tree.numbers.index_copy_(0, rows, numbers)
    tree.sums.index_copy_(0, rows, torch.stack([total, torch.zeros_like(total)], 1))
    counts = tree.counts[rows]
    counts[:, DEPTH] += 1
    counts[:, LEAF] = 0
    tree.counts.index_copy_(0, rows, counts)
    tree.done.index_copy_(0, rows, turning | (counts[:, DEPTH] >= tree.num_slots))


def copy_rows_(to: Tensor, source: Tensor, rows: Tensor) -> None:
    """The points of some chains."""
    to.index_copy_(0, rows, source.index_select(0, rows))


def harvest(tree: Tree, rows: Tensor) -> Ended:
    """What is told of some chains, whose trees are finished: copies."""
    diverging, numbers = tree.diverging[rows], tree.numbers[rows]
    return summary(tree.draw[rows], numbers, tree.counts[rows], diverging, tree.num_slots)
