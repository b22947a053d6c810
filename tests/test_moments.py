"""Moments of what ``pg.sample`` draws, against exact values, within 4 Monte-Carlo errors."""

import math

import numpy as np
import pyro.infer
import pytest
import torch
from helpers import (
    draws_of,
    gumbel,
    linear_gaussian,
    linear_gaussian_posterior,
    normal,
    quiet_sample,
    standard_scores,
)
from scipy import integrate, special

from pyro_gebm import HMC, NUTS, inference_data
from pyro_gebm.mcmc import ChEES, GlobalMoves

RADIUS, WIDTH = 2.0, 0.5


def _correlated():
    """Scales from 0.1 to 10, correlations of 0.8."""
    scales = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    correlation = torch.full((3, 3), 0.8).double().fill_diagonal_(1.0)
    covariance = scales[:, None] * correlation * scales
    mean = torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)
    precision = torch.linalg.inv(covariance)

    def potential_fn(z):
        return 0.5 * ((z - mean) @ precision * (z - mean)).sum(-1)

    return potential_fn, mean.numpy(), covariance.diagonal().numpy()


def _skewed():
    """A Gumbel and the logarithm of a Gamma(2) variable."""

    def potential_fn(z):
        return gumbel(z[:, :1]) + z[:, 1].exp() - 2 * z[:, 1]

    mean = np.array([np.euler_gamma, special.digamma(2.0)])
    return potential_fn, mean, np.array([math.pi**2 / 6, special.polygamma(1, 2.0)])


def _banana():
    """z₀ ~ N(0, 1), z₁ ~ N(z₀²/2, 1/2): E z₁ = 1/2, Var z₁ = 2/4 + 1/2."""

    def potential_fn(z):
        return 0.5 * z[:, 0] ** 2 + (z[:, 1] - 0.5 * z[:, 0] ** 2) ** 2

    return potential_fn, np.array([0.0, 0.5]), np.array([1.0, 1.0])


def _ring():
    """Density exp(-(|z| - R)²/2s²): by symmetry Var zᵢ = E|z|²/2, an integral over the radius."""

    def potential_fn(z):
        # Not norm(), whose gradient at 0 torch sets to 0.
        return 0.5 * ((z.square().sum(-1).sqrt() - RADIUS) / WIDTH) ** 2

    def moment(power):
        def integrand(r):
            return r**power * math.exp(-0.5 * ((r - RADIUS) / WIDTH) ** 2)

        return integrate.quad(integrand, 0, RADIUS + 12 * WIDTH)[0]

    return potential_fn, np.zeros(2), np.full(2, moment(3) / moment(1) / 2)


TARGETS = {"correlated": _correlated, "skewed": _skewed, "banana": _banana, "ring": _ring}
NUTS_RUN = {"kernel": NUTS(max_tree_depth=5), "num_samples": 40, "warmup_steps": 100}
# Small steps: with large ones warm-up drives the chains out of the tails of the banana.
HMC_RUN = {
    "kernel": HMC(),
    "num_samples": 300,
    "warmup_steps": 150,
    "target_accept_prob": 0.95,
}
CHEES_RUN = {"kernel": ChEES(), "num_samples": 300, "warmup_steps": 150}
CASES = [(HMC_RUN, target) for target in TARGETS]
CASES += [(CHEES_RUN, target) for target in TARGETS]
CASES += [(NUTS_RUN, target) for target in ("correlated", "skewed", "banana")]
CHAINS = 100


@pytest.mark.parametrize(
    ("settings", "target"), CASES, ids=lambda v: v if isinstance(v, str) else v["kernel"].name
)
def test_moments_are_exact(settings, target):
    potential_fn, mean, variance = TARGETS[target]()
    noise = torch.randn(CHAINS, len(mean), dtype=torch.float64)
    idata = quiet_sample(potential_fn, initial_params=noise, num_chains=CHAINS, **settings)
    z = draws_of(idata)
    assert np.abs(standard_scores(z, mean)).max() < 4
    assert np.abs(standard_scores((z - mean) ** 2, variance)).max() < 4
    # The errors above are small enough to mean something.
    assert (z.mean(1).std(0) / np.sqrt(len(z)) < 0.1 * np.sqrt(variance)).all()


