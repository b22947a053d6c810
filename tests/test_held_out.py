"""Held-out figures against closed forms, and their standard errors against repetition."""

import math

import numpy as np
import pytest
import torch
from helpers import Quadratic, rng, same, small_gebm, snapshot
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.metrics.held_out import held_out_bound
from pyro_gebm.objectives import donsker_varadhan, kale_bound

DIM, MEAN, PRECISION, SHIFT = 2, 0.5, 1.5, 0.3


def gaussian_problem(offset=0.2):
    """Base N(0, I), E = p|x - m|²/2, c = log Z + offset, and the figures for data N(s, I)."""
    energy = Quadratic([MEAN] * DIM, [PRECISION] * DIM)
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(DIM)), energy).double()
    log_z = -0.5 * DIM * (math.log1p(PRECISION) + PRECISION * MEAN**2 / (1 + PRECISION))
    with torch.no_grad():
        gebm.log_partition.fill_(log_z + offset)
    kale = -0.5 * PRECISION * DIM * (1 + (SHIFT - MEAN) ** 2) - log_z
    gap = math.exp(-offset) - 1 + offset
    return gebm, {
        "bound": kale - gap,
        "kale": kale,
        "gap": gap,
        "log_z": log_z,
        "log_partition_error": offset,
    }


def data(count, seed):
    return SHIFT + torch.randn(count, DIM, generator=rng(seed), dtype=torch.float64)


def repeated(offset, repeats=200, size=400, latents=600):
    gebm, truth = gaussian_problem(offset)
    found = [
        held_out_bound(gebm, data(size, 1000 + i), latents, generator=rng(i))
        for i in range(repeats)
    ]
    return found, truth


@pytest.mark.parametrize("offset", [0.2, -0.5])
def test_figures_and_their_errors(offset):
    repeats = 200
    found, truth = repeated(offset, repeats)
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], repeats) / repeats
    for name, exact in truth.items():
        estimates = [getattr(f, name) for f in found]
        scores = np.array([(e.value - exact) / e.standard_error for e in estimates])
        assert low < np.square(scores).mean() < high, name
        # The bias of a logarithm is half its variance, here well under the error of one run.
        assert abs(scores.mean()) < 4 / math.sqrt(repeats) + 0.05, name


def test_an_exact_constant_leaves_no_gap():
    gebm, _ = gaussian_problem()
    x = data(50, 0)
    log_z = held_out_bound(gebm, x, 500, generator=rng()).log_z.value
    with torch.no_grad():
        gebm.log_partition.fill_(log_z)
    found = held_out_bound(gebm, x, 500, generator=rng())
    assert found.gap.value == pytest.approx(0, abs=1e-12)
    assert found.gap.standard_error == pytest.approx(0, abs=1e-12)
    assert found.bound.value == pytest.approx(found.kale.value, abs=1e-12)


def test_figures_are_those_of_the_objectives():
    gebm = small_gebm()
    with torch.no_grad():
        gebm.log_partition.fill_(-0.3)
    x = torch.randn(1500, 3, generator=rng())  # more than one chunk
    found = held_out_bound(gebm, x, 1300, generator=rng(1))
    seed = int(torch.randint(2**63 - 1, (), generator=rng(1)))
    torch.manual_seed(seed)
    z = gebm.base.latent_prior.sample(1300)
    with torch.no_grad():
        real, base = gebm.evaluate_energy(x).double(), gebm.latent_energy(z).double()
    c = gebm.log_partition.double().item()
    assert found.bound.value == pytest.approx(float(kale_bound(real, base, c)), abs=1e-6)
    assert found.kale.value == pytest.approx(float(donsker_varadhan(real, base)), abs=1e-6)
    assert found.gap.value == pytest.approx(found.kale.value - found.bound.value, abs=1e-12)
    assert found.log_partition_error.value == pytest.approx(c - found.log_z.value)
    assert 0 < found.importance_ess <= 1


def test_a_run_leaves_everything_as_it_was():
    gebm = small_gebm().train()
    gebm.energy.insert(0, nn.Dropout(0.5))
    before, state = snapshot(gebm), torch.get_rng_state()
    x = torch.randn(20, 3, generator=rng())
    one = held_out_bound(gebm, x, 100, generator=rng(2))
    assert one == held_out_bound(gebm, x, 100, generator=rng(2))
    assert torch.equal(torch.get_rng_state(), state) and gebm.training
    assert same(before, gebm.state_dict())
    assert one == held_out_bound(gebm.eval(), x, 100, generator=rng(2))  # dropout is off in both


def test_too_few_effective_draws_are_named():
    energy = Quadratic([3.0] * 10, [50.0] * 10)
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(10)), energy).double()
    with pytest.warns(UserWarning, match="500 weighted draws of the base are worth .*too low"):
        found = held_out_bound(gebm, torch.full((5, 10), 3.0), 500, generator=rng())
    # exp(-c) of an untrained c is nowhere near: figures are finite all the same, or say inf.
    assert found.importance_ess < 0.02 and math.isfinite(found.kale.value)


@pytest.mark.parametrize(
    ("x", "latents", "message"),
    [
        (torch.zeros(1, DIM), 10, r"x: expected at least two data .*\(1, 2\)"),
        (torch.zeros(3, DIM), 1, "num_latents: .*>= 2; got 1"),
        (torch.full((3, DIM), math.nan), 10, "energy of x: expected finite"),
    ],
)
def test_refusals_say_what_came(x, latents, message):
    gebm, _ = gaussian_problem()
    with pytest.raises(ValueError, match=message):
        held_out_bound(gebm, x, latents, generator=rng())
