"""log Z against closed forms and quadrature: importance sampling, SMC, AIS and the learned c."""

import math

import numpy as np
import pytest
import torch
from helpers import Quadratic, linear_gaussian, normal, rng, same, small_gebm, snapshot
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc import HMC, MALA, Langevin
from pyro_gebm.metrics.cloud import conditional_ess, log_mean, systematic
from pyro_gebm.metrics.partition import (
    annealed_log_z,
    importance_log_z,
    log_partition_estimates,
)
from pyro_gebm.metrics.smc import smc_log_z


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def quadratic_gebm(dim, mean, precision):
    """η = N(0, I), G the identity, E = p|z - m|²/2, and log Z."""
    energy = Quadratic([mean] * dim, [precision] * dim)
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(dim)), energy).double()
    truth = -0.5 * dim * (math.log1p(precision) + precision * mean**2 / (1 + precision))
    return gebm, truth


def quick_log_z(dim, precision, seed, num_chains=256, **settings):
    """SMC from N(0, I) to precision 1 + p at m = 1, and the truth."""
    _, truth = quadratic_gebm(dim, 1.0, precision)
    generator = rng(seed)
    z = torch.randn(num_chains, dim, generator=generator, dtype=torch.float64)
    found = smc_log_z(
        z,
        normal,
        lambda z: 0.5 * precision * (z - 1).square().sum(-1),
        **settings,
        generator=generator,
    )
    return found, truth


# --- three ways, where the truth is known ------------------------------------------


def test_all_ways_agree_where_the_energy_is_mild():
    gebm, truth = quadratic_gebm(10, 0.5, 1.0)
    with torch.no_grad():
        gebm.log_partition.fill_(truth + 0.25)
    found = log_partition_estimates(gebm, num_latents=20_000, generator=rng())
    for way in (found.importance, found.annealed):
        assert abs(way.log_z - truth) < 3 * way.standard_error < 0.15
    assert found.learned == pytest.approx(truth + 0.25)
    assert abs(found.learned_error - 0.25) < 3 * found.annealed.standard_error
    assert abs(found.standard_score) < 3


def test_a_sharp_energy_defeats_importance_sampling_which_says_so_but_not_smc():
    gebm, truth = quadratic_gebm(10, 2.0, 100.0)
    with pytest.warns(UserWarning, match="likely too low.*annealed_log_z"):
        found = log_partition_estimates(gebm, num_latents=20_000, num_chains=512, generator=rng())
    assert found.importance.ess < 5
    assert found.importance.log_z < truth - 10  # off by far more than the error it claims
    annealed = found.annealed
    assert abs(annealed.log_z - truth) < 3 * annealed.standard_error < 1
    assert found.standard_score < -5
    assert len(annealed.betas) - 1 == len(annealed.ess) == len(annealed.accept_prob)
    assert annealed.betas[0] == 0 and annealed.betas[-1] == 1
    assert bool((annealed.betas.diff() > 0).all()) and float(annealed.ess.min()) > 0.3
    assert float(annealed.accept_prob[5:].min()) > 0.6  # masses and step follow the chains


def test_ends_with_a_sample_of_the_model():
    gebm = linear_gaussian()
    found = annealed_log_z(gebm, 2048, generator=rng())
    A, b = gebm.base.generator.weight.detach(), gebm.base.generator.bias.detach()
    P = torch.diag(gebm.energy.precision)
    covariance = torch.linalg.inv(torch.eye(2, dtype=A.dtype) + A.T @ P @ A)
    mean = covariance @ (A.T @ P @ (gebm.energy.mean - b))
    weights = found.log_weights.exp()
    # An island counts for its Ẑ.
    assert torch.allclose(weights.view(16, -1).sum(1), found.log_z_by_island.softmax(0))
    ess = 1 / float(weights.square().sum())
    errors = (weights @ found.z - mean).abs() / (covariance.diag() / ess).sqrt()
    assert float(errors.max()) < 4
    spread = (found.z - mean).T @ (weights[:, None] * (found.z - mean))
    assert torch.allclose(spread, covariance, atol=5 * float(covariance.max()) / math.sqrt(ess))


