"""Objectives against closed forms, finite differences and hand-written weights, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_gebm.objectives import (
    base_loss_amortized,
    base_loss_self_normalized,
    donsker_varadhan,
    importance_ess,
    kale_bound,
    log_partition_estimate,
)

ENERGIES = st.lists(st.floats(-8, 8), min_size=1, max_size=8).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
CONSTANTS = st.floats(-5, 5)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def normal_grid(num_points=400_001):
    """Equally likely quantiles of N(0, 1): a deterministic stand-in for a huge sample."""
    levels = (torch.arange(num_points, dtype=torch.float64) + 0.5) / num_points
    return torch.special.ndtri(levels)


# --- values ------------------------------------------


def test_log_partition_is_the_bessel_function_for_a_tilted_arcsine_law():
    # Chebyshev nodes are equally weighted, and exact here to rounding: Z = E exp(-a x) = I_0(a).
    nodes = torch.cos((torch.arange(64, dtype=torch.float64) + 0.5) * math.pi / 64)
    for slope in (0.5, 2.0, 5.0):
        expected = torch.special.i0(double(slope)).log()
        torch.testing.assert_close(
            log_partition_estimate(slope * nodes), expected, rtol=1e-12, atol=0
        )


def test_log_partition_of_huge_energies_does_not_overflow():
    assert log_partition_estimate(double([-1e4, -1e4])).item() == 1e4
    assert log_partition_estimate(double([1e4, 1e4])).item() == -1e4


def test_optimal_energy_on_a_finite_set_attains_kl():
    # P and B as multisets of atoms, so that batch means are exact expectations.
    real = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 3, 6]))
    base = torch.repeat_interleave(torch.arange(3), torch.tensor([4, 4, 2]))
    p, b = double([0.1, 0.3, 0.6]), double([0.4, 0.4, 0.2])
    energy, kl = -(p / b).log(), (p * (p / b).log()).sum()
    assert donsker_varadhan(energy[real], energy[base]).item() == pytest.approx(
        kl.item(), abs=1e-13
    )
    assert kale_bound(energy[real], energy[base], 0.0).item() == pytest.approx(kl.item(), abs=1e-13)
    for scale in (0.5, 0.9, 1.1, 2.0):  # any other energy does worse
        assert donsker_varadhan(scale * energy[real], scale * energy[base]) < kl - 1e-4


@pytest.mark.parametrize(("sd", "shift"), [(0.5, 0.0), (0.7, 3.0)])
def test_optimal_quadratic_energy_attains_gaussian_kl(sd, shift):
    # P = N(0, sd²), B = N(0, 1): E* = -log dP/dB + shift, log Z = -shift,
    # KL = (sd² - 1)/2 - log sd. The two points ±sd have P's second moment exactly.
    def energy(x):
        return 0.5 * x.square() * (sd**-2 - 1) + math.log(sd) + shift

    real, base = energy(double([-sd, sd])), energy(normal_grid())
    kl = 0.5 * (sd**2 - 1) - math.log(sd)
    assert log_partition_estimate(base).item() == pytest.approx(-shift, abs=1e-7)
    assert donsker_varadhan(real, base).item() == pytest.approx(kl, abs=1e-7)
    assert kale_bound(real, base, double(-shift)).item() == pytest.approx(kl, abs=1e-7)


@pytest.mark.parametrize(("sd", "curvature"), [(0.5, 1.0), (2.0, 0.3)])
def test_any_quadratic_energy_has_its_closed_form(sd, curvature):
    # E = k x²/2: E_P[E] = k sd²/2, Z = (1 + k)^-½; off log Z by d the bound loses e^-d - 1 + d.
    real = 0.5 * curvature * double([-sd, sd]).square()
    base = 0.5 * curvature * normal_grid().square()
    log_z = -0.5 * math.log1p(curvature)
    likelihood = -0.5 * curvature * sd**2 - log_z
    assert donsker_varadhan(real, base).item() == pytest.approx(likelihood, abs=1e-5)
    for off in (-1.0, 0.0, 0.5):
        expected = likelihood - (math.exp(-off) - 1 + off)
        assert kale_bound(real, base, log_z + off).item() == pytest.approx(expected, abs=1e-5)


# --- the bound ------------------------------------------


@settings(max_examples=200, deadline=None)
@given(ENERGIES, ENERGIES, CONSTANTS)
def test_kale_bounds_donsker_varadhan_and_touches_it_at_log_z(real, base, constant):
    likelihood = donsker_varadhan(real, base).item()
    bound = kale_bound(real, base, constant).item()
    assert bound <= likelihood + 1e-9 * max(1, abs(bound))
    at_log_z = kale_bound(real, base, log_partition_estimate(base)).item()
    assert at_log_z == pytest.approx(likelihood, abs=1e-10)


@settings(max_examples=100, deadline=None)
@given(ENERGIES, ENERGIES, CONSTANTS, st.floats(-5, 5), st.sampled_from([math.inf, 0.5]))
def test_kale_does_not_see_a_shift_between_energy_and_constant(real, base, c, shift, linear_from):
    before = kale_bound(real, base, c, linear_from=linear_from).item()
    after = kale_bound(real + shift, base + shift, c - shift, linear_from=linear_from).item()
    assert after == pytest.approx(before, rel=1e-10, abs=1e-10)


@settings(max_examples=100, deadline=None)
@given(ENERGIES, ENERGIES, CONSTANTS)
def test_gradient_in_the_constant(real, base, constant):
    c = double(constant).requires_grad_()
    kale_bound(real, base, c).backward()
    expected = -1 + math.exp(log_partition_estimate(base).item() - constant)
    assert c.grad.item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


# --- linear continuation ------------------------------------------


def phi(exponent, linear_from):
    """φ(t), read off the base's part of the bound; E = -t, c = 0."""
    return -base_loss_amortized(-exponent.reshape(1), 0.0, linear_from=linear_from)


