"""The density and the reference of Pyro models: closed forms, quadrature, moments."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_gebm.sampling.pyro_model import pyro_target

Y = torch.tensor([0.3, -1.2, 0.8, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def half_normal_model(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    pyro.sample("y", dist.Normal(0.0, scale).expand([4]).to_event(1), obs=y)


def posterior_by_quadrature(target):
    """Mean of scale under exp(-U(u)) du, by a fine sum over u."""
    u = torch.linspace(-8, 6, 4001)[:, None]
    weight = torch.softmax(-target.potential_fn(u), 0)
    return float((weight * target.to_sites(u)["scale"]).sum())


def truth_by_quadrature():
    """The same over the scale itself: no coordinates, no Jacobian."""
    s = np.linspace(1e-3, 30, 200_001)
    sum_of_squares = float(Y.square().sum())
    log_p = -(s**2) / 8 - 4 * np.log(s) - sum_of_squares / (2 * s**2)
    weight = np.exp(log_p - log_p.max())
    return (weight * s).sum() / weight.sum()


def test_posterior_mean_of_a_scale():
    target = pyro_target(half_normal_model, (Y,), {})
    assert posterior_by_quadrature(target) == pytest.approx(truth_by_quadrature(), rel=1e-4)


def test_quadrature_notices_a_missing_jacobian(monkeypatch):
    target = pyro_target(half_normal_model, (Y,), {})
    monkeypatch.setattr(
        torch.distributions.ExpTransform, "log_abs_det_jacobian", lambda self, x, y: 0 * x
    )
    monkeypatch.setattr(
        torch.distributions.SoftplusTransform, "log_abs_det_jacobian", lambda self, x, y: 0 * x
    )
    assert posterior_by_quadrature(target) != pytest.approx(truth_by_quadrature(), rel=1e-2)


def test_conjugate_normal_in_closed_form():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    target = pyro_target(model, (Y,), {})
    precision = 1 / 4 + 4 / 0.25
    centre = (1.0 / 4 + float(Y.sum()) / 0.25) / precision
    u = torch.linspace(-2, 2, 9)[:, None]
    value = target.potential_fn(u)
    truth = 0.5 * precision * (u[:, 0] - centre).square()
    torch.testing.assert_close(value - value[0], truth - truth[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batched", [True, False])
def test_reference_draws_follow_the_priors(batched):
    num_draws = 4000 if batched else 500

    def model():
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        mean = pyro.sample("mean", dist.Normal(rate, 1.0))
        pyro.sample("pair", dist.Dirichlet(torch.tensor([1.0, 3.0])))
        pyro.sample("y", dist.Normal(mean, 0.1), obs=torch.tensor(50.0))

    target = pyro_target(model, (), {}, batched=batched)
    sites = target.to_sites(target.reference.sample(num_draws))
    truth = {"rate": (1.5, 0.75), "mean": (1.5, 1.75)}  # means and variances
    for name, (mean, variance) in truth.items():
        error = np.sqrt(variance / num_draws)
        assert abs(float(sites[name].mean()) - mean) < 4 * error
        # Kurtosis below 6: the standard error of a variance is below var sqrt(6 / n).
        assert abs(float(sites[name].var()) / variance - 1) < 4 * np.sqrt(6 / num_draws)
    share = float(sites["pair"][:, 0].mean())
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 5 / num_draws)


def test_scaled_prior_stays_what_draws_follow():
    """Pyro scales the prior's density, not its draws: the difference belongs to β."""

    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    target = pyro_target(poutine.scale(model, scale=3.0), (), {})
    u = torch.tensor([[0.0], [2.0]])
    assert float(target.reference.potential_fn(u).diff()) == pytest.approx(2.0)
    assert float(target.potential_fn(u).diff()) == pytest.approx(6.0)


def test_reference_draws_of_many_chains_take_few_runs():
    runs = []

    def model():
        runs.append(1)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Gamma(mean.exp(), 1.0).expand([2]).to_event(1))

    target = pyro_target(model, (), {})
    runs.clear()
    assert len(target.reference.sample(1000).unique()) == 3000
    assert len(runs) == 1


def test_draws_that_a_batch_would_repeat_are_made_one_by_one():
    class Stubborn(dist.Normal):
        """Draws from NumPy, which ``vmap`` does not see."""

        def sample(self, sample_shape=()):
            return torch.as_tensor(rng.normal())

        rsample = sample

    rng = np.random.default_rng(0)
    target = pyro_target(lambda: pyro.sample("x", Stubborn(0.0, 1.0)), (), {})
    assert len(target.reference.sample(20).unique()) == 20


def test_non_finite_values_flow_through_and_stay_in_their_chain():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x > 3, -torch.inf, 0.0 * x))
        pyro.sample("y", dist.Normal(0.0, torch.where(x < -3, torch.nan, 1.0)), obs=x)

    for batched in (True, False):
        target = pyro_target(model, (), {}, batched=batched)
        value = target.potential_fn(torch.tensor([[4.0], [-4.0], [0.0]]))
        assert value[0] == torch.inf and value[1].isnan() and value[2].isfinite()
