"""Compiled potentials and trees: the numbers of those that are not, and a way back."""

import shutil
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import quiet_sample, small_gebm
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_gebm as pg
from pyro_gebm import _compiler
from pyro_gebm.mcmc import NUTS, CompiledPotential, Tuning, masked_nuts, run
from pyro_gebm.mcmc.gradients import value_and_grad

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler on the CPU",
)
SETTINGS = {"num_chains": 6, "num_samples": 12, "warmup_steps": 10, "seed": 0}


def potential(dtype=torch.float64):
    torch.manual_seed(1)
    # Its parameters may want a gradient; what comes of it must not.
    layers = nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1)
    net = nn.Sequential(*layers).to(dtype)
    return lambda z: net(z)[:, 0] + 0.5 * z.square().sum(-1)


@pytest.fixture
def traced(monkeypatch):
    """The names of what is compiled, without the C++, and of what of it is called, each time."""
    made, called = [], []

    @torch.no_grad()
    def trace(function, inputs):
        graph = make_fx(lambda tensors: function(*tensors))([x.clone() for x in inputs])
        name = getattr(function, "func", function).__name__
        made.append(name)

        @torch.no_grad()
        def run(*inputs):
            called.append(name)
            return graph(inputs)

        return run

    monkeypatch.setattr(_compiler, "_compiled", trace)
    return made, called


