"""Observation operators and noise: against explicit loops, SciPy and quadrature."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import rng
from scipy import ndimage, stats

from pyro_gebm.operators import (
    Blur,
    ClippedNormal,
    Downsample,
    Mask,
    QuantisedNormal,
    RandomProjection,
    clipped_noise,
    gaussian_noise,
    observe,
    poisson_noise,
    quantised_noise,
)
from pyro_gebm.operators.recorded import log_cdf

IMAGES = torch.randn(2, 3, 8, 6, generator=rng(), dtype=torch.float64)
HALF = torch.arange(8 * 6 * 3).reshape(3, 8, 6) % 3 == 0

OPERATORS = {
    "mask": Mask(HALF),
    "blur": Blur(0.8),
    "blur, valid": Blur(0.8, 2, "valid"),
    "downsample": Downsample(2),
    "projection": RandomProjection((3, 8, 6), 7, generator=rng(1)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_linear_batched_and_vmapped(name):
    operator = OPERATORS[name]
    whole = operator(IMAGES)
    assert whole.dtype == torch.float64 and len(whole) == 2
    alone = torch.stack([operator(image) for image in IMAGES])
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(torch.func.vmap(operator)(IMAGES), alone)
    nested = operator(IMAGES.expand(4, 2, 3, 8, 6))
    torch.testing.assert_close(nested, whole.expand(4, *whole.shape))
    combined = operator(2 * IMAGES[:1] - 3 * IMAGES[1:])
    torch.testing.assert_close(combined, 2 * whole[:1] - 3 * whole[1:])
    assert not list(operator.parameters())
    assert operator(IMAGES.float()).dtype == torch.float32


def test_mask_takes_what_is_seen_and_fills_it_in():
    mask = Mask(HALF)
    y = mask(IMAGES)
    assert torch.equal(y, IMAGES[:, HALF]) and y.shape == (2, mask.num_observed)
    filled = mask.fill(y)
    assert torch.equal(filled[:, HALF], y) and filled[:, ~HALF].isnan().all()
    before = HALF.clone()
    mask.mask.logical_not_()
    assert torch.equal(HALF, before), "the caller's mask is not shared"
    mask.mask.logical_not_()


@pytest.mark.parametrize(
    ("padding", "mode"), [("reflect", "mirror"), ("replicate", "nearest"), ("zeros", "constant")]
)
@pytest.mark.parametrize("sigma", [0.5, 1.3])
def test_blur_is_scipys(padding, mode, sigma):
    blur = Blur(sigma, padding=padding)
    truth = ndimage.gaussian_filter(
        IMAGES.numpy(), (0, 0, sigma, sigma), mode=mode, radius=(0, 0, blur.radius, blur.radius)
    )
    np.testing.assert_allclose(blur(IMAGES).numpy(), truth, rtol=1e-12, atol=1e-12)
    valid = Blur(sigma, 2, "valid")(IMAGES)
    padded = Blur(sigma, 2, padding)(IMAGES)
    torch.testing.assert_close(valid, padded[..., 2:-2, 2:-2])


def test_downsample_is_a_mean_of_blocks():
    small = Downsample(2)(IMAGES)
    assert small.shape == (2, 3, 4, 3)
    torch.testing.assert_close(small[1, 2, 3, 0], IMAGES[1, 2, 6:8, 0:2].mean())


def test_projection_is_seeded_and_keeps_lengths_on_average():
    one, same = (RandomProjection((64,), 2000, generator=rng(3)) for _ in range(2))
    assert torch.equal(one.matrix, same.matrix)
    x = torch.randn(64, generator=rng(4), dtype=torch.float64)
    # |A x|² / |x|² is χ²(m) / m.
    ratio = one(x).square().sum() / x.square().sum()
    assert abs(ratio - 1) < 4 * math.sqrt(2 / 2000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mask(torch.ones(3)), "mask: expected torch.bool, .*; got torch.float32"),
        (lambda: Mask(torch.zeros(2, 2) > 1), "mask: expected something to be observed; .* 4 en"),
        (lambda: Mask(HALF)(IMAGES[..., :5]), r"x: expected shape \(..., 3, 8, 6\); got \(2, 3, 8"),
        (lambda: Mask(HALF)(IMAGES[0, 0]), r"x: expected shape .*; got \(8, 6\)"),
        (lambda: Mask(HALF).fill(torch.ones(3)), r"y: expected shape \(..., 48\); got \(3,\)"),
        (lambda: Blur(0.0), "sigma: expected a number in .0.0, inf.; got 0.0"),
        (lambda: Blur(1.0, padding="same"), "padding: expected one of reflect, .*; got 'same'"),
        (lambda: Blur(1.0, radius=0), "radius: expected a whole number >= 1; got 0"),
        (lambda: Blur(3.0)(IMAGES), r"at least 10 x 10 pixels for radius 9 .*; got \(2, 3, 8, 6\)"),
        (lambda: Blur(1.0)(torch.ones(8, 8)), r"expected images \(..., C, H, W\)"),
        (lambda: Downsample(0), "factor: expected a whole number >= 1; got 0"),
        (lambda: Downsample(4)(IMAGES), r"H and W multiples of 4; got \(2, 3, 8, 6\)"),
        (lambda: RandomProjection((), 3, generator=rng()), "shape: expected 1 or more"),
        (lambda: RandomProjection((4,), 0, generator=rng()), "num_measurements: expected a whole"),
        (
            lambda: RandomProjection((4,), 2, generator=rng())(torch.ones(5)),
            r"x: expected shape \(..., 4\); got \(5,\)",
        ),
        (lambda: gaussian_noise(torch.ones(3), 1.0, event_dim=2), "event_dim: expected 0 to 1"),
        (
            lambda: gaussian_noise(torch.ones(3), torch.ones(3), event_dim=1),
            r"scale: expected .* event, \(\)",
        ),
        (
            lambda: poisson_noise(torch.ones(3), 9.0, low=1.0, event_dim=1),
            "high: expected .* above low = 1.0",
        ),
        (
            lambda: clipped_noise(torch.ones(3), 1.0, low=2.0, event_dim=1),
            "high: expected a number in .2.0",
        ),
        (
            lambda: observe("y", gaussian_noise(torch.ones(3), 1.0, event_dim=1), torch.ones(1)),
            r"site 'y': expected an observation of shape \(..., 3\); got \(1,\)",
        ),
        (
            lambda: observe("y", gaussian_noise(torch.ones(3), 1.0, event_dim=1), 1.0),
            "site 'y': expected a tensor or None; got float",
        ),
        (
            lambda: quantised_noise(torch.ones(3), 1.0, 1, event_dim=1),
            "levels: expected a whole number >= 2",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_gaussian_and_poisson_noise_are_scipys():
    x = torch.rand(4, 2, 3, generator=rng(), dtype=torch.float64) * 2 - 1
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    y = x + 0.2
    found = gaussian_noise(x, scale, event_dim=2).log_prob(y)
    truth = stats.norm(x, scale[:, None, None]).logpdf(y).sum((1, 2))
    np.testing.assert_allclose(found, truth, rtol=1e-10)
    law = poisson_noise(x, 20.0, background=0.5, event_dim=2)
    counts = law.sample()
    rate = 20 * (x + 1) / 2 + 0.5
    np.testing.assert_allclose(
        law.log_prob(counts), stats.poisson(rate).logpmf(counts).sum((1, 2)), rtol=1e-10
    )


LOCS = torch.tensor([-60.0, -3.0, -0.9, 0.0, 0.2, 1.0, 40.0], dtype=torch.float64)


def test_clipped_density_is_a_density_and_two_probabilities():
    low, high, scale = -1.0, 1.5, 0.7
    law = ClippedNormal(LOCS, scale, low, high)
    truth = stats.norm(LOCS, scale)
    np.testing.assert_allclose(law.log_prob(torch.tensor(low)), truth.logcdf(low), rtol=1e-10)
    np.testing.assert_allclose(law.log_prob(torch.tensor(high)), truth.logsf(high), rtol=1e-10)
    np.testing.assert_allclose(
        law.log_prob(torch.tensor(0.3, dtype=torch.float64)), truth.logpdf(0.3), rtol=1e-10
    )
    outside = ClippedNormal(LOCS, scale, low, high, validate_args=False)
    assert (outside.log_prob(torch.tensor(1.6)) == -torch.inf).all()
    assert (outside.log_prob(torch.tensor(-1.1)) == -torch.inf).all()


def test_quantised_probabilities_are_scipys_and_sum_to_one():
    levels, low, high, scale = 9, -1.0, 1.0, 0.3
    law = QuantisedNormal(LOCS, scale, levels, low, high)
    grid = torch.linspace(low, high, levels, dtype=torch.float64)
    logs = torch.stack([law.log_prob(level) for level in grid])
    torch.testing.assert_close(logs.logsumexp(0), torch.zeros(7).double(), atol=1e-12, rtol=0)
    truth = stats.norm(LOCS[1:-1], scale)
    for place in range(1, levels - 1):
        difference = truth.cdf(grid[place] + 0.125) - truth.cdf(grid[place] - 0.125)
        near = difference > 1e-6  # beyond that SciPy's difference of probabilities cancels
        np.testing.assert_allclose(logs[place, 1:-1].exp()[near], difference[near], rtol=1e-9)
    assert logs[:-1].isfinite().all(), "tails do not underflow"
    free = QuantisedNormal(LOCS, scale, levels, low, high, validate_args=False)
    assert (free.log_prob(torch.tensor(0.1)) == -torch.inf).all()
    assert (free.log_prob(torch.tensor(1.25)) == -torch.inf).all()


def test_log_cdf_is_torchs_and_is_batched():
    x = torch.cat([torch.linspace(-1e4, 1e4, 4001), torch.linspace(-9, 9, 361)]).double()
    torch.testing.assert_close(log_cdf(x), torch.special.log_ndtr(x), rtol=1e-10, atol=1e-300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where vmap goes row by row
        torch.testing.assert_close(torch.func.vmap(log_cdf)(x), log_cdf(x), rtol=0, atol=0)
    free = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_cdf(free).sum(), free)
    truth = torch.exp(-0.5 * x**2 - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(x))
    torch.testing.assert_close(gradient, truth, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("law", ["clipped", "quantised"])
def test_draws_follow_the_density(law):
    loc = torch.full((40_000,), 0.4, dtype=torch.float64)
    if law == "clipped":
        made = ClippedNormal(loc, 0.5, -0.5, 1.0)
        y = made.sample()
        ends = [stats.norm.cdf(-1.8), stats.norm.sf(1.2)]
        for end, probability in zip((-0.5, 1.0), ends, strict=True):
            share = float((y == end).double().mean())
            assert abs(share - probability) < 4 * math.sqrt(probability / 40_000)
    else:
        made = QuantisedNormal(loc, 0.5, 4, -0.5, 1.0)
        y = made.sample()
        values, counts = y.unique(return_counts=True)
        expected = QuantisedNormal(loc[:4], 0.5, 4, -0.5, 1.0).log_prob(values).exp() * 40_000
        assert stats.chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("law", [ClippedNormal, QuantisedNormal])
@pytest.mark.parametrize("y", [-1.0, 0.0, 1.0])
def test_gradients_are_finite_and_right(law, y):
    more = (5, -1.0, 1.0) if law is QuantisedNormal else (-1.0, 1.0)
    loc = torch.tensor([-30.0, -1.1, 0.1, 0.9, 30.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m, s: law(m, s, *more).log_prob(torch.tensor(y).double()), (loc, scale)
    )


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: gaussian_noise(x, 0.3, event_dim=1),
        lambda x: poisson_noise(x, 20.0, background=0.1, event_dim=1),
        lambda x: clipped_noise(x, 0.3, event_dim=1),
        lambda x: quantised_noise(x, 0.3, 16, event_dim=1),
    ],
)
def test_noise_under_vmap_and_in_plates(noise):
    x = torch.rand(5, 4, generator=rng(), dtype=torch.float64) * 2 - 1
    y = noise(x[0]).sample()
    with pyro.validation_enabled(False):
        batched = torch.func.vmap(lambda row: noise(row).log_prob(y))(x)
    torch.testing.assert_close(batched, torch.stack([noise(row).log_prob(y) for row in x]))

    def model():
        with pyro.plate("data", 3):
            return pyro.sample("y", noise(x[0]))

    trace = pyro.poutine.trace(model).get_trace()
    assert trace.nodes["y"]["value"].shape == (3, 4)
    assert trace.log_prob_sum().isfinite()


def test_recorded_distributions_are_pyros():
    law = ClippedNormal(torch.zeros(2), 1.0, -1.0, 1.0)
    assert isinstance(law, dist.TorchDistribution)
    assert law.expand((3, 2)).sample((5,)).shape == (5, 3, 2)
