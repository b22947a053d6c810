"""Pyro models as targets: against Pyro's own potential, closed forms and quadrature."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import linear_gaussian, small_gebm
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from pyro.ops.integrator import potential_grad
from torch import nn

from pyro_gebm.sampling import pyro_terms
from pyro_gebm.sampling.pyro_model import pyro_target

pytestmark = pytest.mark.usefixtures("double_precision_and_no_params")

Y = torch.tensor([0.3, -1.2, 0.8, 2.0])
LEFT, RIGHT = linear_gaussian(), small_gebm().double()


def inpaint(y):
    x = LEFT.model()
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.5, dtype=x.dtype)))
    pyro.sample("y", dist.Normal(x[:2], scale).to_event(1), obs=y[:2])


def two_gebms():
    left = scope(LEFT.model, prefix="left")()
    right = scope(RIGHT.model, prefix="right")()
    pyro.factor("close", -(left - right).square().sum())


def hierarchy(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("groups", 2), pyro.plate("data", 4):
        theta = pyro.sample("theta", dist.Normal(mu, tau).expand([4, 2]))
        pyro.deterministic("double", 2 * theta)
        pyro.sample("y", dist.StudentT(3.0, theta, 1.0), obs=y[:, None].expand(4, 2))


def shrunk():
    probs = pyro.sample("probs", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
    for i in pyro.plate("sequential", 2):
        pyro.sample(f"y{i}", dist.MultivariateNormal(probs, scale_tril=corr), obs=Y[:3])


class Regression(PyroModule):
    """Weights with priors, a learned offset, a scale site."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Laplace(0.0, 1.0).expand([1]).to_event(1))
        self.offset = nn.Parameter(torch.ones(()))

    def forward(self, features, y=None):
        mean = self.linear(features).squeeze(-1) + self.offset
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(features)):
            return pyro.sample("y", dist.Normal(mean, scale), obs=y)


def parametrised(y):
    centre = pyro.param("centre", torch.tensor(0.5), constraint=dist.constraints.positive)
    width = pyro.sample("width", dist.Uniform(0.0, 4.0))
    pyro.sample("y", dist.Laplace(centre, width).expand([4]).mask(y > 0).to_event(1), obs=y)


MODELS = {
    "gebm": (LEFT.model, ()),
    "inpaint": (inpaint, (Y,)),
    "two_gebms": (two_gebms, ()),
    "hierarchy": (hierarchy, (Y,)),
    "simplex": (shrunk, ()),
    "module": (Regression, (torch.linspace(-1, 1, 8).reshape(4, 2), Y)),
    "param": (parametrised, (Y,)),
    "scaled": (poutine.scale(hierarchy, scale=2.5), (Y,)),
    "masked": (poutine.mask(inpaint, mask=torch.tensor(True)), (Y,)),
    "conditioned": (poutine.condition(hierarchy, data={"tau": torch.tensor(0.7)}), (Y,)),
    "hidden_data": (poutine.block(hierarchy, hide=["y"]), (Y,)),
    "reparam": (poutine.reparam(hierarchy, config={"theta": LocScaleReparam(0.0)}), (Y,)),
}


def in_double(args):
    return tuple(a.double() for a in args)


def build(name, **settings):
    model, args = MODELS[name]
    model = model() if model is Regression else model  # in the precision of the test
    return model, in_double(args), pyro_target(model, in_double(args), {}, **settings)


