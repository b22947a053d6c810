"""The GEBM: its potential, its density ratio, its Pyro model, and that it leaves no trace."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import linear_gaussian, linear_gaussian_posterior, rng, small_gebm
from pyro.infer import MCMC, Predictive
from pyro.infer.mcmc.util import initialize_model
from torch import nn

import pyro_gebm as pg

PRIORS = {
    "normal": lambda: pg.StandardNormal(2),
    "uniform": lambda: pg.UniformPrior(2, -1.0, 2.0),
    "torch": lambda: pg.LatentPrior(
        torch.distributions.MultivariateNormal(torch.ones(2), 0.5 * torch.eye(2))
    ),
    "pyro": lambda: pg.LatentPrior(dist.Laplace(torch.zeros(2), 1.0).to_event(1)),
    "mixture": lambda: pg.LatentPrior(
        torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(3)),
            torch.distributions.Independent(
                torch.distributions.Normal(torch.eye(3)[:, :2] * 3, 1.0), 1
            ),
        )
    ),
}


@pytest.fixture(params=PRIORS)
def gebm(request):
    return small_gebm(PRIORS[request.param]())


def latents(gebm, shape=(5,)):
    return gebm.base.latent_prior.sample(math.prod(shape)).reshape(*shape, -1)


def energy_net(gebm):
    return lambda x: gebm.energy(x)[:, 0]


@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
def test_potential_is_the_formula(gebm, beta):
    z = latents(gebm)
    expected = beta * energy_net(gebm)(gebm.base.generator(z)) - gebm.base.latent_prior.log_prob(z)
    torch.testing.assert_close(gebm.potential_fn(z, beta), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_potential_is_minus_the_log_density_of_the_trace(gebm, beta):
    # float32: relative 1e-5
    for z in latents(gebm):
        conditioned = pyro.poutine.condition(gebm.model, data={"z": z})
        trace = pyro.poutine.trace(conditioned).get_trace(beta=beta)
        torch.testing.assert_close(
            gebm.potential_fn(z, beta), -trace.log_prob_sum(), rtol=1e-5, atol=1e-5
        )


def test_potential_in_double_precision():
    base = small_gebm().base.double()
    prior = pg.LatentPrior(dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    gebm = pg.GEBM(pg.Base(base.generator, prior), small_gebm().energy.double())
    z = torch.randn(2, generator=rng(), dtype=torch.float64)
    trace = pyro.poutine.trace(pyro.poutine.condition(gebm.model, data={"z": z})).get_trace()
    assert gebm.log_partition.dtype == torch.float64
    torch.testing.assert_close(gebm.potential_fn(z), -trace.log_prob_sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lead", [(), (4,), (3, 2), (1, 1, 5)])
def test_leading_dimensions(gebm, lead):
    z = latents(gebm, (*lead, 1)).squeeze(-2)
    potential = gebm.potential_fn(z)
    assert potential.shape == lead
    assert gebm.base(z).shape == (*lead, 3)
    alone = torch.stack([gebm.potential_fn(row) for row in z.reshape(-1, 2)])
    torch.testing.assert_close(potential.flatten(), alone)


@pytest.mark.parametrize("dims", [0, 1])
def test_energies_may_be_flat_or_columns(dims):
    gebm = small_gebm()
    column = gebm.energy
    flat = pg.GEBM(gebm.base, nn.Sequential(column, nn.Flatten(0))) if dims == 0 else gebm
    z = torch.randn(6, 2)
    expected = column(gebm.base.generator(z))[:, 0]
    torch.testing.assert_close(flat.latent_energy(z), expected)


@pytest.mark.parametrize("units", [2, 6])
def test_other_energies_are_refused(units):
    gebm = small_gebm()
    wrong = pg.GEBM(gebm.base, nn.Linear(3, units))
    with pytest.raises(ValueError, match=rf"energy: expected .* got \(6, {units}\)"):
        wrong.potential_fn(torch.randn(6, 2))


def test_base_must_be_a_base():
    with pytest.raises(ValueError, match="base: expected a Base; got Linear"):
        pg.GEBM(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"latent_prior: expected .* got Normal"):
        pg.Base(nn.Linear(2, 2), dist.Normal(0.0, 1.0))


def test_log_density_ratio_is_that_of_the_reweighted_base():
    # dQ/dB integrates to one under B once c = log Z: mean of exp over 40,000 draws of B.
    gebm = small_gebm().double()
    with torch.no_grad():
        energy = gebm.evaluate_energy(gebm.base.sample(40_000))
        gebm.log_partition.copy_((-energy).logsumexp(0) - math.log(40_000))
        ratio = gebm.log_density_ratio(gebm.base.sample(40_000)).exp()
    assert abs(ratio.mean() - 1) < 4 * math.sqrt(2) * ratio.std() / 200
    x = torch.randn(5, 3).double()
    torch.testing.assert_close(gebm.log_density_ratio(x), -energy_net(gebm)(x) - gebm.log_partition)


def test_constant_energy_gives_the_prior():
    gebm = small_gebm()
    nn.init.zeros_(gebm.energy[-1].weight)
    z = torch.randn(50, 2)
    difference = gebm.potential_fn(z) + gebm.base.latent_prior.log_prob(z)
    torch.testing.assert_close(difference, gebm.energy[-1].bias.detach().expand(50))


def test_uniform_potential_is_infinite_outside():
    gebm = small_gebm(pg.UniformPrior(2, -1.0, 2.0))
    z = torch.tensor([[0.0, 0.0], [2.5, 0.0], [0.0, -1.5], [torch.nan, 0.0]])
    inside, *outside = torch.isfinite(gebm.potential_fn(z)).tolist()
    assert inside and not any(outside)
    assert (gebm.potential_fn(z)[1:3] == torch.inf).all()
    expected = math.log(9) + energy_net(gebm)(gebm.base.generator(z[:1]))
    torch.testing.assert_close(gebm.potential_fn(z[:1]), expected)


@pytest.mark.parametrize(
    "given",
    [
        dist.Gamma(torch.ones(2), 1.0, validate_args=True),
        torch.distributions.Uniform(torch.zeros(2), 1.0, validate_args=True),
    ],
    ids=["pyro", "torch"],
)
def test_latent_prior_does_not_raise_outside_its_support(given):
    # A diverging trajectory asks for the density anywhere; the given object keeps its checks.
    wrapped = torch.distributions.Independent(given, 1)
    prior = pg.LatentPrior(wrapped)
    assert not torch.isfinite(prior.log_prob(torch.full((3, 2), -1.0))).any()
    assert not torch.isfinite(prior.log_prob(torch.full((3, 2), torch.nan))).any()
    inside = torch.rand(4, 2)
    torch.testing.assert_close(prior.log_prob(inside), wrapped.log_prob(inside))
    with pytest.raises(ValueError, match="support"):
        wrapped.log_prob(torch.full((3, 2), -1.0))


def test_model_simulates_the_prior_and_pushes_forward(gebm):
    trace = pyro.poutine.trace(gebm.model).get_trace()
    z, x = trace.nodes["z"]["value"], trace.nodes["x"]["value"]
    assert z.shape == (2,)
    torch.testing.assert_close(x, gebm.base(z))
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], x)
    assert not x.requires_grad


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(gebm, parallel):
    z = latents(gebm, (7,))
    given = Predictive(gebm.model, posterior_samples={"z": z}, parallel=parallel)()
    torch.testing.assert_close(given["x"].reshape(7, 3), gebm.base(z).detach())
    drawn = Predictive(gebm.model, num_samples=6, parallel=parallel, return_sites=("z", "x"))()
    torch.testing.assert_close(
        drawn["x"].reshape(6, 3), gebm.base(drawn["z"].reshape(6, 2)).detach()
    )
    assert len(drawn["z"].reshape(6, 2).unique(dim=0)) == 6


def test_model_composes_with_a_likelihood():
    gebm = small_gebm().double()
    seen = torch.tensor([0.3], dtype=torch.float64)

    def inpaint(y):
        x = gebm.model()
        pyro.sample("y", dist.Normal(x[:1], 0.5).to_event(1), obs=y)

    z = torch.randn(2, generator=rng(), dtype=torch.float64)
    trace = pyro.poutine.trace(pyro.poutine.condition(inpaint, data={"z": z})).get_trace(seen)
    likelihood = dist.Normal(gebm.base(z)[0], 0.5).log_prob(seen[0])
    torch.testing.assert_close(-trace.log_prob_sum(), gebm.potential_fn(z) - likelihood)


def test_pyro_mcmc_sees_the_potential():
    gebm = small_gebm()
    potential = initialize_model(gebm.model)[1]
    for z in torch.randn(3, 2):
        torch.testing.assert_close(potential({"z": z}), gebm.potential_fn(z))


def test_pyro_mcmc_samples_the_model():
    gebm = linear_gaussian()
    mean, covariance = linear_gaussian_posterior(gebm)
    mcmc = MCMC(pyro.infer.NUTS(gebm.model), 300, 100, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples()["z"].numpy()
    # At least 75 of 300 NUTS draws on a Gaussian count as independent.
    assert (abs(z.mean(0) - mean) < 4 * (covariance.diagonal() / 75) ** 0.5).all()
    assert all(p.grad is None and p.requires_grad for p in gebm.parameters())


def with_batch_norm():
    gebm = small_gebm()
    generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    gebm = pg.GEBM(pg.Base(generator, gebm.base.latent_prior), gebm.energy)
    gebm.base.sample(500)  # running statistics away from their start
    return gebm


def test_model_runs_networks_in_eval_mode():
    gebm = with_batch_norm()
    statistics = gebm.base.generator[1].running_mean.clone()
    trace = pyro.poutine.trace(gebm.model).get_trace()
    z = trace.nodes["z"]["value"]
    assert gebm.training and gebm.base.generator[1].training
    assert torch.equal(gebm.base.generator[1].running_mean, statistics)
    gebm.eval()
    torch.testing.assert_close(trace.nodes["x"]["value"], gebm.base(z).detach())
    torch.testing.assert_close(trace.log_prob_sum(), -gebm.potential_fn(z))


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_everything(fails):
    gebm = with_batch_norm()
    gebm.base.eval()
    gebm.energy[0].weight.requires_grad_(False)
    before = [m.training for m in gebm.modules()], [p.requires_grad for p in gebm.parameters()]
    try:
        with gebm.frozen() as inner:
            assert inner is gebm
            assert not any(m.training for m in gebm.modules())
            assert not any(p.requires_grad for p in gebm.parameters())
            if fails:
                raise RuntimeError("inside")
    except RuntimeError:
        assert fails
    after = [m.training for m in gebm.modules()], [p.requires_grad for p in gebm.parameters()]
    assert after == before
    assert len(set(before[0])) == len(set(before[1])) == 2
