"""The No-U-Turn sampler, iterative and batched: every chain grows a tree, in lock-step."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pyro_gebm._checks import check_count
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.integrators import leapfrog
from pyro_gebm.mcmc.kernel import (
    Info,
    Kernel,
    KernelState,
    Tuning,
    acceptance,
    draw_momentum,
    draw_seed,
    hamiltonian,
    select,
)
from pyro_gebm.mcmc.tree import Growth, Leaf, Phase, Span, Tree


@final
@dataclass(frozen=True, kw_only=True)
class NUTS(Kernel):
    """The No-U-Turn sampler (Hoffman and Gelman 2014) with multinomial draws (Betancourt 2017).

    The tree is grown iteratively, with the momenta of open subtrees kept in O(max_tree_depth)
    memory (Phan, Pradhan and Jankowiak 2019), so that a batch of chains grows its trees side
    by side with masks. The batch waits for its deepest tree.

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

    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_tree_depth", self.max_tree_depth)

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: torch.Generator,
    ) -> tuple[KernelState, Info]:
        """One tree of every chain."""
        # The batch draws until its deepest tree ends: from a generator of this transition's
        # own, so that no chain's next transition depends on the depth of another's tree.
        generator = torch.Generator(generator.device).manual_seed(draw_seed(generator))
        tree = plant(state, tuning, self.max_tree_depth, generator)
        while not bool(tree.done.all()):
            tree = grow(potential_fn, tree, tuning, self.max_tree_depth, generator)
        return tree.span.draw.state, self._info(tree)

    def _info(self, tree: Tree) -> Info:
        return Info(
            accept_prob=tree.sum_accept / tree.num_steps,
            diverging=tree.diverging,
            hamiltonian=tree.initial_energy,
            num_steps=tree.num_steps,
            energy_error=tree.span.draw.error,
            tree_depth=tree.depth,
            max_energy_error=tree.max_energy_error,
            reached_max_treedepth=tree.depth >= self.max_tree_depth,
        )


def plant(
    state: KernelState, tuning: Tuning, max_tree_depth: int, generator: torch.Generator
) -> Tree:
    """A tree of one leaf, the current state with a fresh momentum."""
    momentum = draw_momentum(state, tuning, generator)
    energy = hamiltonian(state.potential_energy, momentum, tuning.inverse_mass_matrix)
    start = Phase(state, momentum)
    zeros = torch.zeros_like(energy)
    count = torch.zeros_like(energy, dtype=torch.int64)
    no = torch.zeros_like(energy, dtype=torch.bool)
    forward = torch.rand(energy.shape, generator=generator, device=energy.device) < 0.5
    return Tree(
        initial_energy=energy,
        left=start,
        right=start,
        span=Span(Leaf(state, zeros), zeros, momentum),
        growth=sprout(start, max_tree_depth),
        forward=forward,
        depth=count,
        sum_accept=zeros,
        num_steps=count,
        max_energy_error=zeros,
        diverging=no,
        done=no,
    )


def sprout(edge: Phase, max_tree_depth: int) -> Growth:
    """A subtree without leaves, to grow from ``edge``."""
    empty = torch.full_like(edge.state.potential_energy, -torch.inf)
    span = Span(Leaf(edge.state, empty), empty, torch.zeros_like(edge.momentum))
    leaf = torch.zeros_like(empty, dtype=torch.int64)
    chains, dim = edge.momentum.shape
    checkpoints = edge.momentum.new_zeros(chains, max_tree_depth, dim)
    return Growth(edge, span, leaf, checkpoints, checkpoints)


def grow(
    potential_fn: PotentialFn,
    tree: Tree,
    tuning: Tuning,
    max_tree_depth: int,
    generator: torch.Generator,
) -> Tree:
    """One leapfrog step of every chain; a subtree that is whole joins its tree.

    A chain that is done stands still: its step is zero, and nothing of it that is read later
    changes.
    """
    noise = torch.rand(
        (3, *tree.depth.shape),
        generator=generator,
        dtype=tree.initial_energy.dtype,
        device=tree.depth.device,
    )
    step = torch.where(tree.forward, tuning.step_size, -tuning.step_size)
    step = torch.where(tree.done, 0.0, step)
    old = tree.growth.edge
    edge = Phase(*leapfrog(potential_fn, old.state, old.momentum, step, tuning))
    tree, error = record(tree, edge, tuning)
    growth, turning = add_leaf(tree.growth, edge, error, noise[0], tuning)
    failed = tree.done | turning | tree.diverging
    whole = (growth.leaf == 2**tree.depth) & ~failed
    tree = tree._replace(growth=growth, done=failed)
    if not bool(whole.any()):
        return tree
    return select(whole, join(tree, noise[1], noise[2], tuning, max_tree_depth), tree)


