"""Simulation-based calibration (Talts et al. 2018): 1,000 data sets as one batch of chains.

z* ~ η, y = G(z*) + noise, and each chain samples the posterior of its own y, that of a GEBM with
linear G and E(x) = (x - y)ᵀ P (x - y) / 2. The rank of z* among the draws is uniform, if they
are exact and independent.
"""

import numpy as np
import pytest
import torch
from helpers import draws_of, quiet_sample, rng
from scipy import stats

from pyro_gebm.mcmc import HMC, NUTS, ChEES, integrators
from pyro_gebm.mcmc.kernel import acceptance

SETS, DRAWS, BINS, PASS, FAIL = 1000, 63, 16, 1e-4, 1e-6
G = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.6, 0.6]], dtype=torch.float64)
PRECISION = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
KERNELS = {"NUTS": NUTS(), "ChEES": ChEES(), "HMC": HMC()}


def data_sets():
    """Latents (SETS, 2) and their data (SETS, 3)."""
    z = torch.randn(SETS, 2, generator=rng(1), dtype=torch.float64)
    noise = torch.randn(SETS, 3, generator=rng(2), dtype=torch.float64)
    return z, z @ G.T + noise / PRECISION.sqrt()


def p_value(kernel, beta=1.0, thinning=6):
    """Of ranks of both latents and of the energy, corrected; β = 1 is the truth."""
    truth, y = data_sets()

    def energy(z):
        return 0.5 * ((z @ G.T - y).square() * PRECISION).sum(-1)

    idata = quiet_sample(
        lambda z: 0.5 * z.square().sum(-1) + beta * energy(z),
        initial_params=torch.randn(SETS, 2, generator=rng(3), dtype=torch.float64),
        num_chains=SETS,
        num_samples=DRAWS,
        warmup_steps=100,
        thinning=thinning,
        kernel=kernel,
    )
    z = torch.as_tensor(draws_of(idata)).movedim(1, 0)  # (DRAWS, SETS, 2)
    energies = torch.stack([energy(draw) for draw in z])
    ranks = torch.cat([(z < truth).sum(0), (energies < energy(truth)).sum(0)[:, None]], 1)
    counts = [np.bincount(rank // ((DRAWS + 1) // BINS), minlength=BINS) for rank in ranks.T]
    return len(counts) * min(stats.chisquare(count).pvalue for count in counts)


@pytest.mark.parametrize("name", KERNELS)
def test_ranks_are_uniform(name):
    assert p_value(KERNELS[name]) > PASS


@pytest.mark.parametrize("name", KERNELS)
def test_a_posterior_too_narrow_is_seen(name):
    assert p_value(KERNELS[name], beta=2.0, thinning=2) < FAIL


def test_square_rooted_acceptance_is_seen(monkeypatch):
    def rooted(energy_error, end):
        accept_prob, diverging = acceptance(energy_error, end)
        return accept_prob.sqrt(), diverging

    monkeypatch.setattr(integrators, "acceptance", rooted)
    long = HMC(step_size=1.2, adapt_step_size=False)
    assert p_value(long) < FAIL
