"""The iterative, batched NUTS against the recursion of Hoffman and Gelman, point by point."""

import math
from dataclasses import dataclass

import pytest
import torch
from helpers import make_tuning, normal, rng, run_chain

from pyro_gebm.mcmc import NUTS, nuts
from pyro_gebm.mcmc.integrators import leapfrog
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.mcmc.nuts import grow_, harvest, plant_, tree_noise, turns
from pyro_gebm.mcmc.random import normal as normal_noise
from pyro_gebm.mcmc.random import uniform
from pyro_gebm.mcmc.tree import (
    STEP,
    WEIGHT,
    WHOLE,
    checkpoint_table,
    new_trees,
    told,
    unpack,
)

MAX_DEPTH = 6
INVERSE_MASS = torch.tensor([0.6, 1.5], dtype=torch.float64)
EVERY = torch.arange(1)


def test_checkpoints_hold_the_first_leaf_of_every_subtree_that_closes():
    # Play 2^6 leaves: an odd leaf must find, in its slots, exactly the first leaves of all the
    # aligned binary subtrees (of 2, 4, 8, ... leaves) that end with it.
    slots, closes = checkpoint_table(MAX_DEPTH, torch.device("cpu"))
    assert slots.shape == (2**MAX_DEPTH,) and closes.shape == (2**MAX_DEPTH, MAX_DEPTH)
    held = {}
    for leaf in range(2**MAX_DEPTH):
        if leaf % 2 == 0:
            assert 0 <= slots[leaf] < MAX_DEPTH and not closes[leaf].any()
            held[int(slots[leaf])] = leaf
        else:
            sizes = [2**k for k in range(1, MAX_DEPTH + 1) if (leaf + 1) % 2**k == 0]
            found = [held[int(slot)] for slot in closes[leaf].nonzero()]
            assert slots[leaf] == MAX_DEPTH  # scrap
            assert sorted(found) == sorted(leaf + 1 - size for size in sizes)


def bent(z):
    """Anharmonic and coupled, with a wall that makes long steps diverge."""
    wall = torch.where(z[:, 0] > 1.2, torch.inf, 0.0)
    return normal(z) + 0.3 * z[:, 0].pow(4) + z[:, 0] * z[:, 1].sin() + wall


@dataclass
class Reference:
    """A tree built by recursion over the points of one trajectory, computed beforehand."""

    momenta: dict
    errors: dict
    steps: int = 0
    depth: int = 0
    diverging: bool = False
    visited: list = None

    def turns(self, points):
        r = [self.momenta[i] for i in points]
        middle = INVERSE_MASS * (sum(r) - 0.5 * (r[0] + r[-1]))
        return bool(middle @ r[0] <= 0) or bool(middle @ r[-1] <= 0)

    def build(self, points):
        """Whether the subtree over ``points`` is whole; counts the steps until it fails."""
        if len(points) == 1:
            self.steps += 1
            self.visited.append(points[0])
            self.diverging = not self.errors[points[0]] <= 1000
            return not self.diverging
        half = len(points) // 2
        return self.build(points[:half]) and self.build(points[half:]) and not self.turns(points)

    def grow(self, directions):
        """The points of the final tree, in order of time."""
        tree, self.visited = [0], []
        for forward in directions:
            size = len(tree)
            ahead = [tree[-1] + 1 + i for i in range(size)]
            behind = [tree[0] - 1 - i for i in range(size)]
            if not self.build(ahead if forward else behind):
                break
            tree = sorted(tree + (ahead if forward else behind))
            self.depth += 1
            if self.turns(tree):
                break
        return tree


def one_transition(z, step_size, seed):
    """One transition by hand: its start, the directions it took and the tree it ended with."""
    tuning = make_tuning(z, step_size, INVERSE_MASS)
    generator = rng(seed)
    start, momentum = evaluate(bent, z), normal_noise(z, generator)
    tree = new_trees(start, MAX_DEPTH)
    plant_(tree, EVERY, start, tuning, momentum, uniform(start.potential_energy, generator))
    directions = []
    while not tree.done.all():
        if tree.depth == len(directions):
            directions.append(bool(tree.numbers[0, STEP] > 0))
        grow_(bent, tree, tuning, tree_noise(start.potential_energy, generator))
    return (start, momentum), directions, tree


