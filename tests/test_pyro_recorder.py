"""``run_pyro`` against Pyro itself: the same draws, and what Pyro knew of them."""

from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Counting, gumbel, normal, rng, standard_scores
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.rwkernel import RandomWalkKernel

from pyro_gebm.mcmc import pyro_recorder
from pyro_gebm.mcmc.pyro_kernels import run_pyro

SEED = 5


class Spy(NUTS):
    """Notes every leaf of its trees by other means than the recorder."""

    log: ClassVar[list] = []

    def _build_basetree(self, z, r, z_grads, log_slice, direction, energy_current):
        leaf = super()._build_basetree(z, r, z_grads, log_slice, direction, energy_current)
        # Of a multinomial tree the weight of a leaf is minus its energy error.
        self.log.append((energy_current, z, leaf.z_proposal["z"], -leaf.weight))
        return leaf


KERNELS = {
    "NUTS": NUTS,
    "slice": lambda potential_fn: NUTS(potential_fn=potential_fn, use_multinomial_sampling=False),
    "full mass": lambda potential_fn: NUTS(potential_fn=potential_fn, full_mass=True),
    "HMC": lambda potential_fn: HMC(
        potential_fn=potential_fn, step_size=0.5, num_steps=4, adapt_step_size=False
    ),
    "subclass": Spy,
}


def start(num_chains=3, dtype=torch.float32):
    return torch.randn(num_chains, 2, generator=rng(1)).to(dtype)


def as_given(name):
    """A class, or an object that comes with a potential to be replaced."""
    factory = KERNELS[name]
    return factory if isinstance(factory, type) else factory(potential_fn=lambda params: 1 / 0)


def stock(factory, potential_fn, z, seed):
    """Pyro's own MCMC, one chain from ``z`` (D,)."""
    pyro.set_rng_seed(seed)
    kernel = factory(potential_fn=lambda params: potential_fn(params["z"][None])[0])
    start_at = {"z": z.clone()}
    mcmc = MCMC(kernel, 30, 40, start_at, disable_progbar=True)
    mcmc.run()
    return mcmc


def steep(z):
    """With a step of 2,000 nats, which counts as a divergence."""
    return gumbel(z) + 2000.0 * (z[:, 0] > 1.0)


@pytest.mark.parametrize("name", KERNELS)
def test_the_draws_are_those_of_pyro_bit_for_bit(name):
    z = start()
    draws = run_pyro(as_given(name), steep, z, num_samples=30, warmup_steps=40, seed=SEED)
    for chain in range(3):
        theirs = stock(KERNELS[name], steep, z[chain], SEED + chain)
        assert torch.equal(draws.z[chain], theirs.get_samples()["z"])
        diverging = draws.info.diverging[chain].nonzero()[:, 0].tolist()
        assert diverging == theirs.diagnostics()["divergences"]["chain 0"]
    assert draws.info.diverging.any()
    assert not torch.equal(draws.z[0], draws.z[1])


@pytest.mark.parametrize("warmup_steps", [0, 40])
def test_a_random_walk_is_that_of_pyro_from_our_start(warmup_steps):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    # Stock MCMC has no way to give this kernel a start: its loop by hand.
    z = 3 * start()  # far out: the energy that it starts with matters
    settings = {"num_samples": 30, "warmup_steps": warmup_steps, "seed": SEED}
    draws = run_pyro(RandomWalkKernel, normal, z, **settings)
    pyro.set_rng_seed(SEED + 1)
    kernel, params = RandomWalkKernel(model), {"z": z[1]}
    kernel.setup(warmup_steps)
    kernel.potential_fn = lambda params: normal(params["z"][None])[0]
    kernel._energy_last = kernel.potential_fn(params)
    theirs = [params := kernel.sample(params) for _ in range(warmup_steps + 30)][warmup_steps:]
    assert torch.equal(draws.z[1], torch.stack([each["z"] for each in theirs]))
    assert draws.tuning.step_size[1].item() == pytest.approx(np.exp(kernel._log_step_size))
    accept = draws.info.accept_prob[1].mean().item()
    assert accept == pytest.approx(kernel._mean_accept_prob, abs=1e-6)
    assert (draws.info.num_steps == 1).all() and draws.info.hamiltonian is None


