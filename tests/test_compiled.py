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

import pyro_gebm as pg
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
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1)).to(dtype)
    return lambda z: net(z)[:, 0] + 0.5 * z.square().sum(-1)


@pytest.fixture
def traced(monkeypatch):
    """The names of what is compiled, without the C++, and of what of it is called, each time."""
    real, made, called = torch.compile, [], []

    def compile_eagerly(function, **settings):
        fast = real(function, backend="eager", **settings)
        made.append(function.__name__)

        def run(*inputs):
            called.append(function.__name__)
            return fast(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    return made, called


@pytest.fixture
def graphs(monkeypatch):
    """What torch compiles: a graph for each form of a piece of code."""
    real, found = torch.compile, []

    def count(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **_: real(function, backend=count))
    return found


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
    halves = ["_drift", "_settle_"] if kernel == "NUTS" else []
    # Once, for warm-up and draws together.
    assert sorted(made) == sorted(["value_and_gradient", *halves])
    steps = idata["sample_stats"]["n_steps"].values
    assert called.count("value_and_gradient") >= steps.sum(1).max() > 0
    plain = quiet_sample(small_gebm().double(), kernel=kernel, **SETTINGS)
    one, other = (run["posterior"]["z"].values for run in (idata, plain))
    assert np.abs(one - other)[:, :2].max() < 1e-6
    again = quiet_sample(small_gebm().double(), kernel=kernel, compile=True, **SETTINGS)
    assert np.array_equal(again["posterior"]["z"].values, one)


def test_the_twentieth_potential_is_compiled_like_the_first(graphs):
    # Of one piece of code torch keeps eight compiled forms, and runs the ninth as it is.
    for i in range(20):
        z = torch.full((1, 2), 1.0 + i)
        value, gradient = value_and_grad(CompiledPotential(lambda z, i=i: (i * z).sum(-1)), z)
        assert float(value[0]) == 2.0 * i * (1 + i) and (gradient == i).all()
    assert len(graphs) == 20


def test_the_ninth_run_compiles_its_trees_like_the_first(graphs):
    for chains in range(2, 12):
        z, before = torch.zeros(chains, 4, dtype=torch.float64), len(graphs)
        start = Tuning(torch.full((chains,), 0.3).double(), torch.ones(4).double())
        potential_fn = CompiledPotential(potential())
        run(NUTS(max_tree_depth=2), potential_fn, z, num_samples=2, warmup_steps=0, tuning=start)
        assert len(graphs) == before + 3


def test_in_chunks_the_potential_alone_is_compiled(traced):
    made, _ = traced
    z = torch.zeros(6, 4, dtype=torch.float64)
    found = [
        quiet_sample(potential(), kernel="NUTS", initial_params=z, **SETTINGS, **more)
        for more in ({"compile": True, "chunk_size": 3}, {})
    ]
    assert made == ["value_and_gradient"]
    one, other = (idata["posterior"]["z"].values for idata in found)
    assert np.abs(one - other)[:, :2].max() < 1e-6


def test_ones_own_compiled_potential_is_compiled_once_and_at_any_beta(traced):
    made, _ = traced
    z = torch.zeros(6, 4, dtype=torch.float64)
    mine = CompiledPotential(potential())
    settings = {"kernel": "HMC", "initial_params": z, **SETTINGS}
    for compiling in (False, True):
        quiet_sample(mine, compile=compiling, **settings)
    assert made == ["value_and_gradient"]
    warm = quiet_sample(mine, beta=0.5, **settings)
    assert made == ["value_and_gradient"] * 2
    plain = quiet_sample(potential(), beta=0.5, **settings)
    one, other = (idata["posterior"]["z"].values for idata in (warm, plain))
    assert np.abs(one - other)[:, :2].max() < 1e-6


def test_without_torch_compile_sampling_goes_on_and_says_so_once(monkeypatch):
    def refuses(function, **settings):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", refuses)
    monkeypatch.setattr(masked_nuts, "_settle_", None)  # by rows again, which is faster
    with pytest.warns(UserWarning, match=r"compile failed \(RuntimeError\); sampling") as caught:
        idata = pg.sample(small_gebm(), kernel="NUTS", compile=True, progress=False, **SETTINGS)
    assert len([w for w in caught if "torch.compile failed" in str(w.message)]) == 1
    monkeypatch.undo()
    plain = quiet_sample(small_gebm(), kernel="NUTS", **SETTINGS)
    assert np.array_equal(idata["posterior"]["z"].values, plain["posterior"]["z"].values)


def test_an_error_of_the_potential_is_its_own(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)

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
