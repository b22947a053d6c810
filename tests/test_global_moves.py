"""Global moves: exact chains stay exact, in step and running freely; planted bugs are seen.

20,000 exact draws of two modes, taken some transitions further; Kolmogorov-Smirnov and the
frequency of a mode, each against what is known exactly.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import Counting, gumbel, make_tuning, normal, rng
from scipy import stats

from pyro_gebm.mcmc import (
    HMC,
    MALA,
    NUTS,
    GlobalMoves,
    Moves,
    Position,
    Reference,
    Warmed,
    draw,
    global_moves,
    run,
)
from pyro_gebm.mcmc.free_jumps import FreeJumps, deck_of, hands_at_once, next_hand
from pyro_gebm.mcmc.global_moves import jump, jump_all, propose
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.mcmc.random import Streams

CHAINS, PASS, FAIL = 20_000, 1e-4, 1e-6
SPREAD = 2.5
MASSES, MEANS, SCALES = (0.7, 0.3), (-2.0, 2.5), (0.5, 0.8)
KERNELS = {"in step": MALA(), "freely": NUTS(max_tree_depth=3)}


def reference(drawn=SPREAD, told=SPREAD):
    """N(0, told²) over one dimension, but drawn with another scale where a bug is planted."""
    return Reference(
        lambda n: drawn * torch.randn(n, 1, dtype=torch.float64), lambda z: normal(z) / told**2
    )


def bimodal(z):
    parts = [
        math.log(w / s) - 0.5 * ((z[:, 0] - m) / s) ** 2
        for w, m, s in zip(MASSES, MEANS, SCALES, strict=True)
    ]
    return -torch.logaddexp(*parts)


def exact_draws():
    second = torch.rand(CHAINS, generator=rng(3), dtype=torch.float64) < MASSES[1]
    noise = torch.randn(CHAINS, generator=rng(4), dtype=torch.float64)
    ends = [m + s * noise for m, s in zip(MEANS, SCALES, strict=True)]
    return torch.where(second, ends[1], ends[0])[:, None]


def p_value(z):
    """Of positions (C, 1) of the bimodal target: its law, and the mass of a mode, corrected."""

    def cdf(x):
        parts = zip(MASSES, MEANS, SCALES, strict=True)
        return sum(w * stats.norm.cdf(x, m, s) for w, m, s in parts)

    x = z[:, 0].numpy()
    mode = stats.binomtest(int((x < 0).sum()), len(x), float(cdf(0.0)))
    return 2 * min(stats.kstest(x, cdf).pvalue, mode.pvalue)


def advance(kernel, potential_fn, z, base, moves, num_samples=4, seed=0, made=0):
    """Draws from exact positions at a fixed tuning, after ``made`` transitions."""
    state = kernel.init(potential_fn, z)
    none = torch.zeros(len(z), dtype=torch.int64)
    start = Warmed(Position(state, none, none + made), make_tuning(z, 0.5), none)
    return draw(Moves(kernel, potential_fn, base, moves), start, num_samples, seed=seed)


def moved_exactly(kernel, base, num_samples=4):
    moves = GlobalMoves(num_proposals=4, every=1)
    return advance(kernel, bimodal, exact_draws(), base, moves, num_samples)


@pytest.mark.parametrize("how", KERNELS)
def test_invariant(how):
    assert p_value(exact_draws()) > PASS
    draws = moved_exactly(KERNELS[how], reference())
    assert 0.3 < draws.info.global_accept_prob.nanmean() < 0.9
    sides = draws.z[:, :, 0] < 0
    assert (sides[:, 0] != sides[:, -1]).double().mean() > 0.2
    assert p_value(draws.z[:, -1]) > PASS


def test_invariant_freely_at_times_and_with_many_hands():
    # Every third transition, of each chain at its own; hands 3 to 5, the latter of a full deck.
    moves = GlobalMoves(num_proposals=4, every=3)
    start = exact_draws()
    draws = advance(KERNELS["freely"], bimodal, start, reference(), moves, num_samples=6, made=10)
    assert torch.isnan(draws.info.global_accept_prob).double().mean() == pytest.approx(2 / 3)
    assert p_value(draws.z[:, -1]) > PASS


@pytest.mark.parametrize("every", [1, 5, 48, 100, 1000])
def test_turns_are_spread_evenly(every):
    transitions = torch.zeros(64, dtype=torch.int64)
    due = [
        next_hand(every, transitions + t + 1) - next_hand(every, transitions + t)
        for t in range(every)
    ]
    per_turn = torch.stack(due).sum(1)
    assert (torch.stack(due).sum(0) == 1).all()
    assert per_turn.max() - per_turn.min() <= 1


def forgotten(potential_fn, base, z, potential_energy, proposals, noise):
    return jump(potential_fn, base, z, potential_energy + 1e3, proposals, noise)


@pytest.mark.parametrize("how", KERNELS)
def test_current_weight_left_out_is_seen(how, monkeypatch):
    monkeypatch.setattr(global_moves, "jump", forgotten)
    monkeypatch.setattr(FreeJumps, "_weight_here", lambda self, rows, here: 0 * here.z[:, 0] - 1e3)
    assert p_value(moved_exactly(KERNELS[how], reference()).z[:, -1]) < FAIL


def test_each_hand_is_played_once(monkeypatch):
    played, honest = [], FreeJumps._hands

    def noted(self, rows, number, streams):
        hand = honest(self, rows, number, streams)
        played.extend(zip(rows.tolist(), number.tolist(), hand.z[:, 0].tolist(), strict=True))
        return hand

    monkeypatch.setattr(FreeJumps, "_hands", noted)
    size = hands_at_once(2, 1)
    moves = GlobalMoves(num_proposals=2, every=1)
    start, num_samples = exact_draws()[:70], 2 * size + 3
    advance(NUTS(max_tree_depth=1), bimodal, start, reference(), moves, num_samples)
    assert {(row, number) for row, number, _ in played} == {
        (row, number) for row in range(70) for number in range(num_samples)
    }
    assert len({z for _, _, z in played}) == len(played) == 70 * num_samples


@pytest.mark.parametrize("how", KERNELS)
def test_squared_weights_are_seen(how):
    # 2 (U_0 - U) = (2 U_0 - U) - U
    honest = reference()
    squared = honest._replace(potential_fn=lambda z: 2 * honest.potential_fn(z) - bimodal(z))
    assert p_value(moved_exactly(KERNELS[how], squared).z[:, -1]) < FAIL


@pytest.mark.parametrize("how", KERNELS)
def test_proposals_of_another_scale_are_seen(how):
    wrong = reference(drawn=1.3 * SPREAD)
    assert p_value(moved_exactly(KERNELS[how], wrong).z[:, -1]) < FAIL


def test_shares_against_brute_force():
    rows, n = 5, 3
    z = torch.randn(rows, 1, generator=rng(), dtype=torch.float64)
    proposals = SPREAD * torch.randn(rows, n, 1, generator=rng(1), dtype=torch.float64)
    energy = bimodal(z)
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for row in range(rows):
        points = [z[row], *proposals[row]]
        weights = [math.exp(float(normal(p) / SPREAD**2 - bimodal(p[None]))) for p in points]
        shares = np.array(weights) / sum(weights)
        args = (x[row : row + 1].expand(2000, *x.shape[1:]) for x in (z, energy, proposals))
        found = jump(bimodal, reference(), *args, grid)
        np.testing.assert_allclose(found.accept_prob, 1 - shares[0], rtol=1e-12)
        # The uniforms of the grid choose each point as often as its share, to a grid cell.
        counts = [(found.z == p).all(-1).double().mean() for p in points]
        np.testing.assert_allclose(counts, shares, atol=1 / 2000)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["target", "reference"])
def test_non_finite_proposals_have_weight_zero(value, where):
    def holed(potential_fn):
        return lambda z: torch.where(z[:, 0] > 1, value, potential_fn(z))

    base = reference()
    potential_fn = holed(bimodal) if where == "target" else bimodal
    holey = base._replace(potential_fn=holed(base.potential_fn)) if where != "target" else base
    z = torch.full((200, 1), -1.0, dtype=torch.float64)
    proposals = SPREAD * torch.randn(200, 6, 1, generator=rng(), dtype=torch.float64)
    noise = torch.rand(200, generator=rng(1), dtype=torch.float64)
    found = jump(potential_fn, holey, z, bimodal(z), proposals, noise)
    assert (found.z <= 1).all()
    # The same as if those proposals were infinitely far away.
    far = torch.where(proposals > 1, 1e3, proposals)
    rest = jump(bimodal, base, z, bimodal(z), far, noise)
    torch.testing.assert_close(found.accept_prob, rest.accept_prob)
    assert torch.equal(found.z, rest.z) and (found.z != z).any()


@pytest.mark.parametrize("chosen", [0.0, 0.5, 1 - 2.0**-53])
def test_without_a_usable_proposal_nobody_moves(chosen):
    z, proposals = torch.zeros(3, 1), torch.full((3, 4, 1), torch.nan)
    noise = torch.full((3,), chosen, dtype=torch.float64).to(z)
    found = jump(normal, reference(), z, normal(z), proposals, noise)
    assert (found.accept_prob == 0).all() and torch.equal(found.z, z)


def cliff(z):
    """A standard normal whose gradient is NaN above 1, where its value is finite."""
    below = (z.detach() < 1).to(z)
    return normal(z) + 0 * (z - z + below).sqrt()[:, 0]


@pytest.mark.parametrize("how", KERNELS)
def test_points_without_gradient_are_left_again(how):
    start = torch.as_tensor(stats.truncnorm.rvs(-np.inf, 1, size=(CHAINS, 1), random_state=0))
    moves = GlobalMoves(num_proposals=4, every=1)
    draws = advance(KERNELS[how], cliff, start, reference(), moves)
    assert torch.isfinite(draws.last.state.z_grad).all()
    assert draws.z.max() <= 1 and (draws.z[:, -1] != start).double().mean() > 0.9
    x = draws.z[:, -1, 0].numpy()
    assert stats.kstest(x, stats.truncnorm(-np.inf, 1).cdf).pvalue > PASS


def test_gradients_are_counted_in_step():
    potential = CountingGradients(bimodal)
    moves = GlobalMoves(num_proposals=2, every=1)
    z = exact_draws()[:10]
    draws = advance(HMC(), potential, z, reference(), moves, num_samples=30)
    assert (draws.info.num_steps.amin(0) >= 2).all()
    assert potential.gradients == 1 + draws.info.num_steps[0].sum() == 1 + draws.batch_steps


class CountingGradients(Counting):
    """Counts calls with a gradient apart."""

    gradients = 0

    def __call__(self, z):
        self.gradients += z.requires_grad
        return super().__call__(z)


@pytest.mark.parametrize("every", [1, 3])
def test_gradients_are_counted_freely(every):
    potential = CountingGradients(bimodal)
    moves = GlobalMoves(num_proposals=2, every=every)
    draws = advance(
        NUTS(max_tree_depth=1), potential, exact_draws()[:10], reference(), moves, num_samples=200
    )
    steps, tried = draws.info.num_steps, ~draws.info.global_accept_prob.isnan()
    # A tree of one step, and one more for the gradient where the move leads.
    assert torch.equal(steps, 1 + tried.long())
    # A chain that stops goes on from where it has come to, step by step of the batch.
    assert torch.equal(draws.last.step, (steps - tried.long()).sum(1))
    assert (draws.last.transitions == 200).all()
    first, last = (next_hand(every, torch.full((10,), n)) for n in (0, 200))
    assert torch.equal(tried.sum(1), last - first)
    numbers = [range(*pair) for pair in zip(first.tolist(), last.tolist(), strict=True)]
    size = hands_at_once(2, 1)
    decks = sum(len({deck_of(number, size)[0] for number in chain}) for chain in numbers)
    steps_of_the_batch = draws.batch_steps - (last - first).max()
    assert potential.gradients == 1 + steps_of_the_batch + decks


@pytest.mark.parametrize("how", KERNELS)
def test_moves_are_tried_as_often_as_asked(how):
    moves = GlobalMoves(num_proposals=1, every=4)
    draws = advance(KERNELS[how], bimodal, exact_draws()[:128], reference(), moves, num_samples=100)
    tried = (~draws.info.global_accept_prob.isnan()).double()
    if how == "in step":  # all chains at once, so only the draws are independent
        assert abs(tried.mean() - 0.25) < 4 * (0.25 * 0.75 / 100) ** 0.5
        return
    # One in four of every chain's own, which do not begin together.
    assert (tried.view(128, 25, 4).sum(-1) == 1).all()
    assert tried[:, 0].mean() == 0.25


@pytest.mark.parametrize("how", KERNELS)
def test_chains_do_not_depend_on_each_other(how):
    start = torch.randn(130, 1, generator=rng(), dtype=torch.float64)
    others = start + 0.3
    others[7] = start[7]
    others[100] = start[100]
    moves = GlobalMoves(num_proposals=3, every=2)
    one, other = (
        advance(KERNELS[how], gumbel, z, reference(), moves, num_samples=40)
        for z in (start, others)
    )
    same = (one.z == other.z).all(-1).all(-1)
    # Others may meet at the first proposal, which does not depend on where they came from.
    assert same[[7, 100]].all() and same.double().mean() < 0.5


def test_proposals_come_from_the_reference():
    like = torch.zeros(150, 6, 1, dtype=torch.float64)
    streams = Streams(0, 150, torch.device("cpu"))
    ways = {
        "by block": propose(reference(), like, streams),
        "by torch's generator": propose(reference(), like, rng()),
    }
    for what, drawn in ways.items():
        assert drawn.shape == like.shape and len(drawn.unique()) == like.numel(), what
        p = stats.kstest(drawn.flatten().numpy(), stats.norm(scale=SPREAD).cdf).pvalue
        assert p > PASS, what
    for one, other in pairwise(ways.values()):
        assert not (one == other).any()


def test_momentum_survives_a_move():
    z = exact_draws()[:20]
    momentum = torch.randn(20, 1, generator=rng(), dtype=torch.float64)
    state = evaluate(bimodal, z)._replace(momentum=momentum)
    moves = GlobalMoves(num_proposals=8, every=1)
    moved, _ = jump_all(moves, bimodal, reference(), state, rng())
    assert torch.equal(moved.momentum, momentum) and (moved.z != z).any()
    again = evaluate(bimodal, moved.z)
    torch.testing.assert_close(moved[:3], again[:3])


def test_refused_without_reference():
    start = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="global_moves: expected a reference"):
        run(HMC(), normal, start, num_samples=1, warmup_steps=1, global_moves=GlobalMoves())


@pytest.mark.parametrize("setting", ["num_proposals", "every"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4"])
def test_settings_are_checked(setting, value):
    with pytest.raises(ValueError, match=setting):
        GlobalMoves(**{setting: value})
