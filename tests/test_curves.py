"""The curve of known law against its formulas, quadrature and brute force."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_gebm.data.curves import Curve

DIMS = [2, 3, 10]


def positions(num, dtype=torch.float64):
    return torch.linspace(0, 1, num, dtype=dtype)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(dim, t):
    """The curve of the docstring at one position, (dim,)."""
    count = dim - 1
    point = [t]
    for j in range(count):
        frequency = 3.9 if count == 1 else 3.9 - 1.95 * j / (count - 1)
        point.append(0.11 / (t + 0.11) * math.sin(2 * math.pi * frequency * t) / math.sqrt(count))
    return point


@pytest.mark.parametrize("dim", DIMS)
def test_points_are_those_of_the_formula(dim):
    t = positions(57)
    expected = torch.tensor([by_hand(dim, float(s)) for s in t], dtype=torch.float64)
    torch.testing.assert_close(Curve(dim).points(t), expected, rtol=1e-12, atol=1e-12)


def test_the_second_coordinate_oscillates_three_point_nine_times_under_a_falling_amplitude():
    x = Curve(2).points(positions(100_001))[:, 1]
    assert int((x[1:-1].sign().diff() != 0).sum()) == 7  # zeros at k/7.8 inside (0, 1)
    tops = [float(part.abs().max()) for part in x.tensor_split(5)]
    assert tops == sorted(tops, reverse=True) and tops[0] < 1 and tops[-1] > 0.08


@pytest.mark.parametrize("dim", DIMS)
def test_speed_is_that_of_a_polygon(dim):
    curve, ends = Curve(dim), positions(200_001)
    lengths = curve.points(ends).diff(dim=0).norm(dim=1)
    middles = (ends[1:] + ends[:-1]) / 2
    torch.testing.assert_close(lengths / ends.diff(), curve.speed(middles), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("steepness", [0.5, 3.0, 8.0])
def test_density_distribution_function_and_quantiles_belong_together(steepness):
    curve = Curve(2, steepness=steepness)

    def density(t):
        return curve.log_prob(torch.tensor([t], dtype=torch.float64)).exp().item()

    for t in (0.2, 0.5, 0.97, 1.0):
        below = integrate.quad(density, 0, t, epsabs=1e-11)[0]
        assert curve.cdf(torch.tensor([t], dtype=torch.float64)).item() == pytest.approx(below)
    z = positions(101)
    torch.testing.assert_close(curve.cdf(curve.quantile(z)), z, rtol=0, atol=1e-12)
    assert density(0.0) / density(0.5) == pytest.approx(1 + steepness**2)
    assert density(0.3) == pytest.approx(density(0.7))
    outside = curve.log_prob(torch.tensor([-0.01, 1.01]))
    assert outside.tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("dim", DIMS)
def test_draws_lie_on_the_curve_and_have_its_law(dim):
    curve = Curve(dim)
    x = curve.sample(20_000, generator=rng(dim))
    found = curve.project(x)
    assert x.shape == (20_000, dim) and x.dtype == torch.float32
    assert found.distance.max() < 1e-6
    t = x[:, 0].double()

    def cdf(t):
        return curve.cdf(torch.as_tensor(t)).numpy()

    assert stats.kstest(t.numpy(), cdf).pvalue > 1e-4
    # Against the density alone, which the quantiles do not use: E[t²] by quadrature.
    second = integrate.quad(
        lambda s: s**2 * curve.log_prob(torch.tensor([s]).double()).exp().item(), 0, 1
    )[0]
    error = t.square().std().item() / math.sqrt(len(t))
    assert abs(t.square().mean().item() - second) < 4 * error
    assert torch.equal(x, curve.sample(20_000, generator=rng(dim)))


@pytest.mark.parametrize("dim", DIMS)
def test_distance_against_brute_force(dim):
    curve = Curve(dim)
    x = torch.cat([torch.rand(30, 1), torch.randn(30, dim - 1) / math.sqrt(dim - 1)], 1).double()
    x[:5, 0] -= 1.5
    x[5:10, 0] += 1.5
    found = curve.project(x)
    fine = curve.points(positions(200_001))
    brute = torch.stack([(point - fine).norm(dim=1).min() for point in x])
    # On the fine grid the squared distance is too large by (speed · 2.5e-6)² at most.
    assert (found.distance <= brute + 1e-10).all()
    assert (brute**2 - found.distance**2).max() < (25 * 2.5e-6) ** 2 * 4
    itself = (x - curve.points(found.position)).norm(dim=1)
    torch.testing.assert_close(itself, found.distance)


@pytest.mark.parametrize("dim", DIMS)
def test_a_step_along_a_normal_is_the_distance(dim):
    curve = Curve(dim)
    t = positions(301)[3:-3]
    tangent = (curve.points(t + 1e-6) - curve.points(t - 1e-6)) / 2e-6
    noise = torch.randn(len(t), dim, generator=rng()).double()
    normal = noise - tangent * ((noise * tangent).sum(1) / tangent.square().sum(1))[:, None]
    step = 2e-3  # below the radius of curvature, 2.6e-3 at the tightest bend of R²
    found = curve.project(curve.points(t) + step * torch.nn.functional.normalize(normal, dim=1))
    assert (found.distance - step).abs().max() < 1e-9
    assert (found.position - t).abs().max() < 1e-6


def test_beyond_an_end_the_end_is_nearest():
    curve = Curve(3)
    start = curve.points(torch.zeros(1, dtype=torch.float64))
    found = curve.project(start - torch.tensor([[1.0, 0.0, 0.0]]))
    # The curve starts steeply, with slope 24.5/√2: a little along it is nearer than the end.
    assert found.distance.item() == pytest.approx(1.0, abs=1e-2)
    ends = curve.points(positions(2))
    away = torch.tensor([[-(24.5**2), -24.5, 0.0], [2.0, 0.0, 0.0]]).double()
    assert curve.project(ends + away).position.tolist() == pytest.approx([0.0, 1.0], abs=1e-9)


def test_no_points_are_no_error():
    found = Curve(2).project(torch.zeros(0, 2))
    assert found.position.shape == found.distance.shape == (0,)


def test_precision_follows_the_positions():
    curve = Curve(4)
    for dtype in (torch.float32, torch.float64):
        t = positions(5, dtype)
        for values in (curve.points(t), curve.speed(t), curve.log_prob(t), curve.cdf(t)):
            assert values.dtype == dtype
    x = curve.points(positions(5, torch.float32))
    assert curve.project(x).distance.dtype == torch.float64
    assert np.allclose(x, curve.points(positions(5)), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Curve(1), "dim: .*>= 2; got 1"),
        (lambda: Curve(2, steepness=0.0), r"steepness: .*got 0\.0"),
        (lambda: Curve(2).points(torch.tensor([0.5, 1.5])), r"\[0, 1\]; got 1\.5 at index 1"),
        (lambda: Curve(2).cdf(torch.tensor([math.nan])), "got nan at index 0"),
        (lambda: Curve(2).quantile(torch.tensor([-0.5])), r"share: .*got -0\.5"),
        (lambda: Curve(2).log_prob(torch.zeros(2, 1)), r"position: .*\(2, 1\)"),
        (lambda: Curve(2).project(torch.zeros(4, 3)), r"x: .*\(B, 2\).*\(4, 3\)"),
        (lambda: Curve(2).sample(0, generator=rng()), "num_samples: .*got 0"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
