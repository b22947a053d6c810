"""Holds the benchmark itself to the truth: ``pytest tests/benchmarks/check_targets.py``."""

import numpy as np
import pytest
import torch
from jobs import Run
from measures import score, verdict
from targets import TARGETS

MIXTURES = ["modes8", "modes25", "modes16d", "overlap64"]


def run_of(z):
    return Run(z, 1.0, 1.0, 1, 1, 0)


def exact_run(target, shift=0.0, seed=0):
    z = target.start(64 * 200, seed, "exact").reshape(64, 200, target.dim)
    return run_of(z + np.float32(shift))


@pytest.mark.parametrize("name", TARGETS)
def test_torch_and_jax_compute_the_same_potential(name):
    jax = pytest.importorskip("jax")
    target = TARGETS[name]()
    z = target.start(100, 0)
    by_torch = target.torch_potential()(torch.from_numpy(z)).numpy()
    by_jax = np.asarray(jax.vmap(target.jax_potential())(z))
    np.testing.assert_allclose(by_torch, by_jax, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TARGETS)
def test_base_and_energy_make_the_same_potential(name):
    target = TARGETS[name]()
    z = torch.from_numpy(target.start(100, 0))
    difference = target.gebm().potential_fn(z) - target.torch_potential()(z)
    scale = target.torch_potential()(z).abs().max()
    assert difference.std() < 1e-6 * scale + 1e-4


@pytest.mark.parametrize("name", MIXTURES)
def test_exact_draws_pass(name):
    target = TARGETS[name]()
    scores = score(target, exact_run(target))
    assert verdict(scores, chains=64) == "ok"
    assert 0.7 < scores.bias_rms < 1.4 or target.dim == 2
    assert min(scores.ess, scores.mode_ess) > 0.8 * 64 * 200
    assert scores.total_variation < 0.03


@pytest.mark.parametrize("name", MIXTURES)
def test_shifted_draws_are_called_biased(name):
    target = TARGETS[name]()
    scale = float(np.sqrt((target.second_moment - target.mean**2).max()))
    scores = score(target, exact_run(target, shift=0.1 * scale))
    assert "biased" in verdict(scores, chains=64)


def test_exact_draws_have_the_density_of_the_potential():
    # E[U - (known entropy)] by quadrature: the normaliser of exp(-U) over the plane is closed.
    target = TARGETS["modes8"]()
    axis = torch.linspace(-7, 7, 1401)
    grid = torch.cartesian_prod(axis, axis)
    mass = (-target.torch_potential()(grid)).exp().sum() * 0.01**2
    assert float(mass) == pytest.approx(2 * np.pi * target.modes.scale**2, rel=1e-3)


def test_gauss_moments():
    target = TARGETS["gauss100"]()
    whiten = target.weights["whiten"].astype(np.float64)
    covariance = np.linalg.inv(whiten @ whiten.T)
    np.testing.assert_allclose(covariance.diagonal(), target.second_moment, rtol=1e-3)
    assert np.linalg.cond(covariance) == pytest.approx(1e4, rel=1e-2)


def test_overlap64_is_18_nats_away():
    target = TARGETS["overlap64"]()
    z = torch.from_numpy(target.start(20_000, 0, "exact"))
    modes = target.modes
    normaliser = 0.5 * target.dim * np.log(modes.scale**2)
    # KL = E[log q/b]; both lack the same (2π)^{-D/2}.
    kl = -target.gebm().energy(z).mean() - normaliser
    assert float(kl) == pytest.approx(18.0, abs=0.15)  # sd 6 nats over 20,000 draws: 0.04


def test_lost_mode_has_no_ess():
    target = TARGETS["modes8"]()
    z = np.float32(target.modes.means[0] + 0.3 * np.random.default_rng(0).normal(size=(4, 99, 2)))
    scores = score(target, run_of(z))
    assert scores.mode_ess == 0.0
    assert scores.total_variation == pytest.approx(1 - target.modes.masses[0])


def test_non_finite_draws_are_refused():
    z = np.zeros((4, 10, 2), np.float32)
    z[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        score(TARGETS["modes8"](), run_of(z))