@pytest.mark.parametrize("kernel", [NUTS, HMC, RandomWalkKernel])
def test_moments_of_a_normal(kernel):
    settings = {"num_samples": 1000 if kernel is RandomWalkKernel else 80, "seed": SEED}
    z = run_pyro(kernel, normal, start(8), warmup_steps=60, **settings).z
    assert abs(standard_scores(z.numpy(), 0.0)).max() < 4
    assert abs(standard_scores(z.square().numpy(), 1.0)).max() < 4


def test_energies_of_hmc():
    z = start(2, torch.float64)
    kernel = HMC(potential_fn=id, step_size=0.75, num_steps=3, adapt_step_size=False)
    draws = run_pyro(kernel, gumbel, z, num_samples=400, warmup_steps=0, seed=SEED)
    torch.testing.assert_close(draws.potential_energy, gumbel(draws.z.flatten(0, 1)).view(2, -1))
    before = torch.cat([gumbel(z)[:, None], draws.potential_energy[:, :-1]], 1)
    kinetic = (draws.info.hamiltonian - before).numpy()
    # A momentum of two dimensions: r²/2 is exponential, with mean and variance 1.
    assert kinetic.min() > 0
    assert abs(kinetic.mean() - 1) < 4 / kinetic.size**0.5
    accept = (-draws.info.energy_error).exp().clamp(max=1)
    torch.testing.assert_close(draws.info.accept_prob, accept)
    moved = (draws.z[:, 1:] != draws.z[:, :-1]).any(-1).numpy()
    expected = accept[:, 1:].numpy()
    error = np.sqrt((expected * (1 - expected)).sum())
    assert abs(moved.sum() - expected.sum()) < 4 * error
    assert (draws.info.num_steps == 3).all()


def test_energies_of_nuts():
    Spy.log.clear()
    z = start(1, torch.float64)
    draws = run_pyro(Spy, gumbel, z, num_samples=50, warmup_steps=30, seed=SEED)
    info, every = draws.info, Spy.log[-int(draws.info.num_steps.sum()) :]
    ends = info.num_steps[0].cumsum(0).tolist()
    position = z[0]
    for draw, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
        leaves = every[first:last]
        assert all(leaf[0] == info.hamiltonian[0, draw] for leaf in leaves)
        errors = torch.stack([leaf[3] for leaf in leaves])
        chosen = [leaf[3].item() for leaf in leaves if torch.equal(leaf[2], draws.z[0, draw])]
        if not chosen:
            assert draw == 0 or torch.equal(draws.z[0, draw], position)
            chosen = [0.0]
        position = draws.z[0, draw]
        assert info.energy_error[0, draw].item() == pytest.approx(chosen[0], abs=1e-12)
        largest = errors[errors.abs().argmax()].item()
        assert info.max_energy_error[0, draw].item() == pytest.approx(largest, abs=1e-12)
        accept = (-errors).exp().clamp(max=1).mean().item()
        assert info.accept_prob[0, draw].item() == pytest.approx(accept)
    depth, steps = info.tree_depth, info.num_steps
    assert (steps >= 2**depth - 1).all() and (steps <= 2 ** (depth + 1) - 1).all()
    assert len(depth.unique()) > 1 and not info.reached_max_treedepth.any()


def test_depth_limit():
    # A tiny step: no tree of three doublings turns.
    shallow = NUTS(potential_fn=id, step_size=1e-3, adapt_step_size=False, max_tree_depth=3)
    info = run_pyro(shallow, normal, start(), num_samples=5, warmup_steps=0, seed=SEED).info
    assert (info.tree_depth == 3).all() and (info.num_steps == 7).all()
    assert info.reached_max_treedepth.all()