@needs_compiler
def test_values_gradients_and_trees_are_those_that_are_not_compiled():
    plain = potential()
    fast = CompiledPotential(plain)
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = Tuning(torch.full((5,), 0.3, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    settings = {"num_samples": 8, "warmup_steps": 0, "tuning": start}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        found = value_and_grad(fast, z)
        trees = run(NUTS(max_tree_depth=4), fast, z, **settings)
    for one, other in zip(found, value_and_grad(plain, z), strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    by_rows = run(NUTS(max_tree_depth=4), plain, z, **settings)
    # In double precision rounding does not grow to another turn in so few transitions.
    torch.testing.assert_close(trees.z, by_rows.z, rtol=1e-6, atol=1e-6)
    assert torch.equal(trees.info.num_steps, by_rows.info.num_steps)
    assert by_rows.info.num_steps.max() > 4


@pytest.mark.parametrize("kernel", ["NUTS", "HMC"])
def test_a_gebm_is_sampled_from_what_was_compiled(kernel, traced):
    made, called = traced
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        idata = quiet_sample(small_gebm().double(), kernel=kernel, compile=True, **SETTINGS)
    # Once, for warm-up and draws together.
    assert sorted(made) == (["_advance_flat"] if kernel == "NUTS" else ["_arrive", "hop"])
    steps = idata["sample_stats"]["n_steps"].values
    assert len(called) >= steps.sum(1).max() > 0
    plain = quiet_sample(small_gebm().double(), kernel=kernel, **SETTINGS)
    one, other = (run["posterior"]["z"].values for run in (idata, plain))
    assert np.abs(one - other)[:, :2].max() < 1e-6
    again = quiet_sample(small_gebm().double(), kernel=kernel, compile=True, **SETTINGS)
    assert np.array_equal(again["posterior"]["z"].values, one)


def test_each_kind_of_input_is_compiled_once(traced):
    made, _ = traced
    fast, plain = CompiledPotential(potential()), potential()
    for _ in range(2):
        for chains in range(1, 12):
            z = torch.full((chains, 4), 0.1 * chains, dtype=torch.float64)
            for one, other in zip(value_and_grad(fast, z), value_and_grad(plain, z), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert len(made) == 11
    turned = torch.arange(24, dtype=torch.float64).view(4, 6).T  # read in its own order
    torch.testing.assert_close(value_and_grad(fast, turned), value_and_grad(plain, turned))


def test_later_runs_take_what_the_first_has_compiled(traced):
    made, _ = traced
    potential_fn = CompiledPotential(potential())
    for chains in (3, 5, 3, 5):
        z = torch.zeros(chains, 4, dtype=torch.float64)
        start = Tuning(torch.full((chains,), 0.3).double(), torch.ones(4).double())
        run(NUTS(max_tree_depth=2), potential_fn, z, num_samples=2, warmup_steps=0, tuning=start)
    assert made == ["_advance_flat"] * 2


@needs_compiler
def test_weights_that_change_in_place_are_seen():
    scale, shift = torch.tensor(1.0), torch.zeros(3)
    fast = CompiledPotential(lambda z: scale * (z - shift).square().sum(-1))
    z = torch.ones(2, 3)
    assert (value_and_grad(fast, z)[1] == 2.0).all()
    scale.fill_(3.0)
    shift.fill_(-1.0)
    assert (value_and_grad(fast, z)[1] == 12.0).all()


@needs_compiler
@pytest.mark.parametrize("kernel", ["NUTS", "HMC", "MALA"])
def test_positions_and_gradients_may_lie_in_memory_as_they_like(kernel):
    # The gradient of a sum is one number, expanded; starts are columns of something larger.
    def exponential(z):
        return torch.where((z > 0).all(-1), z.sum(-1), torch.inf)

    wide = torch.rand(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    settings = {"kernel": kernel, "initial_params": wide[:, :4], **SETTINGS, "num_chains": 5}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        fast = quiet_sample(exponential, compile=True, **settings)
    plain = quiet_sample(exponential, **settings)
    one, other = (idata["posterior"]["z"].values for idata in (fast, plain))
    assert np.abs(one - other)[:, :2].max() < 1e-6 and (one[:, 1:] != one[:, :-1]).any()


@needs_compiler
def test_the_same_network_with_other_weights_has_its_own_values():
    # torch keeps compiled graphs, and finds that of the first here: weights are no part of it.
    z = torch.ones(3, 2)
    for weight, width in ((2.0, 2), (5.0, 2), (7.0, 20)):
        matrix, shift = torch.full((2, width), weight), torch.tensor(weight)
        fast = CompiledPotential(lambda z, m=matrix, s=shift: (z @ m).sum(-1) + s * z.sum(-1))
        value, gradient = value_and_grad(fast, z)
        assert (gradient == weight * (width + 1)).all() and (value == 2 * gradient[:, 0]).all()


def test_a_potential_that_looks_at_its_values_is_never_compiled():
    def curious(z):
        return z.square().sum(-1) if float(z.detach().max()) > 0 else z.sum(-1)

    with pytest.warns(UserWarning, match="torch.compile failed") as caught:
        fast = CompiledPotential(curious)
        for sign in (1.0, -1.0):
            z = torch.full((5, 2), sign)
            expected = 2 * z if sign > 0 else torch.ones_like(z)
            assert torch.equal(value_and_grad(fast, z)[1], expected)
    assert len(caught) == 1


def test_in_chunks_the_potential_alone_is_compiled(traced):
    made, _ = traced
    z = torch.zeros(6, 4, dtype=torch.float64)
    found = [
        quiet_sample(potential(), kernel="NUTS", initial_params=z, **SETTINGS, **more)
        for more in ({"compile": True, "chunk_size": 3}, {})
    ]
    assert made == ["value_and_grad"]
    one, other = (idata["posterior"]["z"].values for idata in found)
    assert np.abs(one - other)[:, :2].max() < 1e-6


def test_ones_own_compiled_potential_is_compiled_once_and_at_any_beta(traced):
    made, _ = traced
    z = torch.zeros(6, 4, dtype=torch.float64)
    mine = CompiledPotential(potential())
    settings = {"kernel": "HMC", "initial_params": z, **SETTINGS}
    for compiling in (False, True):
        quiet_sample(mine, compile=compiling, **settings)
    assert sorted(made) == ["_arrive", "hop"]
    warm = quiet_sample(mine, beta=0.5, **settings)
    assert sorted(made) == ["_arrive", "_arrive", "hop", "hop"]
    plain = quiet_sample(potential(), beta=0.5, **settings)
    one, other = (idata["posterior"]["z"].values for idata in (warm, plain))
    assert np.abs(one - other)[:, :2].max() < 1e-6


def test_without_torch_compile_sampling_goes_on_and_says_so_once(monkeypatch):
    def refuses(function, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(_compiler, "_compiled", refuses)
    monkeypatch.setattr(masked_nuts, "advance_masked_", None)  # by rows again, which is faster
    with pytest.warns(UserWarning, match=r"compile failed \(RuntimeError\); sampling") as caught:
        idata = pg.sample(small_gebm(), kernel="NUTS", compile=True, progress=False, **SETTINGS)
    assert len([w for w in caught if "torch.compile failed" in str(w.message)]) == 1
    monkeypatch.undo()
    plain = quiet_sample(small_gebm(), kernel="NUTS", **SETTINGS)
    assert np.array_equal(idata["posterior"]["z"].values, plain["posterior"]["z"].values)


@pytest.mark.filterwarnings("ignore:torch.compile failed")
def test_an_error_of_the_potential_is_its_own():
    def failing(z):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        value_and_grad(CompiledPotential(failing), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "settings", [{"kernel": pyro.infer.NUTS}, {"kernel": "HMC", "tempering": 3}]
)
def test_refused_where_it_has_no_effect(settings):
    with pytest.raises(ValueError, match="compile: expected False with a kernel of Pyro's, and"):
        pg.sample(small_gebm(), compile=True, **settings)


def test_refused_for_a_pyro_model():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="compile: expected False with a Pyro model"):
        pg.sample(model, compile=True)