BARE = [("HMC", None), ("ChEES", None), ("MALA", None), ("IMH", None)]
JUMPING = [("HMC", "auto"), ("HMC", GlobalMoves(num_proposals=4, every=2))]


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("kernel", "moves"), BARE + JUMPING)
def test_linear_gaussian_posterior(kernel, moves, beta):
    gebm = linear_gaussian()
    mean, covariance = linear_gaussian_posterior(gebm, beta)
    if beta == 0:
        np.testing.assert_allclose(covariance, np.eye(2))
        np.testing.assert_allclose(mean, 0)
    settings = {"global_moves": moves, "num_samples": 400, "num_chains": 64}
    idata = quiet_sample(gebm, kernel=kernel, beta=beta, **settings)
    assert ("global_moves" in idata.attrs) == (moves is not None)
    z = draws_of(idata)
    assert np.abs(standard_scores(z, mean)).max() < 4
    products = (z - mean)[..., :, None] * (z - mean)[..., None, :]
    assert np.abs(standard_scores(products, covariance)).max() < 4


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_beta_scales_a_potential(beta):
    # β z²/2 has variance 1/β; at β = 0 nothing pulls back.
    start = torch.randn(64, 1, dtype=torch.float64)
    settings = {"initial_params": start, "num_samples": 300, "kernel": "MALA"}
    z = draws_of(quiet_sample(normal, beta=beta, num_chains=64, warmup_steps=150, **settings))
    if beta:
        assert np.abs(standard_scores(z**2, 1 / beta)).max() < 4
    else:
        assert z.var() > 100


def mean_and_error(idata, function):
    """Posterior mean of ``function`` and its MCSE by the effective sample size, for few chains."""
    values = function(draws_of(idata))
    ess = inference_data.ess(inference_data.build({"z": values}, {}, {}), method="mean")
    return values.mean((0, 1)), values.std((0, 1)) / np.sqrt(ess)


@pytest.fixture(scope="module")
def skewed_by_both():
    """The same skewed potential by our kernel and by Pyro's."""
    potential_fn = _skewed()[0]
    start = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    settings = {"warmup_steps": 150, "progress": False}
    ours = quiet_sample(
        potential_fn, kernel="HMC", initial_params=start, num_chains=64, num_samples=300, **settings
    )
    pyros = quiet_sample(
        potential_fn,
        kernel=pyro.infer.NUTS,
        initial_params=start[:3],
        num_chains=3,
        num_samples=300,
        **settings,
    )
    return ours, pyros


def test_agreement_with_pyro(skewed_by_both):
    ours, pyros = skewed_by_both
    centre = _skewed()[1]
    for function in (lambda z: z, lambda z: (z - centre) ** 2):
        (mean, error), (other, other_error) = (mean_and_error(i, function) for i in (ours, pyros))
        assert (np.abs(mean - other) < 4 * np.hypot(error, other_error)).all()
        assert (other_error < 0.4).all()


def test_pyro_reports_its_own_figures(skewed_by_both):
    pyros = skewed_by_both[1]["sample_stats"]
    accept, steps = pyros["acceptance_rate"].values, pyros["n_steps"].values
    assert ((accept > -1e-9) & (accept < 1 + 1e-9)).all()
    assert 0.75 < accept.mean() < 0.97  # Pyro's adaptation tends to end above its target
    # A tree of depth d without failed subtrees takes 2^d - 1 steps.
    assert set(np.unique(steps)) >= {1, 3, 7}
    np.testing.assert_allclose(
        -pyros["lp"].values[0],
        _skewed()[0](torch.as_tensor(draws_of(skewed_by_both[1]))[0]).numpy(),
        rtol=1e-12,
    )
