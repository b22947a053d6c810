"""Ways to improve a GAN's samples: the exact ones against known laws, the rest against formulas."""

import math

import numpy as np
import pytest
import torch
from helpers import Quadratic, rng, same, small_gebm, snapshot
from scipy import integrate, stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.gan import (
    ddls,
    discriminator_gradient_flow,
    discriminator_transport,
    mh_gan,
    rejection_sampling,
)

torch.set_num_threads(1)

PRECISION = 3.0
METHODS = (mh_gan, rejection_sampling, ddls, discriminator_transport, discriminator_gradient_flow)


def narrowed(mean=0.0, dim=1, prior=None):
    """Base N(0, I), E = 3/2 |x - mean|²: for mean 0 the model is N(0, I/4), and -E <= 0."""
    prior = (prior or pg.StandardNormal(dim)).double()
    energy = Quadratic(torch.full((dim,), mean).double(), torch.full((dim,), PRECISION).double())
    return pg.GEBM(pg.Base(nn.Identity(), prior), energy)


class Slope(nn.Module):
    """E(x) = slope · x₁."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return self.slope * x[:, 0]


class Rows:
    """Counts the rows that an energy is asked for, with a gradient and without."""

    def __init__(self, gebm):
        self.gradients = self.energies = 0
        gebm.energy.register_forward_pre_hook(self)

    def __call__(self, module, inputs):
        if inputs[0].requires_grad:
            self.gradients += len(inputs[0])
        else:
            self.energies += len(inputs[0])


# --- the exact ones ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        # w <= 2: after 40 proposals within 2^-40 of the model.
        lambda gebm: mh_gan(gebm, 4000, num_proposals=40, generator=rng()),
        lambda gebm: rejection_sampling(gebm, 4000, log_bound=0.0, generator=rng()),
        lambda gebm: rejection_sampling(gebm, 4000, generator=rng()),  # the largest of a pilot
    ],
)
def test_exact_methods_draw_from_the_model(method):
    found = method(narrowed())
    assert found.x.shape == (4000, 1) and torch.equal(found.x, found.z)
    assert stats.kstest(found.x[:, 0].numpy(), stats.norm(0, 0.5).cdf).pvalue > 1e-4
    order = found.x[:, 0] - found.x[:, 0].mean()
    correlation = float((order[1:] * order[:-1]).mean() / order.square().mean())
    assert abs(correlation) < 4 / math.sqrt(4000), "samples are independent of each other"


def test_few_proposals_are_not_enough():
    # The law after one: (1/2)(base twice thinned); its variance lies between 1 and 1/4.
    x = mh_gan(narrowed(), 20_000, num_proposals=1, generator=rng()).x
    once = integrate.quad(_squares_after_one, -8, 8)[0]
    assert abs(float(x.square().mean()) - once) < 4 * float(x.square().std()) / math.sqrt(20_000)


def _squares_after_one(z):
    """∫ z² of the law after one proposal from N(0, 1): arrivals and those that stay."""
    density = stats.norm.pdf(z)

    def accept(start, end):
        return min(1.0, math.exp(PRECISION / 2 * (start**2 - end**2)))

    grid = np.linspace(-6, 6, 801)
    weight = stats.norm.pdf(grid) * (grid[1] - grid[0])
    arrive = sum(w * accept(y, z) for y, w in zip(grid, weight, strict=True))
    leave = sum(w * accept(z, y) for y, w in zip(grid, weight, strict=True))
    return z**2 * density * (arrive + 1 - leave)


@pytest.mark.parametrize("percentile", [50.0, 90.0])
def test_drs_accepts_by_its_shifted_odds(percentile):
    gebm = narrowed()
    x = rejection_sampling(
        gebm, 10_000, log_bound=0.0, percentile=percentile, num_pilot=100_000, generator=rng()
    ).x
    # F falls with |z|: its percentile is F at the quantile of |z| that is exceeded so often.
    at = stats.norm.ppf(0.5 + (1 - percentile / 100) / 2)
    p = math.exp(-PRECISION * at**2 / 2)
    odds = p / (1 - p)

    def density(z):
        q = math.exp(-PRECISION * z**2 / 2)
        return stats.norm.pdf(z) * q / (q + (1 - q) * odds)

    mass, square = (integrate.quad(f, -8, 8)[0] for f in (density, lambda z: z**2 * density(z)))
    error = float(x.square().std()) / math.sqrt(len(x)) + 0.003 * square / mass  # of the pilot
    assert abs(float(x.square().mean()) - square / mass) < 4 * error


def test_a_bound_that_is_none_is_told():
    with pytest.warns(UserWarning, match="log_bound"):
        rejection_sampling(narrowed(), 100, log_bound=-1.0, generator=rng())


def test_rejection_gives_up_and_refuses_bad_energies():
    gebm = narrowed()
    with pytest.raises(ValueError, match=r"max_draws: .* got 0 from 2048 draws"):
        rejection_sampling(gebm, 10, log_bound=60.0, max_draws=2000, generator=rng())
    gebm.energy.mean.fill_(math.nan)
    with pytest.raises(ValueError, match="-E: expected finite"):
        rejection_sampling(gebm, 10, generator=rng())


# --- the others, by their definitions ----------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 7, 60])
def test_ddls_is_the_recursion_of_langevin(num_steps):
    gebm, step, beta, mean = narrowed(2.0), 0.3, 0.5, 2.0
    x = ddls(gebm, 20_000, num_steps=num_steps, step_size=step, beta=beta, generator=rng()).x
    # U' = z + 3β (z - 2): an autoregression towards the mean of ν_β.
    curve = 1 + beta * PRECISION
    factor, target = 1 - step**2 / 2 * curve, beta * PRECISION * mean / curve
    expected = target * (1 - factor**num_steps)
    variance = factor ** (2 * num_steps) + step**2 * (1 - factor ** (2 * num_steps)) / (
        1 - factor**2
    )
    assert abs(float(x.mean()) - expected) < 4 * math.sqrt(variance / 20_000)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / 20_000)


def test_dot_goes_straight_for_the_low_energy_and_stops_at_the_threshold():
    gebm, step, k = narrowed(10.0, dim=3), 0.05, 6.0
    starts = rejection_free_starts(gebm)
    for num_steps in (1, 5, 1000):
        found = discriminator_transport(
            gebm, 50, num_steps=num_steps, step_size=step, lipschitz=k, generator=rng()
        )
        to_mean = 10.0 - starts
        distance = to_mean.norm(dim=1)
        way = step * PRECISION / k * distance  # the first step knows nothing of |y - z|
        for _ in range(num_steps - 1):
            way = way - step * (1 - PRECISION / k * (distance - way))
        expected = starts + way[:, None] * to_mean / distance[:, None]
        torch.testing.assert_close(found.z, expected)
    # At rest |∇E|/k = 1: k/λ from the mean of the energy.
    torch.testing.assert_close((10.0 - found.z).norm(dim=1), torch.full((50,), 2.0).double())


def rejection_free_starts(gebm):
    """The latents that a method of seed 0 starts from: those of a walk of length nearly zero."""
    return discriminator_gradient_flow(
        gebm, 50, num_steps=1, step_size=1e-30, noise=0.0, generator=rng()
    ).z


def test_dot_finds_the_slope_of_a_linear_energy():
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(1).double()), Slope(-5.0))
    starts = discriminator_transport(
        gebm, 50, num_steps=1, step_size=1e-30, lipschitz=5.0, generator=rng()
    ).z
    moved = discriminator_transport(gebm, 50, num_steps=1, lipschitz=5.0, generator=rng()).z
    torch.testing.assert_close(moved, starts + 0.02)
    # In one dimension every pair has that slope, so that k = 5 and the first step is as long.
    estimated = discriminator_transport(gebm, 50, num_steps=1, num_pairs=10, generator=rng())
    assert estimated.num_energies == 20 and estimated.num_gradients == 50
    more = discriminator_transport(gebm, 2000, num_steps=1, num_pairs=10, generator=rng()).z
    assert abs(float(more.mean()) - 0.02) < 4 / math.sqrt(2000)


def test_dot_stays_in_the_box():
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.UniformPrior(2, -1, 1)), Slope(-9.0))
    z = discriminator_transport(gebm, 50, step_size=0.5, lipschitz=1.0, generator=rng()).z
    assert float(z.abs().max()) <= 1 and bool((z[:, 0] == 1).all())


def test_gradient_flow_without_noise_contracts_to_the_mean():
    gebm, step = narrowed(2.0, dim=2), 0.1
    starts = rejection_free_starts(gebm)
    for num_steps in (1, 4, 30):
        z = discriminator_gradient_flow(
            gebm, 50, num_steps=num_steps, step_size=step, noise=0.0, generator=rng()
        ).z
        factor = (1 - step * PRECISION) ** num_steps
        torch.testing.assert_close(z, 2.0 + factor * (starts - 2.0))


def test_gradient_flow_has_the_noise_of_its_entropy():
    gebm, step, noise, num_steps = narrowed(2.0), 0.1, 0.5, 5
    x = discriminator_gradient_flow(
        gebm, 20_000, num_steps=num_steps, step_size=step, noise=noise, generator=rng()
    ).x
    factor = 1 - step * PRECISION
    shrink = factor**num_steps
    variance = shrink**2 + 2 * noise * step * (1 - shrink**2) / (1 - factor**2)
    assert abs(float(x.mean()) - 2 * (1 - shrink)) < 4 * math.sqrt(variance / 20_000)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize("divergence", ["kl", "js", "log_d"])
def test_gradient_flow_follows_the_derivative_of_its_divergence(divergence):
    gebm, step = narrowed(1.0), 0.2
    with torch.no_grad():
        gebm.log_partition.fill_(-0.7)
    z = rejection_free_starts(gebm)
    moved = discriminator_gradient_flow(
        gebm, 50, divergence=divergence, num_steps=1, step_size=step, noise=0.0, generator=rng()
    ).z
    # d f'(r)/dz = f''(r) r (log r)', with r = exp(E + c) and f'' by finite differences of f'.
    f_prime = {
        "kl": lambda r: r.log(),
        "js": lambda r: (2 * r / (1 + r)).log(),
        "log_d": lambda r: (1 + r).log(),
    }[divergence]
    ratio = (gebm.evaluate_energy(z) - 0.7).exp()
    h = 1e-5
    second = (f_prime(ratio * (1 + h)) - f_prime(ratio * (1 - h))) / (2 * h * ratio)
    slope = (second * ratio)[:, None] * PRECISION * (z - 1.0)
    torch.testing.assert_close(moved, z - step * slope, rtol=1e-6, atol=1e-8)


def test_flows_keep_to_a_bounded_support():
    for method in (ddls, discriminator_gradient_flow, mh_gan, rejection_sampling):
        gebm = pg.GEBM(pg.Base(nn.Identity(), pg.UniformPrior(2, -1, 1)), Slope(-9.0))
        z = method(gebm, 100, generator=rng()).z
        assert float(z.abs().max()) <= 1 and float(z[:, 0].mean()) > 0.2


# --- what all have in common -------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_counted_and_batches_joined(method):
    gebm = small_gebm()
    rows = Rows(gebm)
    found = method(gebm, 10, batch_size=4, generator=rng())
    assert found.x.shape == (10, 3) and found.z.shape == (10, 2)
    assert (found.num_gradients, found.num_energies) == (rows.gradients, rows.energies)
    assert found.num_gradients + found.num_energies > 0
    with torch.no_grad():
        torch.testing.assert_close(found.x, gebm.base(found.z))
    assert len(found.z.unique(dim=0)) == 10, "no batch repeats another"


@pytest.mark.parametrize("method", METHODS)
def test_model_and_streams_are_left_alone_and_seeds_repeat(method):
    gebm = small_gebm()
    gebm.energy.append(nn.BatchNorm1d(1))  # in train mode its statistics would change
    gebm.train()
    before, state = snapshot(gebm), torch.get_rng_state()
    first, again, other = (method(gebm, 9, generator=rng(s)) for s in (1, 1, 2))
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)
    assert not first.x.requires_grad and not first.z.requires_grad
    assert gebm.training and all(p.requires_grad and p.grad is None for p in gebm.parameters())
    assert same(snapshot(gebm), before) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_all_refuse_what_is_no_model_and_no_number(method):
    with pytest.raises(ValueError, match=r"gebm: expected a GEBM; got Linear; .* from_gan"):
        method(nn.Linear(1, 1), 3, generator=rng())
    with pytest.raises(ValueError, match="num_samples: expected a whole number"):
        method(small_gebm(), 0, generator=rng())
    with pytest.raises(ValueError, match="batch_size: expected a whole number"):
        method(small_gebm(), 3, batch_size=0, generator=rng())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (mh_gan, {"num_proposals": 0}, "num_proposals: expected"),
        (rejection_sampling, {"percentile": 100.0}, "percentile: expected one below"),
        (rejection_sampling, {"log_bound": math.inf}, "log_bound: expected"),
        (ddls, {"step_size": 0.0}, "step_size: expected"),
        (ddls, {"beta": -1.0}, "beta: expected"),
        (discriminator_transport, {"lipschitz": 0.0}, "lipschitz: expected"),
        (discriminator_gradient_flow, {"divergence": "tv"}, "divergence: expected one of kl"),
        (discriminator_gradient_flow, {"noise": -1.0}, "noise: expected"),
    ],
)
def test_options_are_checked(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(small_gebm(), 3, **options, generator=rng())


def test_steps_that_run_off_are_told_and_flat_energies_have_no_slope():
    with pytest.raises(ValueError, match="step_size: expected steps that stay finite"):
        discriminator_gradient_flow(narrowed(), 5, step_size=1e8, generator=rng())
    with pytest.raises(ValueError, match=r"step_size: .* got 5 of 5"):
        discriminator_transport(narrowed(), 5, step_size=1e8, lipschitz=1e-3, generator=rng())
    flat = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(1)), Slope(0.0))
    with pytest.raises(ValueError, match="lipschitz: expected an energy that varies"):
        discriminator_transport(flat, 5, generator=rng())
    rate = torch.distributions.Exponential(torch.ones(1))
    prior = pg.LatentPrior(torch.distributions.Independent(rate, 1))
    with pytest.raises(ValueError, match="prior on all of"):
        discriminator_transport(narrowed(prior=prior), 5, generator=rng())
