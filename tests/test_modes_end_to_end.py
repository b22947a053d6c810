"""Separated modes of unequal mass, from starts in a single one, with the defaults of ``sample``.

Every target is a GEBM with the identity as generator: a mixture of normals, reweighted from
N(0, s² I), whose masses are known.
"""

import math
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import draws_of, quiet_sample, rng
from torch import nn

import pyro_gebm as pg
from pyro_gebm.inference_data import worst_rhat
from pyro_gebm.metrics import label_modes, mode_summary


class Mixture(nn.Module):
    """E(x) = -log Σ w_k N(x; m_k, σ² I) - |x|²/2s², up to a constant."""

    def __init__(self, masses, means, scale, spread):
        super().__init__()
        self.scale, self.spread = scale, spread
        self.register_buffer("masses", torch.as_tensor(masses, dtype=torch.float32))
        self.register_buffer("means", torch.as_tensor(means, dtype=torch.float32))

    def forward(self, x):
        distance = (x[..., None, :] - self.means).square().sum(-1) / self.scale**2
        log_density = (self.masses.log() - 0.5 * distance).logsumexp(-1)
        return -log_density - 0.5 * x.square().sum(-1) / self.spread**2


class Problem(NamedTuple):
    gebm: pg.GEBM
    masses: np.ndarray
    """Of what is nearest to each mean: modes 5 scales apart reach a little into each other's."""
    means: np.ndarray

    def start(self, chains, mode=0):
        """In one mode, by default the lightest."""
        noise = torch.randn(chains, self.gebm.latent_dim, generator=rng(17))
        return self.gebm.energy.means[mode] + self.gebm.energy.scale * noise

    def summary(self, idata):
        labels = label_modes(draws_of(idata), self.means)
        return mode_summary(labels, len(self.means), truth=self.masses)


def problem(masses, means, scale, spread):
    masses = np.asarray(masses, dtype=float) / np.sum(masses)
    loc = torch.zeros(means.shape[1])
    prior = pg.LatentPrior(dist.Normal(loc, torch.full_like(loc, spread)).to_event(1))
    gebm = pg.GEBM(pg.Base(nn.Identity(), prior), Mixture(masses, means, scale, spread))
    return Problem(gebm, shares(masses, means, scale), means)


def shares(masses, means, scale, draws=400_000):
    """Of exact draws that are nearest to each mean."""
    random = np.random.default_rng(0)
    modes = random.choice(len(masses), draws, p=masses)
    x = means[modes] + scale * random.standard_normal((draws, means.shape[1]))
    return np.bincount(label_modes(x[None], means)[0], minlength=len(means)) / draws


def ring():
    """Eight modes on a ring of radius 4, scale 0.3, masses 1 : 2 : ... : 8."""
    angles = np.arange(8) * math.pi / 4
    means = 4 * np.stack([np.cos(angles), np.sin(angles)], -1)
    return problem(np.arange(1, 9), means, 0.3, 3.0)


def grid():
    """25 modes on a grid of spacing 2, scale 0.2, masses 1 : 2 : 3 in turn."""
    axis = np.arange(-4.0, 5, 2)
    means = np.stack(np.meshgrid(axis, axis), -1).reshape(25, 2)
    return problem(1 + np.arange(25) % 3, means, 0.2, 3.0)


def many_dimensions():
    """Eight modes in 16 dimensions, 5 scales apart in orthogonal directions; KL about 3 nats."""
    directions, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((16, 8)))
    return problem(np.arange(1, 9), 2.5 * directions.T, 0.7, 1.0)


def far_from_the_base():
    """Three modes in 64 dimensions, with KL(model, base) = 18 nats."""
    masses, scale, dim = np.array([0.5, 0.3, 0.2]), 0.75, 64
    # KL = Σ w (|m|²/2 + D (σ² - 1 - log σ²)/2 + log w), the modes apart.
    shrink = 0.5 * dim * (scale**2 - 1 - math.log(scale**2))
    radius = math.sqrt(2 * (18 - shrink - (masses * np.log(masses)).sum()))
    directions, _ = np.linalg.qr(np.random.default_rng(4).standard_normal((dim, 3)))
    return problem(masses, radius * directions.T, scale, 1.0)


@pytest.mark.parametrize("make", [ring, grid, many_dimensions])
def test_defaults_find_every_mode(make):
    made = make()
    idata = quiet_sample(made.gebm, initial_params=made.start(64), num_chains=64)
    found = made.summary(idata)
    assert found.missing == ()
    assert worst_rhat(idata) < 1.01
    # With 64,000 draws the Monte-Carlo error decides how well a mass of a few per cent is known:
    # the test asks that this error be small, and that there be no other.
    assert (np.abs(found.occupancy - made.masses) < 4 * found.mcse).all()
    assert (found.mcse / made.masses).max() < 0.1
    assert found.total_variation <= 0.02


def test_tempering_finds_modes_far_from_the_base():
    made = far_from_the_base()
    idata = quiet_sample(
        made.gebm, initial_params=made.start(64, mode=2), tempering="auto", num_samples=1500
    )
    # Masses have Monte-Carlo errors of about 0.009, 0.008 and 0.006.
    found = made.summary(idata)
    assert found.total_variation <= 0.02 and found.missing == ()
    assert (np.abs(found.occupancy - made.masses) < 4 * found.mcse).all()


def test_without_help_a_chain_stays_in_its_mode():
    # The measure itself: what global moves and tempering are for.
    # Without warm-up, whose first steps are long and may throw a chain across.
    made = ring()
    idata = quiet_sample(
        made.gebm,
        kernel=pg.HMC(step_size=0.1),
        initial_params=made.start(16),
        num_chains=16,
        num_samples=50,
        warmup_steps=0,
        global_moves=None,
    )
    assert made.summary(idata).total_variation > 0.9