def record(tree: Tree, edge: Phase, tuning: Tuning) -> tuple[Tree, Tensor]:
    """Counts and statistics of the newest leaf, and its energy error H - H₀ (+inf where bad)."""
    energy = hamiltonian(edge.state.potential_energy, edge.momentum, tuning.inverse_mass_matrix)
    error = energy - tree.initial_energy
    accept_prob, diverging = acceptance(error, edge.state)
    error = torch.where(diverging, torch.inf, error)
    active = ~tree.done
    larger = (error.abs() > tree.max_energy_error.abs()) & active
    tree = tree._replace(
        sum_accept=tree.sum_accept + accept_prob * active,
        num_steps=tree.num_steps + active,
        max_energy_error=torch.where(larger, error, tree.max_energy_error),
        diverging=torch.where(active, diverging, tree.diverging),
    )
    return tree, error


def add_leaf(
    growth: Growth, edge: Phase, error: Tensor, noise: Tensor, tuning: Tuning
) -> tuple[Growth, Tensor]:
    """The subtree with one more leaf, and whether any binary subtree that it closes turns."""
    log_weight = torch.logaddexp(growth.span.log_weight, -error)
    # Multinomial draw, streamed: each leaf replaces the draw with its share of the weight.
    take = noise < (-error - log_weight).exp()
    momentum_sum = growth.span.momentum_sum + edge.momentum
    draw = select(take, Leaf(edge.state, error), growth.span.draw)
    span = Span(draw, log_weight, momentum_sum)
    growth = growth._replace(edge=edge, span=span)

    slot, closes = checkpoint_slots(growth.leaf, growth.checkpoint_sum.shape[1])
    first, before = growth.checkpoint_momentum, growth.checkpoint_sum
    spanned = momentum_sum[:, None] - before + first
    turning = turns(first, edge.momentum[:, None], spanned, tuning.inverse_mass_matrix)
    growth = growth._replace(
        leaf=growth.leaf + 1,
        checkpoint_momentum=torch.where(slot[..., None], edge.momentum[:, None], first),
        checkpoint_sum=torch.where(slot[..., None], momentum_sum[:, None], before),
    )
    return growth, (turning & closes).any(-1)


def checkpoint_slots(leaf: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Where an even leaf is stored, and the stored leaves that an odd leaf closes a subtree with.

    With the leaves of a subtree numbered from 0, leaf n opens or closes binary subtrees; those
    still open are told apart by the 1-bits of n // 2, and an odd n closes as many as it has
    trailing 1-bits.

    Returns:
        Two masks (C, num_slots).
    """
    places = torch.arange(num_slots, device=leaf.device)
    bits = (leaf[:, None] >> places) & 1
    last = bits[:, 1:].sum(-1, keepdim=True)
    closed = bits.cumprod(-1).sum(-1, keepdim=True)
    even = bits[:, :1] == 0
    stores = even & (places == last)
    return stores, ~even & (places <= last) & (places > last - closed)


def turns(first: Tensor, last: Tensor, momentum_sum: Tensor, inverse_mass: Tensor) -> Tensor:
    """U-turn criterion of Betancourt (2017) over the last dimension; symmetric in time.

    Half of each end is left out of the sum, as in Pyro and NumPyro: it makes the sum an
    approximation of (position difference)/ε by the trapezoidal rule.
    """
    middle = momentum_sum - 0.5 * (first + last)
    velocity = inverse_mass * middle
    return ((velocity * first).sum(-1) <= 0) | ((velocity * last).sum(-1) <= 0)


def join(
    tree: Tree, draw_noise: Tensor, way_noise: Tensor, tuning: Tuning, max_tree_depth: int
) -> Tree:
    """The tree doubled by its whole subtree, and the next subtree started."""
    new = tree.growth.span
    # Biased towards the new half (Betancourt 2017, A.3.2), for longer moves.
    take = draw_noise < (new.log_weight - tree.span.log_weight).exp()
    span = Span(
        select(take, new.draw, tree.span.draw),
        torch.logaddexp(tree.span.log_weight, new.log_weight),
        tree.span.momentum_sum + new.momentum_sum,
    )
    left = select(tree.forward, tree.left, tree.growth.edge)
    right = select(tree.forward, tree.growth.edge, tree.right)
    turning = turns(left.momentum, right.momentum, span.momentum_sum, tuning.inverse_mass_matrix)
    depth = tree.depth + 1
    forward = way_noise < 0.5
    return tree._replace(
        left=left,
        right=right,
        span=span,
        growth=sprout(select(forward, right, left), max_tree_depth),
        forward=forward,
        depth=depth,
        done=turning | (depth >= max_tree_depth),
    )