def all_points(start, step_size):
    """z, r and energy error of every point that any tree of MAX_DEPTH could reach."""
    points = {0: start}
    for way in (1, -1):
        state, momentum = points[0]
        stride = way * step_size * INVERSE_MASS.sqrt()[None]
        for i in range(1, 2**MAX_DEPTH):
            state, momentum = leapfrog(bent, state, momentum, stride, stride)
            points[way * i] = (state, momentum)
    z = {i: state.z[0] for i, (state, _) in points.items()}
    r = {i: momentum[0] * INVERSE_MASS.rsqrt() for i, (_, momentum) in points.items()}
    energy = {
        i: float(points[i][0].potential_energy[0] + 0.5 * (r[i] ** 2 * INVERSE_MASS).sum())
        for i in points
    }
    return z, r, {i: value - energy[0] for i, value in energy.items()}


@pytest.mark.parametrize(
    ("step_size", "expected"), [(0.01, {"limit"}), (0.1, {"turn", "wall"}), (0.6, {"turn", "wall"})]
)
def test_tree_is_that_of_the_recursion(step_size, expected):
    ends = set()
    for seed in range(8):
        z = torch.randn(1, 2, generator=rng(100 + seed), dtype=torch.float64)
        start, directions, tree = one_transition(z.clamp(max=1.0), step_size, seed)
        positions, momenta, errors = all_points(start, step_size)
        reference = Reference(momenta, errors)
        members = reference.grow(directions)

        state, info = told(harvest(tree, EVERY))
        assert int(info.num_steps) == reference.steps
        assert int(info.tree_depth) == reference.depth == len(members).bit_length() - 1
        assert bool(info.diverging) == reference.diverging
        weight = math.log(sum(math.exp(-errors[i]) for i in members))
        assert math.isclose(float(tree.numbers[0, WEIGHT]), weight, rel_tol=1e-9, abs_tol=1e-12)
        total = sum(momenta[i] for i in members)
        torch.testing.assert_close(tree.sums[0, WHOLE], total * INVERSE_MASS.sqrt())
        accepts = [min(1.0, math.exp(-errors[i])) for i in reference.visited]
        mean_accept = sum(accepts) / len(accepts)
        assert math.isclose(float(info.accept_prob), mean_accept, rel_tol=1e-9)
        worst = max((errors[i] for i in reference.visited), key=abs)
        assert math.isclose(float(info.max_energy_error), worst, rel_tol=1e-9)
        draw = min(members, key=lambda i: (positions[i] - state.z[0]).norm())
        torch.testing.assert_close(state.z[0], positions[draw])
        assert math.isclose(float(info.energy_error), errors[draw], abs_tol=1e-9)
        fresh = evaluate(bent, state.z)
        assert torch.equal(state.potential_energy, fresh.potential_energy)
        assert torch.equal(state.z_grad, fresh.z_grad)
        for end, member in ((tree.left, members[0]), (tree.right, members[-1])):
            torch.testing.assert_close(unpack(end)[0].z[0], positions[member])
        ends.add("wall" if reference.diverging else "limit" if reference.depth == 6 else "turn")
    assert ends >= expected


def test_u_turn_leaves_out_half_of_each_end(monkeypatch):
    # r = 1, -1.5, 1: the plain sum is 0.5, the trapezoidal one (displacement/ε) is -0.5.
    first = last = torch.tensor([1.0])
    assert turns(first, last, torch.tensor([-0.5]))
    assert not turns(first, last, torch.tensor([0.1]))
    for one, other in ((first, -last), (-first, last)):
        assert turns(one, other, torch.tensor([0.5]))

    # The trees give it that sum: with the plain one they are not those of the recursion.
    def plain(first, last, middle):
        return turns(first, last, middle + 0.5 * (first + last))

    monkeypatch.setattr(nuts, "turns", plain)
    with pytest.raises(AssertionError):
        for step_size in (0.2, 0.3, 0.4, 0.5):
            test_tree_is_that_of_the_recursion(step_size, set())


