"""Our kernels for Pyro's users: ``MCMC`` and ``as_pyro_kernel``."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import gumbel, linear_gaussian, linear_gaussian_posterior, normal, rng, standard_scores
from pyro.infer import Predictive
from pyro.infer.mcmc import api
from pyro.ops.stats import effective_sample_size, split_gelman_rubin

from pyro_gebm.mcmc import HMC, NUTS, Moves, draw, warm_up
from pyro_gebm.sampling.pyro_mcmc import MCMC
from pyro_gebm.sampling.single_chain import as_pyro_kernel

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

with_from_pyro = pytest.mark.skipif(
    not hasattr(az, "from_pyro"), reason="this version of ArviZ does not read Pyro's objects"
)
DATA = torch.tensor([0.3, 1.9, 0.8])
POSTERIOR_MEAN, POSTERIOR_VARIANCE = DATA.sum().item() / 4, 1 / 4


def conjugate(y, beta=1.0):
    """A mean of prior N(0, 1) and data of variance β; a setting of sample() is called so, too."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        return pyro.sample("y", dist.Normal(mean, beta**0.5), obs=y)


def scaled(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=y)
    return shift


def scale_moments():
    """Mean and variance of the scale given DATA, by quadrature."""
    s = torch.linspace(1e-3, 12, 40_001, dtype=torch.float64)
    log_density = -(s**2) / 8 - 3 * s.log() - DATA.square().sum() / (2 * s**2)
    weight = (log_density - log_density.max()).exp()
    mean = (s * weight).sum() / weight.sum()
    return mean.item(), ((s - mean).square() * weight).sum().div(weight.sum()).item()


def ran(model=conjugate, *args, kernel="NUTS", **settings):
    mcmc = MCMC(kernel, model, **{**QUICK, **settings})
    mcmc.run(*(args or (DATA,)))
    return mcmc


QUICK = {"num_chains": 4, "num_samples": 20, "warmup_steps": 60, "seed": 0, "disable_progbar": True}


FIXED = pyro.infer.HMC(conjugate, step_size=0.3, num_steps=4, adapt_step_size=False)


@pytest.mark.parametrize("kernel", ["NUTS", HMC(), FIXED])
def test_posterior_of_a_conjugate_normal(kernel):
    mcmc = ran(kernel=kernel, num_chains=8, num_samples=60)
    mean = mcmc.get_samples(group_by_chain=True)["mean"].numpy()
    assert abs(standard_scores(mean, POSTERIOR_MEAN)) < 4
    square = (mean - POSTERIOR_MEAN) ** 2
    assert abs(standard_scores(square, POSTERIOR_VARIANCE)) < 4


def test_the_interface_is_that_of_pyro(capsys):
    mcmc = ran(scaled)
    assert isinstance(mcmc, pyro.infer.MCMC)
    grouped, flat = mcmc.get_samples(group_by_chain=True), mcmc.get_samples()
    assert {k: tuple(v.shape) for k, v in grouped.items()} == {
        "scale": (4, 20),
        "shift": (4, 20, 2),
    }
    assert torch.equal(flat["shift"], grouped["shift"].flatten(0, 1))
    assert flat["scale"].min() > 0
    assert mcmc.get_samples(7)["shift"].shape == (7, 2)
    assert mcmc.get_samples(7, group_by_chain=True)["shift"].shape == (4, 7, 2)
    mcmc.summary(prob=0.5)
    printed = capsys.readouterr().out
    assert "25.0%" in printed and "shift[1]" in printed and "Number of divergences: " in printed
    assert mcmc.idata.attrs["tuning_steps"] == mcmc.warmup_steps == 60


def test_diagnostics_are_those_of_pyro_on_the_same_draws():
    mcmc = ran(scaled)
    found, draws = mcmc.diagnostics(), mcmc.get_samples(group_by_chain=True)
    for site in ("scale", "shift"):
        assert torch.equal(found[site]["n_eff"], effective_sample_size(draws[site]))
        assert torch.equal(found[site]["r_hat"], split_gelman_rubin(draws[site]))
    accept = mcmc.idata["sample_stats"]["acceptance_rate"].values.mean(1)
    assert list(found["acceptance rate"].values()) == pytest.approx(accept.tolist())


def steep(z):
    return gumbel(z) + 2000.0 * (z[:, 0] > 1.0)


def twelve_chains():
    mcmc = MCMC(
        HMC(step_size=0.8, adapt_step_size=False),
        potential_fn=steep,
        initial_params=torch.randn(12, 2, generator=rng()).clamp(max=0.5),
        **{**QUICK, "num_chains": 12},
    )
    mcmc.run()
    return mcmc


@with_from_pyro
def test_arviz_sees_all_chains_in_order(monkeypatch):
    mcmc = twelve_chains()
    diverging = mcmc.idata["sample_stats"]["diverging"].values
    assert len(np.unique(diverging, axis=0)) > 9  # the chains can be told apart
    seen = az.from_pyro(mcmc)
    np.testing.assert_array_equal(seen["posterior"]["z"], mcmc.idata["posterior"]["z"])
    np.testing.assert_array_equal(seen["sample_stats"]["diverging"], diverging)
    assert list(mcmc.diagnostics()["divergences"])[3] == "chain 03"
    # Without the zeros, "chain 10" comes before "chain 2".
    monkeypatch.setattr(MCMC, "diagnostics", pyro.infer.MCMC.diagnostics)
    assert (az.from_pyro(mcmc)["sample_stats"]["diverging"].values != diverging).any()