@pytest.mark.parametrize("exponent", [-3.0, 0.0, 1.999, 2.0, 2.001, 5.0, 1e4])
def test_continuation_is_the_tangent_and_continuous_to_first_order(exponent):
    t = double(exponent).requires_grad_()
    value = phi(t, 2.0)
    (slope,) = torch.autograd.grad(value, t)
    below = exponent <= 2
    expected = math.exp(exponent) if below else math.exp(2) * (exponent - 1)
    assert value.item() == pytest.approx(expected, rel=1e-13)
    assert slope.item() == pytest.approx(math.exp(min(exponent, 2.0)), rel=1e-13)


def test_continuation_is_the_one_used_by_the_bound():
    real, base = double([0.3]), double([-5.0, 1.0])
    expected = 1 - 0.3 - 0.5 * (math.exp(2) * 4 + math.exp(-1))
    assert kale_bound(real, base, 0.0, linear_from=2.0).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_very_low_energies_are_finite_and_exact(dtype):
    base = torch.tensor([-1e4, 0.0], dtype=dtype, requires_grad=True)
    c = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    kale_bound(torch.zeros(1, dtype=dtype), base, c, linear_from=6.0).backward()
    weights = torch.tensor([math.exp(6), math.exp(-0.5)], dtype=dtype) / 2
    torch.testing.assert_close(base.grad, weights)
    torch.testing.assert_close(c.grad, weights.sum() - 1)


# --- gradients of the base ------------------------------------------


def base_energies(theta):
    """E(G_θ(z)) for the affine base x = θ₀ + θ₁ z and E(x) = x²/2 + sin x, at five fixed z."""
    z = double([-1.2, -0.4, 0.1, 0.8, 1.7])
    x = theta[0] + theta[1] * z
    return 0.5 * x.square() + x.sin(), x, z