def test_a_nonlinear_model_against_quadrature():
    gebm = small_gebm().double()
    gebm.energy[2].weight.data.mul_(8)
    axis = torch.linspace(-7, 7, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_density = -gebm.potential_fn(grid)
    truth = float(torch.logsumexp(log_density, 0)) + 2 * math.log(float(axis[1] - axis[0]))
    found = log_partition_estimates(gebm, num_latents=20_000, generator=rng())
    for way in (found.importance, found.annealed):
        assert abs(way.log_z - truth) < 3 * way.standard_error < 0.2


class Slopes(nn.Module):
    """E(x) = a·x."""

    def __init__(self, *slopes):
        super().__init__()
        self.register_buffer("slopes", double(slopes))

    def forward(self, x):
        return x @ self.slopes


def test_a_prior_with_a_support():
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.UniformPrior(2)), Slopes(8.0, -20.0)).double()
    a = np.array([8.0, -20.0])
    truth = float(np.log((1 - np.exp(-a)) / a).sum())
    found = annealed_log_z(gebm, 1024, generator=rng())
    assert abs(found.log_z - truth) < 3 * found.standard_error < 0.3
    assert float(found.z.min()) >= 0 and float(found.z.max()) <= 1
    mean = found.log_weights.exp() @ found.z
    exact = 1 / a - 1 / np.expm1(a)
    assert np.allclose(mean, exact, atol=4 / math.sqrt(500) * np.array([1 / 8, 1 / 20]))


def test_hard_walls_are_weights_of_zero():
    # E = z² / 2 + ∞ · [z < 0] under N(0, 1): Z = 1/(2√2).
    def energy(z):
        return torch.where(z[:, 0] < 0, torch.inf, normal(z))

    z = torch.randn(2048, 1, generator=rng(), dtype=torch.float64)
    found = smc_log_z(z, normal, energy, generator=rng(1))
    assert abs(found.log_z + math.log(2 * math.sqrt(2))) < 3 * found.standard_error < 0.1
    assert float(found.z[found.log_weights > -torch.inf].min()) > 0


# --- errors and bias ------------------------------------------


def test_standard_errors_are_calibrated():
    # (log Ẑ - log Z)/se is about Student's t with 15 degrees of freedom, variance 15/13.
    repeats, scores = 30, []
    for seed in range(repeats):
        found, truth = quick_log_z(2, 20.0, seed, num_chains=128, kernel=MALA(), num_moves=2)
        scores.append((found.log_z - truth) / found.standard_error)
    mean_square = float(np.square(scores).mean())
    low, high = stats.chi2.ppf([1e-3, 1 - 1e-3], repeats) / repeats
    assert low < mean_square < high * 15 / 13
    assert abs(np.mean(scores)) < 4 / math.sqrt(repeats)


def test_importance_errors_are_calibrated():
    gebm, truth = quadratic_gebm(3, 0.5, 2.0)
    found = [importance_log_z(gebm, 2000, generator=rng(seed)) for seed in range(60)]
    scores = np.array([(f.log_z - truth) / f.standard_error for f in found])
    low, high = stats.chi2.ppf([1e-3, 1 - 1e-3], 60) / 60
    assert low < np.square(scores).mean() < high
    # Kish's effective size tells the same as the delta method: se² = (N/ESS - 1)/N.
    one = found[0]
    assert one.standard_error**2 == pytest.approx((2000 / one.ess - 1) / 1999, rel=1e-9)


@pytest.mark.parametrize("resample_below", [1.0, 0.7, 0.0])
def test_z_is_unbiased_with_few_chains_at_given_betas(resample_below):
    # 2,000 islands of 6 chains each, which have nothing in common.
    found, truth = quick_log_z(
        1,
        8.0,
        0,
        num_chains=12_000,
        num_islands=2000,
        betas=double([0.0, 0.05, 0.2, 0.5, 1.0]),
        kernel=HMC(step_size=0.5, adapt_step_size=False, adapt_mass_matrix=False),
        num_moves=1,
        resample_below=resample_below,
    )
    ratios = (found.log_z_by_island - truth).exp()
    error = float(ratios.std()) / math.sqrt(2000)
    assert abs(float(ratios.mean()) - 1) < 4 * error < 0.2
    # The mean of the logs, by contrast, is low.
    assert float((found.log_z_by_island - truth).mean()) < -0.02


@pytest.mark.parametrize("kernel", [HMC(step_size=0.3), MALA()])
def test_kernels(kernel):
    found, truth = quick_log_z(3, 20.0, 1, kernel=kernel)
    assert abs(found.log_z - truth) < 3.5 * found.standard_error < 0.6


# --- parts ------------------------------------------


