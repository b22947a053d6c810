"""Recorded potentials: the bits of the model itself, or the model itself."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_pyro_models import MODELS, build

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.inverse import sample_many
from pyro_gebm.inverse.problems import many_problems
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.sampling import recorded, recorder
from pyro_gebm.sampling.build import build_target
from pyro_gebm.sampling.recorded import Recorded
from pyro_gebm.sampling.recorder import NotRecordableError, record

pytestmark = pytest.mark.usefixtures("double_precision_and_no_params")


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(recorded, "CALLS_BEFORE", 0)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    return torch.equal(a.nan_to_num(nan=1.5e300), b.nan_to_num(nan=1.5e300))


def weighted(potential, u, weights):
    """As replicas at several temperatures have it."""
    u = u.clone().requires_grad_()
    value = potential(u) * weights
    return torch.autograd.grad(value.sum(), u)[0]


def assert_same_bits(fast, plain, u):
    for at in (u, u + 1, -2 * u, u.flip(0)):
        for a, b in zip(evaluate(fast, at)[1:3], evaluate(plain, at)[1:3], strict=True):
            assert same(a, b)
        with torch.no_grad():
            assert same(fast(at), plain(at))
            assert same(fast(at.t().contiguous().t()), plain(at.t().contiguous().t()))
        weights = torch.linspace(-1, 2, len(at))
        assert same(weighted(fast, at, weights), weighted(plain, at, weights))


# --- the zoo of Pyro models ------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_same_bits(name, at_once):
    with pyro.validation_enabled():  # other tests may have left it off
        target = build(name)[2]
        u = target.reference.sample(5)
        for potential in (target.potential_fn, target.reference.potential_fn):
            assert isinstance(potential, Recorded)
            assert_same_bits(potential, potential.potential_fn, u)
            assert len(potential.tapes) == 3 and None not in potential.tapes.values()


def shifted(y, width):
    u = pyro.sample("u", dist.Normal(torch.zeros(2), width).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))  # writes in place
    pyro.sample("y", dist.Normal(u.sum(), scale).expand([3]).to_event(1), obs=y)


def test_many_problems_have_the_same_bits(at_once):
    y, width = randn(4, 3), randn(4, seed=1).exp()
    for chunk_size in (None, 3):
        potential = many_problems(shifted, (y, width), chunk_size).potential_fn
        assert_same_bits(potential, potential.potential_fn, randn(8, 3, seed=2))
        assert all(potential.tapes.values())


def test_draws_are_bit_for_bit_those_of_the_model(monkeypatch):
    y, width = randn(4, 3), randn(4, seed=1).exp()
    draws = []
    for before in (10**9, 2):
        monkeypatch.setattr(recorded, "CALLS_BEFORE", before)
        settings = {"num_samples": 4, "warmup_steps": 5, "num_chains": 4, "seed": 0}
        settings["progress"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            many = sample_many(shifted, y, width, **settings)
            one = pg.sample(shifted, y[0], width[0], tempering=(0, 0.3, 1.0), **settings)
            settings["global_moves"] = None
            free = pg.sample(shifted, y[0], width[0], kernel=pg.NUTS(max_tree_depth=4), **settings)
        draws.append([inference_data.values(i, "u") for i in (many, one, free)])
    for a, b in zip(*draws, strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_shapes_that_come_often_are_recorded(monkeypatch):
    potential = Recorded(torch.func.vmap(lambda z: z.square().sum()))
    for _ in range(recorded.CALLS_BEFORE):
        potential(randn(3, 2))
        potential(randn(4, 2))
    assert not potential.tapes
    potential(randn(3, 2))
    potential(randn(3, 2).requires_grad_())
    assert [kind.shape for kind in potential.tapes] == [(3, 2)]
    monkeypatch.setattr(recorded, "CALLS_BEFORE", 0)
    for rows in range(1, 40):
        assert torch.equal(potential(randn(rows, 2)), randn(rows, 2).square().sum(-1))
    assert len(potential.tapes) == recorded.MAX_TAPES


def test_a_gibbs_step_is_not_recorded():
    target = build_target(shifted, (randn(3), torch.tensor(1.0)), recorded=False)
    assert not isinstance(target.potential_fn, Recorded)
    target = build_target(shifted, (randn(3), torch.tensor(1.0)), batched=False)
    assert not isinstance(target.potential_fn, Recorded)


# --- what cannot be recorded runs as it is ------------------------------------------

COUNTER = torch.zeros(())
CALLS = []


OUTSIDE = torch.zeros(2)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda u: u * torch.rand(2), "rand.default draws noise"),
        (lambda u: u + torch.randn_like(u), "randn_like.default draws noise"),
        (lambda u: u * float(u.sum()), "_local_scalar_dense.default draws noise or reads"),
        (lambda u: u if u.sum() > 0 else -u, "reads values"),
        (lambda u: u[u > 0], "reads values"),
        (lambda u: u.clone().normal_(), "draws noise"),
        (lambda u: COUNTER.add_(1) * u, "writes in place"),
        (lambda u: OUTSIDE.copy_(u[0]) * u, "writes to what is not its own"),
        (lambda u: u.mul_(2), "writes to what is not its own"),
        (lambda u: torch.ones(3, 2), "does not depend on the input"),
        (lambda u: torch.complex(u, u).abs(), "complex"),
        (lambda u: u.view(torch.int64).to(u) * u, "another type"),
    ],
)
def test_refusals_to_record(program, message):
    with pytest.raises(NotRecordableError, match=message):
        record(lambda u: (program(u),), randn(3, 2))


def test_values_that_leave_by_a_back_door_are_noticed():
    def program(u):
        x = u * 2
        return (torch.from_numpy(x.numpy()) * u,)

    with pytest.raises(NotRecordableError, match="taken out"):
        record(program, randn(3, 2))


@pytest.mark.parametrize("wrong", ["noise", "state"])
def test_python_that_is_not_a_function_of_u_is_noticed(wrong, at_once):
    noise = np.random.default_rng(0)

    def energy(z):
        CALLS.append(0)
        return z.sum() * (noise.normal() if wrong == "noise" else (-1) ** len(CALLS))

    potential = Recorded(torch.func.vmap(energy))
    u = randn(3, 2)
    values = [evaluate(potential, u).potential_energy for _ in range(4)]
    assert not any(potential.tapes.values())
    assert not torch.equal(values[-1], values[-2])  # as without recording


def test_a_recording_that_is_wrong_is_not_used(at_once, monkeypatch):
    # As if what exp gives did not depend on values.
    monkeypatch.setattr(recorder, "SHAPE_ONLY", {*recorder.SHAPE_ONLY, torch.ops.aten.exp.default})
    potential = Recorded(torch.func.vmap(lambda z: z.exp().sum() + z.sum()))
    u = randn(3, 2)
    evaluate(potential, u)
    assert list(potential.tapes.values()) == [None]
    assert torch.equal(evaluate(potential, u + 1).z_grad, (u + 1).exp() + 1)


def test_errors_are_the_models_own(at_once):
    def energy(z):
        try:
            factor = torch.linalg.cholesky(torch.diag(z))
        except RuntimeError as error:
            raise ValueError("no factor") from error
        return factor.diagonal().log().sum()

    potential = Recorded(torch.func.vmap(energy))
    u = torch.ones(3, 2)
    evaluate(potential, u)
    assert list(potential.tapes.values()) == [None]  # elsewhere there is no factor
    kind = next(iter(potential.tapes))
    potential.tapes[kind] = record(lambda u: evaluate(potential.potential_fn, u)[1:3], u)
    torch.testing.assert_close(evaluate(potential, 2 * u).z_grad, 0.25 * u)  # of Σ log(z)/2
    with pytest.raises(ValueError, match="no factor"):
        evaluate(potential, -u)


# --- tapes ------------------------------------------


def assert_replays(program, u, steps=None):
    made = record(program, u)
    for at in (u, u + 1, -u):
        for a, b in zip(made(at), program(at), strict=True):
            assert torch.equal(a, b) and a.stride() == b.stride()
    assert steps is None or len(made) == steps
    return made


def test_constants_views_and_unused_results_cost_nothing():
    weight = randn(2, 2)

    def program(u):
        u.sin()
        return (u.view(2, 3).view(3, 2).t().t() * (weight @ weight).exp()[0],)

    assert_replays(program, randn(3, 2), steps=1)


def test_writing_in_place():
    def program(u):
        x = u.exp()
        before = x + 1
        x[:, 0] += 1  # through a view
        x.mul_(before)
        made = torch.zeros(3, 2)
        made[0] = 4.0
        made[1:] = x[1:]  # what was a constant
        return x - before, made * u, made

    made = assert_replays(program, randn(3, 2))
    first = made(randn(3, 2))
    made(randn(3, 2) + 3)
    assert torch.equal(first[2], program(randn(3, 2))[2])  # results are not written to again


def test_a_constant_that_is_written_to_after_use_is_refused():
    def program(u):
        made = torch.zeros(2)
        first = u * made
        made.fill_(2.0)
        return (first + u * made,)

    with pytest.raises(NotRecordableError, match="writes in place"):
        record(program, randn(3, 2))


def test_inputs_may_lie_anywhere():
    made = record(lambda u: (u[1:].t().exp(),), randn(3, 2))
    whole = randn(8, 4)
    for u in (whole[2:5, 1:3], whole.t()[:3, 2:4], whole[::3, :2]):
        assert torch.equal(made(u)[0], u[1:].t().exp())


def test_several_results_and_lists():
    def program(u):
        low, high = torch.split(u, [1, 2], 0)
        values, places = u.sort(0)
        return torch.cat([high, low, values]), torch.stack([low, low]) * places.sum()

    assert_replays(program, randn(3, 2))


UNARY = [torch.exp, torch.sin, torch.tanh, lambda x: x.t().contiguous().t(), lambda x: x[:, :1] + x]
BINARY = [torch.add, torch.mul, torch.maximum, lambda a, b: torch.where(a > b, a, 0.5 * b)]


@pytest.mark.parametrize("seed", range(10))
def test_programs_put_together_at_random(seed):
    rng = np.random.default_rng(seed)
    places = [(int(rng.integers(9)), *map(int, rng.integers(0, 99, 2))) for _ in range(12)]

    def energy(z):
        known = [z[None] * torch.ones(2, 1), torch.arange(6.0).reshape(2, 3)]
        for kind, a, b in places:
            left, right = known[a % len(known)], known[b % len(known)]
            known.append(
                UNARY[kind](left.tanh()) if kind < 5 else BINARY[kind - 5](left, right) * 0.5
            )
        return sum(x.sum() for x in known)

    potential = torch.func.vmap(energy)
    u = randn(4, 3, seed=seed)
    assert_replays(lambda u: evaluate(potential, u)[1:3], u)


def test_gradients_are_had_once(at_once):
    potential = Recorded(torch.func.vmap(lambda z: z.square().sum()))
    u = randn(3, 2).requires_grad_()
    evaluate(potential, u)
    (gradient,) = torch.autograd.grad(potential(u).sum(), u, create_graph=True)
    assert torch.equal(gradient, 2 * u)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), u)
