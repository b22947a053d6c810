"""Interpolates, slope penalties and the penalty of the log density ratio, in float64."""

import math

import pytest
import torch

from pyro_gebm.objectives import energy_l2, gradient_penalty, interpolate, slope_penalty


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


# --- interpolates ------------------------------------------


def test_interpolates_by_hand_with_gradients_into_all_three():
    x, y = normal(4, 2, 3).requires_grad_(), normal(4, 2, 3, seed=1).requires_grad_()
    u = double([0.0, 0.25, 0.7, 1.0]).requires_grad_()
    points = interpolate(x, y, u)
    for i in range(4):
        expected = u[i].item() * x[i].detach() + (1 - u[i].item()) * y[i].detach()
        torch.testing.assert_close(points[i].detach(), expected, rtol=1e-14, atol=1e-15)
    points.sum().backward()
    shares = u.detach()[:, None, None].expand(4, 2, 3)
    torch.testing.assert_close(x.grad, shares)
    torch.testing.assert_close(y.grad, 1 - shares)
    torch.testing.assert_close(u.grad, (x - y).sum(dim=(1, 2)).detach())


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (2,)])
def test_interpolate_refuses_other_shares(shape):
    with pytest.raises(ValueError, match=r"u: expected shape \(3,\)"):
        interpolate(torch.ones(3, 1), torch.zeros(3, 1), torch.full(shape, 0.5))


def test_interpolate_refuses_unequal_pairs():
    with pytest.raises(ValueError, match=r"interpolate: .* \(3, 1\) and \(1, 1\)"):
        interpolate(torch.ones(3, 1), torch.zeros(1, 1), torch.ones(3))


# --- slopes ------------------------------------------


