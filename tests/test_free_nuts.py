"""A run of NUTS, where every chain goes on as soon as its own tree is finished."""

import pytest
import torch
from exact import CHAINS, FAIL, PASS, exact_draws, near_skewed, p_value, skewed
from helpers import Counting, gumbel, make_tuning, rng

from pyro_gebm.mcmc import HMC, NUTS, ChEES, GlobalMoves, Moves, Position, Warmed, draw, nuts
from pyro_gebm.mcmc.draws import Buffers
from pyro_gebm.mcmc.kernel import evaluate

SAMPLES = 5
FREE = NUTS(max_tree_depth=4)


def begin(potential_fn, z, step_size, mass=None):
    """What ``draw`` starts from: chains at ``z`` (C, D) under a given tuning."""
    steps = torch.zeros(len(z), dtype=torch.int64)
    tuning = make_tuning(z, step_size, mass)
    return Warmed(Position(evaluate(potential_fn, z), steps, steps), tuning, steps)


def exact_run(num_samples=SAMPLES, **moves):
    """Draws from exact starts; steps of 0.8 accept about 0.8."""
    mass = torch.tensor([1.3, 0.8])
    moves = Moves(FREE, skewed, **moves)
    return draw(moves, begin(skewed, exact_draws(), 0.8, mass), num_samples, seed=5)


@pytest.mark.parametrize("every", [0, 2], ids=["alone", "with global moves"])
def test_every_draw_is_exact(every):
    moves = {}
    if every:
        global_moves = GlobalMoves(num_proposals=4, every=every)
        moves = {"reference": near_skewed(), "global_moves": global_moves}
    draws = exact_run(**moves)
    assert draws.z.shape == (CHAINS, SAMPLES, 2)
    # Chains are out of step: they differ in the gradients that they have used.
    assert len(draws.info.num_steps.sum(1).unique()) > 10
    for k in range(SAMPLES):
        assert p_value(draws.z[:, k]) > PASS
    path = torch.cat([exact_draws()[:, None], draws.z], 1)
    assert (path[:, 1:] != path[:, :-1]).any(-1).double().mean() > 0.8


def test_stopping_all_chains_at_one_step_is_seen(monkeypatch):
    # Where a chain stands at a given step of the batch depends on how long its trees are: the
    # newest draws are those whose next trees are long.
    def is_over(self):
        return int(self.count.sum()) >= 3 * len(self.count) and self.whole() >= 1

    def newest(self):
        z, energy, info = honest(self)
        every = torch.arange(len(z))
        return self._rooms["z"][self.count - 1, every][:, None], energy[:, :1], info

    honest = Buffers.read
    monkeypatch.setattr(Buffers, "full", is_over)
    monkeypatch.setattr(Buffers, "read", newest)
    assert p_value(exact_run(num_samples=20).z[:, 0]) < FAIL


def test_square_rooted_weights_are_seen(monkeypatch):
    honest = nuts.record_
    monkeypatch.setattr(nuts, "record_", lambda *args: 0.5 * honest(*args))
    assert p_value(exact_run().z[:, -1]) < FAIL


def small(kernel, chains=70, num_samples=8, thinning=1, start=None, potential_fn=gumbel):
    z = torch.randn(130, 3, generator=rng(1), dtype=torch.float64)[:chains]
    start = start or begin(potential_fn, z, 0.5)
    return draw(Moves(kernel, potential_fn), start, num_samples, thinning=thinning, seed=3)


RUNNING = [NUTS(), HMC(), ChEES()]
IDS = ["NUTS", "HMC", "ChEES"]


@pytest.mark.parametrize("kernel", RUNNING, ids=IDS)
@pytest.mark.parametrize("chains", [64, 65, 128])
def test_draws_do_not_depend_on_the_number_of_chains(kernel, chains):
    # Noise comes by blocks of 64, of which an incomplete one may differ.
    many, few = small(kernel, 130), small(kernel, chains)
    whole = chains // 64 * 64
    assert torch.equal(many.z[:whole], few.z[:whole])
    assert torch.equal(many.info.num_steps[:whole], few.info.num_steps[:whole])


@pytest.mark.parametrize("kernel", RUNNING, ids=IDS)
def test_a_run_goes_on_where_it_stopped(kernel):
    whole = small(kernel, num_samples=8)
    first = small(kernel, num_samples=3)
    start = Warmed(first.last, first.tuning, first.num_warmup_steps)
    second = small(kernel, num_samples=5, start=start)
    assert torch.equal(torch.cat([first.z, second.z], 1), whole.z)
    for name in ("accept_prob", "num_steps", "energy_error"):
        parts = [getattr(part.info, name) for part in (first, second)]
        assert torch.equal(torch.cat(parts, 1), getattr(whole.info, name))
    assert torch.equal(second.last.state.z, whole.last.state.z)
    assert torch.equal(second.last.step, whole.last.step)


def test_thinned_draws_are_every_kth():
    every, third = small(NUTS(), num_samples=9), small(NUTS(), num_samples=3, thinning=3)
    assert torch.equal(every.z[:, 2::3], third.z)
    steps = every.info.num_steps.view(-1, 3, 3).sum(-1)
    assert torch.equal(steps, third.info.num_steps)
    assert every.batch_steps == third.batch_steps


def test_batch_steps_are_what_the_slowest_chain_needed():
    potential = Counting(gumbel)
    draws = small(NUTS(), potential_fn=potential)
    assert potential.calls == 1 + draws.batch_steps
    assert draws.batch_steps == draws.info.num_steps.sum(1).max()
    # In step each draw would have waited for the deepest tree of the batch.
    assert draws.batch_steps < 0.8 * draws.info.num_steps.amax(0).sum()