def test_thinning_keeps_every_third():
    settings = {"warmup_steps": 20, "seed": SEED}
    every = run_pyro(NUTS, steep, start(), num_samples=30, **settings)
    third = run_pyro(NUTS, steep, start(), num_samples=10, thinning=3, **settings)
    assert torch.equal(every.z[:, 2::3], third.z)
    rows = {k: v.view(3, 10, 3) for k, v in every.info._asdict().items() if v is not None}
    assert torch.equal(third.info.tree_depth, rows["tree_depth"].amax(-1))
    assert torch.equal(third.info.hamiltonian, rows["hamiltonian"][..., -1])
    assert torch.equal(third.info.num_steps, rows["num_steps"].sum(-1))
    largest = rows["max_energy_error"].abs().amax(-1)
    assert torch.equal(third.info.max_energy_error.abs(), largest)
    assert torch.equal(third.num_warmup_steps, every.num_warmup_steps)


def lone_point(z):
    """NaN everywhere but at the origin."""
    return torch.where((z == 0).all(-1), 0.5 * z.square().sum(-1), torch.nan)


def flat(z):
    return 0.0 * z.sum(-1)


@pytest.mark.parametrize("kernel", [NUTS, HMC])
@pytest.mark.parametrize("potential_fn", [lone_point, flat])
def test_what_would_hang_is_refused_at_once(kernel, potential_fn):
    counting = Counting(potential_fn)
    with pytest.raises(ValueError, match="flat, or not finite, around the start"):
        run_pyro(kernel, counting, torch.zeros(1, 2), num_samples=9, warmup_steps=9)
    assert counting.calls < 100  # Pyro's search itself: it doubles or halves a step 33 times


def test_endless_transitions_are_refused(monkeypatch):
    slow = HMC(potential_fn=id, step_size=1e-7, trajectory_length=1.0, adapt_step_size=False)
    with pytest.raises(ValueError, match="more than 100,000 steps a trajectory"):
        run_pyro(slow, normal, start(), num_samples=1, warmup_steps=0)
    monkeypatch.setattr(pyro_recorder, "MAX_EVALUATIONS", 6)
    deep = NUTS(potential_fn=id, step_size=1e-3, adapt_step_size=False, max_tree_depth=3)
    with pytest.raises(ValueError, match="6 evaluations in one transition"):
        run_pyro(deep, normal, start(), num_samples=1, warmup_steps=0)


class Deaf(MCMCKernel):
    """Has a target of its own."""

    initial_params = None

    def sample(self, params):
        return {"z": torch.randn(2)}


def test_bad_kernels_and_starts():
    settings = {"num_samples": 2, "warmup_steps": 0}
    with pytest.raises(ValueError, match="Deaf never evaluated the potential"):
        run_pyro(Deaf(), normal, start(), **settings)
    blocks = NUTS(potential_fn=id, full_mass=[("a", "b")])
    with pytest.raises(ValueError, match="full_mass True or False; got"):
        run_pyro(blocks, normal, start(), **settings)
    with pytest.raises(ValueError, match="a start of finite potential; got nan"):
        run_pyro(NUTS, lone_point, start(), **settings)


def test_interrupted():
    settings = {"num_samples": 6, "warmup_steps": 4, "seed": SEED}
    kernel = HMC(potential_fn=id, step_size=0.3, num_steps=2, adapt_step_size=False)
    counting = Counting(normal)
    whole = run_pyro(kernel, counting, start(), **settings)
    calls = counting.calls // 3
    second = run_pyro(kernel, Counting(normal, fail_at=calls + 15), start(), **settings)
    assert second.interrupted and torch.equal(second.z, whole.z[:1])
    first = run_pyro(kernel, Counting(normal, fail_at=calls - 3), start(), **settings)
    assert first.interrupted and 0 < first.z.shape[1] < 6
    assert torch.equal(first.z, whole.z[:1, : first.z.shape[1]])
    with pytest.raises(KeyboardInterrupt):
        run_pyro(kernel, Counting(normal, fail_at=3), start(), **settings)


def test_the_global_stream_is_left_alone():
    settings = {"num_samples": 2, "warmup_steps": 2}
    before = torch.get_rng_state()
    run_pyro(NUTS, normal, start(), seed=SEED, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    once, again = (run_pyro(NUTS, normal, start(), **settings).z for _ in range(2))
    assert not torch.equal(once, again)  # no seed: a number from the global stream each