@with_from_pyro
def test_arviz_takes_the_model_and_its_arguments():
    seen = az.from_pyro(ran())
    np.testing.assert_array_equal(seen["observed_data"]["y"], DATA)
    assert seen["log_likelihood"]["y"].shape == (4, 20, 3)
    mcmc = MCMC("NUTS", linear_gaussian(), **QUICK)
    mcmc.run()  # its factor is no observation
    assert list(az.from_pyro(mcmc).groups()) == ["posterior", "sample_stats"]
    single = stock(as_pyro_kernel(HMC(), scaled), DATA, num_samples=10)
    assert az.from_pyro(single)["posterior"]["shift"].shape == (1, 10, 2)


def test_predictive():
    samples = ran(num_chains=8, num_samples=200).get_samples()
    y = Predictive(conjugate, samples)(None)["y"]
    assert y.shape == (1600, 3)
    residual = (y - samples["mean"][:, None]).flatten()
    assert abs(residual.mean()) < 4 / len(residual) ** 0.5
    assert abs(residual.square().mean() - 1) < 4 * (2 / len(residual)) ** 0.5


def test_a_gebm():
    gebm = linear_gaussian()
    mcmc = MCMC("NUTS", gebm, **{**QUICK, "num_chains": 8, "num_samples": 100})
    mcmc.run()
    z = mcmc.get_samples(group_by_chain=True)["z"]
    assert z.dtype == torch.float64
    assert abs(standard_scores(z.numpy(), linear_gaussian_posterior(gebm)[0])).max() < 4
    assert Predictive(gebm.model, mcmc.get_samples(5))()["x"].shape == (5, 3)


def test_keywords_of_the_model_may_be_called_as_settings_of_ours():
    mcmc = MCMC("NUTS", conjugate, **{**QUICK, "num_chains": 8, "num_samples": 100})
    mcmc.run(DATA, beta=4.0)
    mean = mcmc.get_samples(group_by_chain=True)["mean"].numpy()
    assert abs(standard_scores(mean, DATA.sum().item() / 4 / (1 + 3 / 4))) < 4


def test_seeded_and_settings_handed_on():
    draws = [ran(seed=seed).get_samples()["mean"] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    by_pyro = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        by_pyro.append(ran(seed=None).get_samples()["mean"])
    assert torch.equal(*by_pyro)
    cold = ran(beta=0.0, num_chains=8, num_samples=100).get_samples(group_by_chain=True)
    assert abs(standard_scores(cold["mean"].numpy() ** 2, 1.0)) < 4  # the prior


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected one of model and potential_fn"),
        ({"model": conjugate, "potential_fn": normal}, "expected one of model and potential_fn"),
        ({"model": 1000}, "expected one of model and potential_fn, something to call"),
        ({"potential_fn": normal}, r"expected starts \(num_chains, D\)"),
        ({"model": conjugate, "mp_context": "spawn"}, "among beta, thinning.*got mp_context"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        MCMC("NUTS", **settings)


def test_no_samples_before_the_run():
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        MCMC("NUTS", conjugate).get_samples()


def stock(kernel, *args, num_samples=200, **settings):
    """Pyro's own MCMC with a kernel of ours."""
    mcmc = pyro.infer.MCMC(kernel, num_samples, 150, disable_progbar=True, **settings)
    mcmc.run(*args)
    return mcmc


def test_stock_mcmc_runs_our_kernel():
    pyro.set_rng_seed(0)
    mcmc = stock(as_pyro_kernel(HMC(), scaled), DATA, num_samples=600)
    samples, (mean, variance) = mcmc.get_samples(), scale_moments()
    found = mcmc.diagnostics()
    error = (variance / found["scale"]["n_eff"].item()) ** 0.5
    assert abs(samples["scale"].mean() - mean) < 4 * error
    shift = samples["shift"]
    assert (shift.mean(0).abs() < 4 * found["shift"]["n_eff"] ** -0.5).all()
    assert 0.6 < found["acceptance rate"]["chain 0"] < 0.95
    assert set(found["divergences"]["chain 0"]) < set(range(600))


def test_stock_mcmc_makes_the_draws_of_one_run():
    pyro.set_rng_seed(1)
    start = torch.randn(2)
    kernel = as_pyro_kernel(NUTS(), potential_fn=gumbel)
    mcmc = stock(kernel, num_samples=30, initial_params={"z": start})
    pyro.set_rng_seed(1)
    torch.randn(2)
    seed = int(torch.randint(2**31, ()))
    moves = Moves(NUTS(), gumbel)
    every = draw(moves, warm_up(moves, start[None], 150, seed=seed), 30, seed=seed)
    assert torch.equal(mcmc.get_samples()["z"], every.z[0])


def test_a_position_moved_by_others_is_taken_up():
    kernel = as_pyro_kernel(HMC(step_size=1e-6, adapt_step_size=False), potential_fn=normal)
    kernel.initial_params = {"z": torch.zeros(2)}
    kernel.setup(0)
    moved = kernel.sample({"z": torch.full((2,), 3.0)})
    assert (moved["z"] - 3).abs().max() < 1e-2


@pytest.mark.parametrize("cpus", [1, 8])
def test_more_chains_are_refused(cpus, monkeypatch):
    monkeypatch.setattr(api.mp, "cpu_count", lambda: cpus)  # one after the other; in parallel
    with pytest.raises(ValueError, match=r"expected 1 in pyro.infer.MCMC.*pyro_gebm.MCMC"):
        stock(as_pyro_kernel(NUTS(), conjugate), DATA, num_chains=2)


def test_bad_adapters():
    with pytest.raises(ValueError, match="expected a kernel of ours"):
        as_pyro_kernel(pyro.infer.NUTS, conjugate)
    with pytest.raises(ValueError, match="expected one of model and potential_fn"):
        as_pyro_kernel(NUTS())