def test_draws_are_spread_as_biased_progressive_sampling_says():
    # Flat potential, one doubling: the single new leaf always replaces the start; two
    # doublings: the new half, of as much weight as the old, always replaces it, and each of
    # its two leaves is as likely. Momenta are known, so the draw tells which leaf it is.
    z = torch.zeros(4000, 1, dtype=torch.float64)

    def flat(z):
        return 0.0 * z[:, 0]

    for depth, places in ((1, {1}), (2, {1, 2, 3})):
        state, info = run_chain(NUTS(max_tree_depth=depth), flat, z, make_tuning(z, 1.0), 1)[0]
        speed = (2 * info.hamiltonian).sqrt()
        place = (state.z[:, 0].abs() / speed).round().long()
        assert set(place.unique().tolist()) == places
    # Leaves reached: same way twice 2 or 3 steps off, 1/4 each; back and forth 1 or 2, 1/4 each.
    share = torch.bincount(place, minlength=4).double() / len(z)
    truth = torch.tensor([0.0, 0.25, 0.5, 0.25], dtype=torch.float64)
    assert ((share - truth).abs() <= 4 * (truth * (1 - truth) / len(z)).sqrt()).all()


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_tree_without_turns_fills_up(depth):
    z = torch.zeros(8, 2, dtype=torch.float64)
    potential_fn = normal
    # 2^5 steps of 0.01 are a tenth of the half turn.
    _, info = run_chain(NUTS(max_tree_depth=depth), potential_fn, z, make_tuning(z, 0.01), 1)[0]
    assert (info.tree_depth == depth).all()
    assert (info.num_steps == 2**depth - 1).all()
    assert info.reached_max_treedepth.all()
    assert not info.diverging.any()


def test_tree_stops_at_the_u_turn():
    # On N(0, I), z(t) = a cos t + b sin t: the two products of the criterion add up to
    # sin T (|a|²(1 - cos T) + |b|²(1 + cos T) - 2 a·b sin T), negative for π < T < 2π, so that
    # every such tree turns. 2^5 leaves span 31 * 0.13 = 4.0: no tree grows on from there.
    z = torch.randn(500, 2, generator=rng(), dtype=torch.float64)
    _, info = run_chain(NUTS(), normal, z, make_tuning(z, 0.13), 1)[0]
    assert info.tree_depth.max() == 5
    assert info.num_steps.max() == 31
    # Most reach 2^4 leaves, which span 2.0: orbits turn not before, on average, half a period.
    assert (info.tree_depth >= 4).double().mean() > 0.5
    assert not info.reached_max_treedepth.any()


def test_depth_and_steps_agree():
    z = torch.randn(300, 2, generator=rng(), dtype=torch.float64).clamp(max=1.0)
    kernel = NUTS(max_tree_depth=4)
    history = run_chain(kernel, bent, z, make_tuning(z, 0.3), 5)
    for _, info in history:
        whole = 2**info.tree_depth - 1
        assert (info.num_steps >= whole).all()
        assert (info.num_steps <= 2 * whole + 1).all()
        reached = info.reached_max_treedepth
        assert torch.equal(reached, info.tree_depth == 4)
        assert (info.num_steps[reached] == 15).all()
        assert (info.num_steps <= 15).all()
        assert (info.max_energy_error.abs() >= info.energy_error.abs()).all()
    assert 0 < torch.stack([i.reached_max_treedepth for _, i in history]).double().mean() < 1


def test_settings_are_checked():
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="max_tree_depth: expected a whole number >= 1; got"):
            NUTS(max_tree_depth=bad)
