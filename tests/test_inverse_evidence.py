"""The evidence where more is unknown than x, against quadrature."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_gebm as pg
from pyro_gebm.inverse import log_evidence
from pyro_gebm.metrics.partition import annealed_log_z


class Curve(nn.Module):
    """G(z) = (sin 2z, z²/2)."""

    def forward(self, z):
        return torch.cat([torch.sin(2 * z), 0.5 * z.square()], -1)


class Slope(nn.Module):
    def forward(self, x):
        return 1.5 * x[:, 0] - 0.5 * x[:, 1]


GEBM = pg.GEBM(pg.Base(Curve(), pg.StandardNormal(1)), Slope()).double()
GEBM.base.latent_prior.double()
Y = torch.tensor([0.4, 0.3], dtype=torch.float64)
WIDE = torch.tensor(1.0, dtype=torch.float64)


def noisy(y, gebm=GEBM, name="z"):
    """The scale of the noise is half-normal."""
    scale = pyro.sample("scale", dist.HalfNormal(WIDE))
    x = gebm.model(name=name)
    pyro.sample("y", dist.Normal(x, 0.1 + scale).to_event(1), obs=y)


def shifted(y):
    """So is the first datum's offset; two nuisance parameters in one site."""
    offset = pyro.sample("offset", dist.Normal(0 * Y, 0.5).to_event(1))
    x = GEBM.model()
    pyro.sample("y", dist.Normal(x + offset, 0.2).to_event(1), obs=y)


def by_quadrature(log_likelihood):
    """log of ∫∫ η(z) e^-E p(θ) p(y | z, θ) / ∫ η(z) e^-E on a grid of z and θ > 0."""
    z = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    x = Curve()(z[:, None])
    log_prior = dist.Normal(0 * z, 1.0).log_prob(z) - Slope()(x)
    return float((log_prior + log_likelihood(x)).logsumexp(0) - log_prior.logsumexp(0))


def noisy_likelihood(y, x):
    scale = torch.linspace(0, 7, 1401, dtype=torch.float64)
    weight = dist.HalfNormal(WIDE).log_prob(scale) + math.log(7 / 1400)
    each = dist.Normal(x[:, None], 0.1 + scale[:, None]).log_prob(y).sum(-1)
    trapezoid = torch.ones_like(scale).index_fill(0, torch.tensor([0, 1400]), 0.5)
    return (each + weight + trapezoid.log()).logsumexp(1)


def shifted_likelihood(y, x):
    """The offset is Gaussian: it adds to the noise."""
    return dist.Normal(x, math.hypot(0.2, 0.5)).log_prob(y).sum(-1)


@pytest.fixture(scope="module")
def partition():
    return annealed_log_z(GEBM, 512, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("y", [Y, torch.tensor([-0.5, 1.2], dtype=torch.float64)], ids=str)
@pytest.mark.parametrize(
    ("model", "likelihood"), [(noisy, noisy_likelihood), (shifted, shifted_likelihood)]
)
def test_evidence_with_nuisance_parameters(model, likelihood, y, partition):
    state = torch.get_rng_state()
    rng = torch.Generator().manual_seed(0)
    found = log_evidence(
        GEBM, model=partial(model, y), num_chains=512, partition=partition, generator=rng
    )
    truth = by_quadrature(partial(likelihood, y))
    assert abs(found.log_evidence - truth) < 4.5 * found.standard_error
    assert found.standard_error < 0.15
    assert torch.equal(torch.get_rng_state(), state) and found.partition is partition
    assert set(found.sites) == {"z", "scale" if model is noisy else "offset"}
    assert found.sites["z"].shape == (512, 1)


def test_the_posterior_of_the_scale_comes_with_it(partition):
    rng = torch.Generator().manual_seed(1)
    found = log_evidence(
        GEBM, model=partial(noisy, Y), num_chains=1024, partition=partition, generator=rng
    )
    mean = float(found.joint.log_weights.exp() @ found.sites["scale"])
    scale = torch.linspace(1e-4, 7, 1400, dtype=torch.float64)
    z = torch.linspace(-7, 7, 701, dtype=torch.float64)
    x = Curve()(z[:, None])
    log_weight = (
        (dist.Normal(0 * z, 1.0).log_prob(z) - Slope()(x))[:, None]
        + dist.HalfNormal(WIDE).log_prob(scale)
        + dist.Normal(x[:, None], 0.1 + scale[:, None]).log_prob(Y).sum(-1)
    )
    truth = float(log_weight.logsumexp(0).softmax(0) @ scale)
    assert mean == pytest.approx(truth, abs=4 * 0.35 / math.sqrt(400))


def test_the_same_as_from_a_likelihood(partition):
    def known(y):
        x = GEBM.model()
        pyro.sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)

    def log_likelihood(x):
        return dist.Normal(x, 0.3).log_prob(Y).sum(-1)

    rng = torch.Generator().manual_seed(2)
    settings = {"num_chains": 512, "partition": partition, "generator": rng}
    one = log_evidence(GEBM, log_likelihood, **settings)
    other = log_evidence(GEBM, model=partial(known, Y), **settings)
    error = math.hypot(one.standard_error, other.standard_error)
    assert abs(one.log_evidence - other.log_evidence) < 4.5 * error
    torch.testing.assert_close(one.sites["z"], one.joint.z)


def test_refusals():
    def twice(y):
        noisy(y)
        GEBM.model(name="other")

    def without(y):
        pyro.sample("z", dist.Normal(WIDE, 1.0))

    rng = torch.Generator().manual_seed(0)
    for model, message in (
        (
            twice,
            r"expected one call of gebm.model\(\); got the energy factors \['neg_energy', 'oth",
        ),
        (without, r"expected one call of gebm.model\(\); got the energy factors \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            log_evidence(GEBM, model=partial(model, Y), num_chains=64, generator=rng)
    with pytest.raises(ValueError, match="expected one of log_likelihood and model"):
        log_evidence(GEBM, num_chains=64, generator=rng)
    with pytest.raises(ValueError, match="num_chains"):
        log_evidence(GEBM, model=partial(noisy, Y), num_chains=0, generator=rng)