def potential_and_gradient(target, u):
    u = u.clone().requires_grad_()
    value = target.potential_fn(u)
    return value.detach(), torch.autograd.grad(value.sum(), u)[0]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_potential_and_gradient_are_pyros(name, batched):
    model, args, target = build(name, batched=batched)
    u = target.reference.sample(3)
    value, gradient = potential_and_gradient(target, u)
    _, oracle, transforms, _ = initialize_model(model, args)
    sites = target.to_sites(u)
    assert list(sites) == list(target.shapes)
    assert value.dtype == torch.float64
    for chain in range(3):
        params = {key: transforms[key](v[chain]).detach() for key, v in sites.items()}
        grads, truth = potential_grad(oracle, params)
        torch.testing.assert_close(value[chain], truth, rtol=1e-10, atol=1e-10)
        flat = torch.cat([grads[key].reshape(-1) for key in sites])
        torch.testing.assert_close(gradient[chain], flat, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_sites_there_and_back(name):
    _, _, target = build(name)
    u = target.reference.sample(6)
    sites = target.to_sites(u.reshape(2, 3, -1))
    assert {key: tuple(v.shape) for key, v in sites.items()} == {
        key: (2, 3, *shape) for key, shape in target.shapes.items()
    }
    chains = {key: v.flatten(0, 1) for key, v in sites.items()}
    torch.testing.assert_close(target.from_sites(chains), u, rtol=1e-8, atol=1e-8)


def test_shapes_of_unconstrained_values():
    _, _, target = build("simplex")
    assert target.shapes == {"probs": (3,), "corr": (3, 3)}
    assert target.like.shape == (2 + 3,) and target.like.dtype == torch.float64


@pytest.mark.parametrize("name", ["inpaint", "hierarchy", "module"])
def test_beta_0_is_the_prior_and_the_likelihood_is_linear_in_beta(name):
    model, args, target = build(name)
    u = target.reference.sample(4)
    prior = target.reference.potential_fn(u)
    halfway = pyro_target(model, args, {}, beta=0.5).potential_fn(u)
    torch.testing.assert_close(halfway, (prior + target.potential_fn(u)) / 2)
    torch.testing.assert_close(pyro_target(model, args, {}, beta=0.0).potential_fn(u), prior)


def test_energy_of_a_gebm_belongs_to_the_beta_part():
    gebm = linear_gaussian()
    target = pyro_target(gebm.model, (), {}, beta=3.0)
    z = target.reference.sample(5)
    torch.testing.assert_close(target.potential_fn(z), gebm.potential_fn(z, beta=3.0))
    torch.testing.assert_close(target.reference.potential_fn(z), gebm.potential_fn(z, beta=0.0))


def test_deterministic_sites_are_pushed(monkeypatch):
    monkeypatch.setattr("pyro_gebm.sampling.pyro_density.CHUNK", 4)
    _, _, target = build("hierarchy")
    u = target.reference.sample(6).reshape(2, 3, -1)
    pushed = target.push(u)
    assert list(pushed) == ["double"] and not pushed["double"].requires_grad
    torch.testing.assert_close(pushed["double"], 2 * target.to_sites(u)["theta"])
    assert build("module")[2].push is None
    assert set(build("reparam")[2].push(torch.zeros(1, 10))) == {"theta", "double"}
    assert set(build("two_gebms")[2].push(torch.zeros(1, 4))) == {"left/x", "right/x"}


def test_single_precision():
    torch.set_default_dtype(torch.float32)
    target = pyro_target(hierarchy, (Y,), {})
    u = target.reference.sample(3)
    assert u.dtype == target.potential_fn(u).dtype == target.like.dtype == torch.float32
    double = pyro_target(hierarchy, (Y.double(),), {}).potential_fn(u)
    torch.testing.assert_close(target.potential_fn(u), double, rtol=1e-5, atol=1e-5)


def test_validation_and_parameters_are_left_as_they_were():
    torch.distributions.Distribution.set_default_validate_args(False)  # unlike Pyro's own flag
    try:
        model, _, target = build("module")
        potential_and_gradient(target, target.reference.sample(2))
        assert torch.distributions.Distribution._validate_args is False
        assert dist.is_validation_enabled() and poutine.util.is_validation_enabled()
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


def test_keyword_arguments_reach_the_model():
    features = torch.linspace(-1, 1, 8).reshape(4, 2)
    model = Regression().double()
    by_name = pyro_target(model, (features,), {"y": Y.double()})
    by_place = pyro_target(model, (features, Y.double()), {})
    u = by_name.reference.sample(2)
    torch.testing.assert_close(by_name.potential_fn(u), by_place.potential_fn(u), rtol=0, atol=0)


def test_every_site_counts(monkeypatch):
    """Plant a bug: observed sites dropped. The comparison with Pyro must see it."""
    real = pyro_terms.split_log_prob
    broken = functools.partial(real, prior_only=True)
    monkeypatch.setattr(
        "pyro_gebm.sampling.pyro_density.split_log_prob", lambda n, v, **_: broken(n, v)
    )
    with pytest.raises(AssertionError, match="not close"):
        test_potential_and_gradient_are_pyros("hierarchy", True)
