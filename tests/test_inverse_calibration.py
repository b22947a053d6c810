"""Calibration: posteriors of data that the model itself has made are as wide as they say."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import draws_of, rng, small_gebm
from scipy import stats

from pyro_gebm import inference_data
from pyro_gebm.inverse import (
    calibration,
    interval_coverage,
    rank_statistics,
    sample_many,
    uniformity,
)
from pyro_gebm.operators import Mask, gaussian_noise, observe

P, PASS, FAIL = 512, 1e-4, 1e-6
GEBM = small_gebm(seed=3)
with torch.no_grad():
    GEBM.energy[-1].weight.mul_(30)  # an energy that matters
SEEN = Mask(torch.tensor([True, False, True]))


def denoise(y, gebm=GEBM):
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    x = gebm.model()
    observe("y", gaussian_noise(SEEN(x), scale, event_dim=1), y)


def model_latents(num, seed=0):
    """Exact draws of ν: the base's, accepted with exp(-(E - min E)); rejection sampling."""
    torch.manual_seed(seed)
    with torch.no_grad():
        z = GEBM.base.latent_prior.sample(200_000)
        energy = GEBM.latent_energy(z)
        # tanh bounds x and so the energy; the least of so many is near its infimum.
        keep = torch.rand(len(z)) < (energy.min() - energy).exp()
    assert keep.sum() > num and 0.005 < keep.double().mean() < 0.9
    return z[keep][:num]


def simulate():
    z = model_latents(P)
    scale = dist.LogNormal(-1.0, 0.5).sample((P,))
    with torch.no_grad():
        x = GEBM.base(z)
        y = gaussian_noise(SEEN(x), scale, event_dim=1).sample()
    return {"z": z, "scale": scale}, x, y


def posteriors(y, model=denoise, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of 2 chains
        return sample_many(
            model,
            y,
            num_chains=2,
            num_samples=56,
            warmup_steps=80,
            thinning=2,
            seed=1,
            progress=False,
            **settings,
        )


@pytest.fixture(scope="module")
def honest():
    torch.manual_seed(0)
    truth, x, y = simulate()
    return truth, x, y, posteriors(y)


def test_ranks_are_uniform(honest):
    truth, _, _, idata = honest
    found = calibration(idata, truth, thin=2)
    assert found.num_draws == 47 and found.ranks["z"].shape == (P, 2)
    assert found.p_values["z"].shape == (2,) and found.p_values["scale"].shape == ()
    assert found.worst > PASS, found.p_values


def test_intervals_cover_as_often_as_they_say(honest):
    truth, x, _, idata = honest
    z = torch.as_tensor(draws_of(idata)).flatten(0, 1)
    with torch.no_grad():
        pixels = GEBM.base(z)
    scale = torch.as_tensor(draws_of(idata, "scale")).flatten(0, 1)
    for draws, true in ((z, truth["z"]), (scale, truth["scale"]), (pixels, x)):
        found = interval_coverage(draws, true, 0.9)
        assert found.by_problem.shape == (P,) and found.standard_error < 0.02
        # Correlated draws make the ends of the interval uncertain, which costs some coverage.
        assert abs(found.share - found.expected) < 4 * found.standard_error + 0.01


def test_a_model_that_forgets_the_energy_is_seen(honest):
    truth, _, y, _ = honest

    def base_only(y):
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        x = GEBM.model(beta=0.0)
        observe("y", gaussian_noise(SEEN(x), scale, event_dim=1), y)

    assert calibration(posteriors(y, base_only), truth, thin=2).worst < FAIL


def test_data_of_another_problem_are_seen(honest):
    # Plant the bug: the posteriors are handed back in another order.
    truth, _, _, idata = honest
    rolled = {name: value.roll(1, 0) for name, value in truth.items()}
    # Ranks against another truth are as broad as the prior: too many at the ends.
    assert calibration(idata, rolled, thin=2).worst < FAIL


def test_ranks_and_coverage_by_hand():
    draws = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert rank_statistics(draws, torch.tensor([2.5, 5.0])).tolist() == [2, 1]
    assert rank_statistics(draws, torch.tensor([0.0, 6.0])).tolist() == [0, 3]
    nineteen = torch.arange(19.0)[:, None].expand(19, 3)
    found = interval_coverage(nineteen, torch.tensor([0.0, 18.0, 18.5]), 0.9)
    assert found.by_problem.tolist() == [1, 1, 0]
    assert found.expected == pytest.approx(0.9) and found.share == pytest.approx(2 / 3)


def test_p_values_are_scipys():
    ranks = torch.randint(0, 48, (300, 4), generator=rng())
    found = uniformity(ranks, 47, 16)
    for column, p_value in zip(ranks.T, found, strict=True):
        counts = np.bincount(column.numpy() // 3, minlength=16)
        assert float(p_value) == pytest.approx(stats.chisquare(counts).pvalue, rel=1e-9)


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_wrong_widths_are_seen(width):
    truth = torch.randn(P, generator=rng())
    draws = width * torch.randn(2, 50, P, generator=rng(1))
    idata = inference_data.build({"u": draws.numpy()}, {}, {})
    assert calibration(idata, {"u": truth}).worst < FAIL
    right = inference_data.build({"u": (draws / width).numpy()}, {}, {})
    assert calibration(right, {"u": truth}).worst > PASS
    found = interval_coverage(draws.flatten(0, 1), truth)
    assert abs(found.share - found.expected) > 4 * found.standard_error


def test_refusals():
    idata = inference_data.build({"u": np.zeros((2, 10, 3))}, {}, {})
    truth = torch.zeros(3)
    for call, message in (
        (lambda: calibration(idata, {"v": truth}), r"truth: expected sites .*\['u'\]; got 'v'"),
        (lambda: calibration(idata, {"u": truth[:2]}), r"truth: expected shape \(3,\)"),
        (lambda: calibration(idata, {"u": truth}, num_bins=40), "num_bins: expected at most 21"),
        (lambda: uniformity(torch.zeros(5), 10, 3), "num_bins: expected a divisor of .* 11; got 3"),
        (
            lambda: interval_coverage(torch.zeros(5, 3), truth),
            r"level: expected one that 5 draws .*takes 19",
        ),
        (lambda: interval_coverage(torch.zeros(50, 3), truth[0]), "truth: expected shape"),
        (lambda: interval_coverage(torch.zeros(50, 3), truth, 1.5), "level: expected a number in"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