@pytest.mark.parametrize("linear_from", [math.inf, -0.2])
def test_amortized_loss_has_the_gradient_of_the_bound(linear_from):
    theta, c = double([0.3, 0.9]).requires_grad_(), double(-0.4).requires_grad_()
    base_loss_amortized(base_energies(theta)[0], c, linear_from=linear_from).backward()

    def bound(values):
        return kale_bound(double([0.0]), base_energies(values)[0], -0.4, linear_from=linear_from)

    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = 1e-5
        slope = (bound(theta.detach() + step) - bound(theta.detach() - step)) / 2e-5
        assert theta.grad[i].item() == pytest.approx(slope.item(), rel=1e-8)
    assert c.grad is None  # the constant is the energy's to learn


def test_amortized_weights_by_hand():
    theta = double([0.3, 0.9]).requires_grad_()
    energy, x, z = base_energies(theta)
    base_loss_amortized(energy, -0.4).backward()
    pull = (-(energy + -0.4)).exp() / 5 * (x + x.cos())
    torch.testing.assert_close(theta.grad, torch.stack([pull.sum(), (pull * z).sum()]).detach())


def test_self_normalized_weights_by_hand_and_free_of_the_constant():
    for shift in (0.0, -300.0):
        theta = double([0.3, 0.9]).requires_grad_()
        energy, x, z = base_energies(theta)
        base_loss_self_normalized(energy + shift).backward()
        weights = (-energy).exp() / (-energy).exp().sum()
        pull = weights * (x + x.cos())
        torch.testing.assert_close(theta.grad, torch.stack([pull.sum(), (pull * z).sum()]).detach())


def test_minimising_either_loss_moves_the_base_towards_low_energy():
    for loss in (lambda e: base_loss_amortized(e, 0.0), base_loss_self_normalized):
        theta = double([2.0, 0.1]).requires_grad_()
        energy = base_energies(theta)[0]
        (grad,) = torch.autograd.grad(loss(energy), theta)
        assert base_energies(theta - 0.01 * grad)[0].mean() < energy.mean()


# --- effective sample size ------------------------------------------


@settings(max_examples=100, deadline=None)
@given(ENERGIES, st.floats(-1e4, 1e4))
def test_ess_is_kish_and_free_of_shifts(energies, shift):
    weights = (-energies).exp()
    expected = (weights.sum() ** 2 / weights.square().sum() / len(weights)).item()
    assert importance_ess(energies).item() == pytest.approx(expected, rel=1e-10)
    shifted = importance_ess(energies + shift).item()
    assert shifted == pytest.approx(expected, rel=1e-6)
    assert 0 < shifted <= 1


def test_ess_of_flat_and_of_lone_weights():
    flat = importance_ess(torch.full((7,), 3.3)).item()
    assert flat <= 1 and flat == pytest.approx(1, abs=1e-6)
    assert importance_ess(torch.tensor([-1e4, 0.0, 0.0, 0.0])).item() == 0.25


# --- refusals ------------------------------------------

GOOD = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_partition_estimate(torch.zeros(3, 1)), r"energy_base: .*\(3, 1\)"),
        (lambda: log_partition_estimate(torch.zeros(0)), "energy_base: .*empty"),
        (lambda: kale_bound(torch.zeros(3, 1), GOOD, 0.0), r"energy_real: .*\(3, 1\)"),
        (lambda: kale_bound(GOOD, torch.zeros(3, 1), 0.0), r"energy_base: .*\(3, 1\)"),
        (lambda: kale_bound(GOOD, GOOD, torch.zeros(3)), r"log_partition: .*\(3,\)"),
        (lambda: kale_bound(GOOD, GOOD, 0.0, linear_from=math.nan), "linear_from: .*nan"),
        (lambda: donsker_varadhan(torch.zeros(()), GOOD), r"energy_real: .*\(\)"),
        (lambda: base_loss_amortized(GOOD, torch.zeros(1)), r"log_partition: .*\(1,\)"),
        (lambda: base_loss_amortized(GOOD, 0.0, linear_from=-math.inf), "linear_from: .*-inf"),
        (lambda: importance_ess(torch.zeros(2, 2)), r"energy_base: .*\(2, 2\)"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