def test_systematic_resampling_draws_each_row_as_often_as_its_weight():
    weights = torch.softmax(torch.randn(500, 7, generator=rng(), dtype=torch.float64), 1)
    weights[:, 3] = 0
    weights /= weights.sum(1, keepdim=True)
    rows = systematic(weights, rng(1))
    counts = torch.zeros_like(weights).scatter_add_(1, rows, torch.ones_like(weights))
    assert float((counts - 7 * weights).abs().max()) < 1 and not bool(counts[:, 3].any())
    same_weights = weights[:1].expand(40_000, -1)
    rows = systematic(same_weights, rng(2))
    counts = torch.zeros_like(same_weights).scatter_add_(1, rows, torch.ones_like(same_weights))
    # A count is one of two neighbours: its standard deviation is at most a half.
    assert float((counts.mean(0) - 7 * weights[0]).abs().max()) < 4 * 0.5 / math.sqrt(40_000)


def test_conditional_ess_by_hand():
    # The chain of infinite energy is left out: of weights 0.6, 0.2, 0.2 remain 3/4 and 1/4, which
    # w = 1, 1/2 makes into (7/8)² / (13/16); and 1 where nothing is weighed.
    log_weights = double([[0.6, 0.2, 0.2]]).log()
    loss = double([[0.0, math.log(2), math.inf]])
    assert conditional_ess(log_weights, loss) == pytest.approx((7 / 8) ** 2 / (13 / 16))
    assert conditional_ess(log_weights, 0 * log_weights) == pytest.approx(1)


def test_log_mean_neither_overflows_nor_takes_the_mean_of_logs():
    values = double([1.0, 2.0, 6.0])
    log, error = log_mean(values.log() + 5000)
    assert log == pytest.approx(5000 + math.log(3), rel=1e-12)
    assert error == pytest.approx(values.std().item() / (3 * math.sqrt(3)))


def test_same_seed_same_figures_and_nothing_else_is_touched():
    gebm = small_gebm().train()
    before, state = snapshot(gebm), torch.get_rng_state()
    one, again = (annealed_log_z(gebm, 64, generator=rng(3)) for _ in range(2))
    other = annealed_log_z(gebm, 64, generator=rng(4))
    assert one.log_z == again.log_z != other.log_z and torch.equal(one.z, again.z)
    first = importance_log_z(gebm, 3000, generator=rng(3))
    assert first == importance_log_z(gebm, 3000, generator=rng(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(before, gebm.state_dict()) and gebm.training and gebm.energy.training
    assert all(p.requires_grad and p.grad is None for p in gebm.parameters())


def test_networks_are_evaluated_in_eval_mode():
    gebm = small_gebm()
    gebm.energy.insert(0, nn.Dropout(0.5))
    trained, evaluated = (
        log_partition_estimates(gebm.train(mode), num_latents=200, num_chains=32, generator=rng())
        for mode in (True, False)
    )
    assert trained.importance == evaluated.importance
    assert trained.annealed.log_z == evaluated.annealed.log_z


def test_bars_only_where_wanted(capsys):
    gebm = small_gebm()
    for progress in (True, False):
        log_partition_estimates(
            gebm, num_latents=200, num_chains=32, generator=rng(), progress=progress
        )
        shown = capsys.readouterr().err
        assert ("SMC x 32 chains" in shown and "energies" in shown) is progress
        assert bool(shown) is progress


# --- refusals ------------------------------------------

Z = torch.zeros(64, 2)


def run(energy_fn=normal, z=Z, **settings):
    return smc_log_z(z, normal, energy_fn, **settings, generator=rng())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(num_islands=1), "num_islands: .*>= 2"),
        (lambda: run(num_islands=10), "64 chains; take a multiple"),
        (lambda: run(num_islands=64), "two or more"),
        (lambda: run(num_moves=0), "num_moves"),
        (lambda: run(cess=1.0), r"cess: .*\(0, 1\); got 1.0"),
        (lambda: run(resample_below=1.5), "resample_below"),
        (lambda: run(betas=double([0.0, 0.5])), "rising from 0 to 1"),
        (lambda: run(betas=double([0.0, 0.5, 0.5, 1.0])), "rising from 0 to 1"),
        (lambda: run(kernel=Langevin()), "HMC or MALA.*got Langevin"),
        (lambda: run(z=torch.zeros(64)), r"z: .*\(C, D\)"),
        (lambda: run(lambda z: z), r"energy_fn: expected shape \(64,\)"),
        (lambda: run(lambda z: z[:, 0] + math.nan), "energy_fn: expected finite"),
        (lambda: run(lambda z: z[:, 0] - math.inf), "energy_fn: .*-inf"),
        (lambda: run(lambda z: z[:, 0] + math.inf), "some finite"),
        (lambda: importance_log_z(small_gebm(), 1, generator=rng()), "num_latents"),
        (lambda: annealed_log_z(small_gebm(), 0, generator=rng()), "num_chains"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
