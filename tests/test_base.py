"""Latent priors against scipy, and the base."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

import pyro_gebm as pg

CASES = {
    "normal": (pg.StandardNormal(3), stats.norm),
    "uniform": (pg.UniformPrior(3, -2.0, 1.0), stats.uniform(-2.0, 3.0)),
    "laplace": (pg.LatentPrior(dist.Laplace(torch.zeros(3), 2.0).to_event(1)), stats.laplace(0, 2)),
    "torch": (
        pg.LatentPrior(
            torch.distributions.Independent(torch.distributions.Gumbel(torch.zeros(3), 1.0), 1)
        ),
        stats.gumbel_r,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_density_and_law_of_the_draws(case):
    prior, truth = case
    z = prior.sample(2000)
    assert z.shape == (2000, 3) and prior.dim == 3
    expected = truth.logpdf(z.double().numpy()).sum(-1)
    np.testing.assert_allclose(prior.log_prob(z).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert all(stats.kstest(column, truth.cdf).pvalue > 1e-4 for column in z.double().numpy().T)


@pytest.mark.parametrize(("name", "unbounded"), [("normal", True), ("uniform", False)])
def test_support(name, unbounded):
    assert CASES[name][0].is_unconstrained is unbounded


@pytest.mark.parametrize(
    "given",
    [
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 2), 1.0).to_event(1)
        ),
    ],
    ids=["multivariate", "mixture"],
)
def test_support_of_compound_distributions(given):
    assert pg.LatentPrior(given).is_unconstrained


def test_precision_follows_the_module():
    for prior in (pg.StandardNormal(2), pg.UniformPrior(2)):
        prior.double()
        assert prior.sample(1).dtype == prior.log_prob(prior.sample(1)).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pg.StandardNormal(0), "dim: expected a whole number >= 1; got 0"),
        (lambda: pg.UniformPrior(2.5), "dim: expected a whole number >= 1; got 2.5"),
        (lambda: pg.UniformPrior(2, 1.0, 1.0), r"high: expected a number in \(1.0, inf\]; got 1.0"),
        (
            lambda: pg.LatentPrior(dist.Normal(torch.zeros(2), 1.0)),
            r"distribution: expected event shape \(D,\).* got event \(\) and batch \(2,\)",
        ),
        (
            lambda: pg.LatentPrior(dist.Poisson(torch.ones(2)).to_event(1)),
            "distribution: expected a continuous one; got a discrete support",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_base_pushes_the_prior_forward():
    # x = 2z + 1: N(1, 4); 4 standard errors of 4,000 draws.
    generator = nn.Linear(1, 1)
    nn.init.constant_(generator.weight, 2.0)
    nn.init.constant_(generator.bias, 1.0)
    x = pg.Base(generator, pg.StandardNormal(1)).sample(4000)
    assert x.shape == (4000, 1) and not x.requires_grad
    assert abs(x.mean() - 1) < 4 * 2 / math.sqrt(4000)
    assert abs(x.var() / 4 - 1) < 4 * math.sqrt(2 / 4000)


def test_base_keeps_data_shapes():
    generator = nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 2, 2)))
    base = pg.Base(generator, pg.StandardNormal(2))
    assert base.sample(5).shape == (5, 3, 2, 2)
    z = torch.randn(4, 5, 2)
    torch.testing.assert_close(base(z)[1, 2], generator(z[1, 2:3])[0])


def test_base_samples_in_eval_mode_and_changes_nothing():
    generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    base = pg.Base(generator, pg.StandardNormal(2))
    generator[0].eval()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    modes = [module.training for module in base.modules()]
    torch.manual_seed(0)
    x = base.sample(5)
    assert [module.training for module in base.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    torch.manual_seed(0)
    torch.testing.assert_close(x, base.eval()(base.latent_prior.sample(5)))