@pytest.mark.parametrize("center", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("column", [False, True])
def test_slope_penalty_of_a_quadratic_energy(center, column):
    # |∇ a|x|²/2| = a|x|: (a|x| - c)² and its derivative 2|x|(a|x| - c), datum by datum.
    x, a = normal(6, 2, 3), double(1.7).requires_grad_()

    def energy(points):
        values = 0.5 * a * points.square().sum(dim=(1, 2))
        return values[:, None] if column else values

    norms = [math.sqrt(sum(v * v for v in datum.flatten().tolist())) for datum in x]
    penalty = slope_penalty(energy, x, center=center)
    (slope,) = torch.autograd.grad(penalty, a)
    assert penalty.item() == pytest.approx(sum((1.7 * r - center) ** 2 for r in norms) / 6)
    assert slope.item() == pytest.approx(sum(2 * r * (1.7 * r - center) for r in norms) / 6)


@pytest.mark.parametrize("center", [0.0, 1.0])
def test_slope_penalty_of_a_network_against_finite_differences(center):
    points, weight = normal(5, 3), normal(4, 3, seed=1)

    def energy(w, x):
        return (x @ w.T).tanh().sum(dim=1)

    def by_differences(w):
        """The penalty from central differences of the energy alone."""
        total = 0.0
        for x in points:
            slopes = [
                (energy(w, (x + e)[None]) - energy(w, (x - e)[None])).item() / 2e-5
                for e in 1e-5 * torch.eye(3, dtype=torch.float64)
            ]
            norm = math.sqrt(sum(s * s for s in slopes))
            total += (norm - center) ** 2 / len(points)
        return total

    learned = weight.clone().requires_grad_()
    penalty = slope_penalty(lambda x: energy(learned, x), points, center=center)
    penalty.backward()
    assert penalty.item() == pytest.approx(by_differences(weight), rel=1e-8)
    for i, j in [(0, 0), (1, 2), (3, 1)]:
        step = torch.zeros_like(weight)
        step[i, j] = 1e-3
        difference = (by_differences(weight + step) - by_differences(weight - step)) / 2e-3
        assert learned.grad[i, j].item() == pytest.approx(difference, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("center", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_point_without_slope_counts_and_pulls_at_nothing(center, dtype):
    # E = a|x|²/2 at 0 and at a point of norm 2.
    a = torch.tensor(1.5, dtype=dtype, requires_grad=True)
    points = torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=dtype)
    penalty = slope_penalty(lambda x: 0.5 * a * x.square().sum(1), points, center=center)
    (slope,) = torch.autograd.grad(penalty, a)
    assert penalty.item() == (center**2 + (3 - center) ** 2) / 2
    assert slope.item() == 2 * 2 * (3 - center) / 2


def test_slope_penalty_of_an_energy_that_ignores_its_input():
    level = torch.tensor(2.0, requires_grad=True)
    assert slope_penalty(lambda x: level.expand(len(x)), torch.ones(4, 2), center=1.0) == 1


def test_slope_penalty_leaves_the_points_alone_even_without_gradients():
    points, a = normal(3, 2).requires_grad_(), double(0.5).requires_grad_()
    before = points.detach().clone()
    with torch.no_grad():
        penalty = slope_penalty(lambda x: a * x.square().sum(1), points)
    penalty.backward()
    torch.testing.assert_close(a.grad, penalty.detach() * 2 / 0.5)  # it is quadratic in a
    assert points.grad is None
    assert torch.equal(points.detach(), before)


@pytest.mark.parametrize("center", [-0.1, math.nan, math.inf])
def test_slope_penalty_refuses_other_centers(center):
    with pytest.raises(ValueError, match="center: expected a number in"):
        slope_penalty(lambda x: x.sum(1), torch.ones(2, 2), center=center)


@pytest.mark.parametrize("shape", [(), (0, 2)])
def test_slope_penalty_refuses_no_points(shape):
    with pytest.raises(ValueError, match="points: expected shape"):
        slope_penalty(lambda x: x.sum(), torch.ones(shape))


def test_gradient_penalty_keeps_its_stream_bit_for_bit():
    # One torch.rand(B) in the data's dtype, then u x + (1 - u) y, in this order of rounding.
    for dtype in (torch.float32, torch.float64):
        real, fake = normal(7, 2, 3).to(dtype), normal(7, 2, 3, seed=1).to(dtype)
        torch.manual_seed(5)
        u = torch.rand(7, dtype=dtype)[:, None, None]
        after = torch.rand(1)
        points = u * real + (1 - u) * fake
        seen = []

        def energy(x, seen=seen):
            seen.append(x.detach())
            return x.pow(3).sum(dim=(1, 2))

        torch.manual_seed(5)
        penalty = gradient_penalty(energy, real, fake)
        assert torch.equal(torch.rand(1), after)
        assert torch.equal(seen[0], points)
        by_hand = (3 * points.square()).flatten(1).square().sum(dim=1).mean()
        torch.testing.assert_close(penalty, by_hand)


# --- the log density ratio ------------------------------------------


def test_energy_l2_by_hand():
    real, base, c = [1.0, -2.0, 0.5], [3.0, 4.0], -0.7
    halves = [sum((e + c) ** 2 for e in energies) / len(energies) for energies in (real, base)]
    value = energy_l2(double(real), double(base), c)
    assert value.item() == pytest.approx(sum(halves) / 2, rel=1e-14)


def test_energy_l2_sees_no_shift_between_energy_and_constant():
    real, base, c = normal(5), normal(8, seed=1), double(0.4)
    for shift in (-3.0, 100.0):
        shifted = energy_l2(real + shift, base + shift, c - shift)
        torch.testing.assert_close(shifted, energy_l2(real, base, c), rtol=1e-12, atol=0)


def test_energy_l2_is_least_at_minus_the_mean_of_the_two_means():
    real, base = normal(5), normal(8, seed=1)
    best = -(real.mean() + base.mean()) / 2
    c = best.clone().requires_grad_()
    value = energy_l2(real, base, c)
    value.backward()
    assert abs(c.grad.item()) < 1e-15
    # Quadratic in c with second derivative 2.
    torch.testing.assert_close(energy_l2(real, base, best + 0.3), value.detach() + 0.09)


def test_energy_l2_gradients():
    real, base, c = normal(5).requires_grad_(), normal(8, seed=1).requires_grad_(), 0.4
    energy_l2(real, base, c).backward()
    torch.testing.assert_close(real.grad, (real.detach() + c) / 5)
    torch.testing.assert_close(base.grad, (base.detach() + c) / 8)


GOOD = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: energy_l2(torch.zeros(3, 1), GOOD, 0.0), r"energy_real: .*\(3, 1\)"),
        (lambda: energy_l2(GOOD, torch.zeros(0), 0.0), "energy_base: .*empty"),
        (lambda: energy_l2(GOOD, GOOD, torch.zeros(1)), r"log_partition: .*\(1,\)"),
    ],
)
def test_energy_l2_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
