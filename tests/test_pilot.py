"""Automatic global moves: on where they pay, within their cost, off with a word where not."""

import re
import warnings

import numpy as np
import pytest
import torch
from helpers import linear_gaussian, normal, quiet_sample, stats_of
from test_modes_end_to_end import far_from_the_base, many_dimensions, ring
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc import Reference
from pyro_gebm.mcmc.free_jumps import hands_at_once
from pyro_gebm.sampling.pilot import BOOKKEEPING, FREE_MOVE
from pyro_gebm.sampling.price import CPU, price_of
from pyro_gebm.sampling.target import gebm_target, potential_target

SMALL = {"num_chains": 32, "num_samples": 100, "warmup_steps": 100}


def told(model, **settings):
    """The result and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        idata = pg.sample(model, progress=False, **{"seed": 0, **SMALL, **settings})
    return idata, [str(warning.message) for warning in caught]


def mentions(messages, pattern):
    return any(re.search(pattern, message) for message in messages)


def test_on_where_modes_are_within_reach():
    made = ring()
    idata, messages = told(made.gebm, initial_params=made.start(32))
    assert (np.asarray(idata.attrs["global_moves"]) >= 1).all()
    assert made.summary(idata).missing == ()
    assert np.nanmean(stats_of(idata, "global_acceptance_rate")) > 0.01
    assert not mentions(messages, "global moves are off|miss mass")


def test_off_where_base_and_model_hardly_overlap():
    made = far_from_the_base()
    idata, messages = told(made.gebm, initial_params=made.start(32))
    assert "global_moves" not in idata.attrs
    assert mentions(messages, 'global moves are off.*tempering="auto"')


def test_tempering_takes_their_place():
    idata, messages = told(ring().gebm, tempering=3)
    assert "global_moves" not in idata.attrs and "tempering" in idata.attrs
    assert not mentions(messages, "global moves")


class Rows:
    """Counts the rows that a module sees, with and without a gradient."""

    def __init__(self, module):
        self.gradient = self.forward = 0
        module.register_forward_hook(self.count)

    def count(self, module, args, output):
        if args[0].requires_grad:
            self.gradient += len(args[0])
        else:
            self.forward += len(args[0])


@pytest.mark.parametrize("make", [ring, many_dimensions, linear_gaussian])
@pytest.mark.parametrize("kernel", ["NUTS", "HMC", "ChEES", "MALA"])
def test_their_cost_is_capped(make, kernel):
    made = make()
    gebm = getattr(made, "gebm", made)
    settings = {"kernel": kernel, "seed": 0, **SMALL}
    first = quiet_sample(gebm, **settings)
    n, every = first.attrs["global_moves"]
    rows = Rows(gebm.energy)
    # A resumed run has no pilot and no warm-up.
    more = quiet_sample(gebm, resume=first, **settings)
    tried = ~np.isnan(stats_of(more, "global_acceptance_rate"))
    assert rows.forward >= n * tried.sum() > 0
    price = price_of(gebm_target(gebm, 1.0), gebm.base.latent_prior.sample(64))
    chains, free = SMALL["num_chains"], kernel == "NUTS"
    step = price.gradient(chains) + free * BOOKKEEPING
    if free:
        hands = hands_at_once(n, gebm.latent_dim)
        move = chains * (price.proposals(hands * n) + price.gradient(hands)) / hands + FREE_MOVE
    else:
        move = price.proposals(chains * n) + step
    # A fifth or half of the whole, up to what steps differ from those of warm-up.
    local = every * (stats_of(more, "n_steps").mean() - 1 / every) * step
    # The pilot's estimate of the acceptance, from 32 chains, decides between the two.
    share = 1 / 2 if np.nanmean(stats_of(more, "global_acceptance_rate")) > 0.2 else 1 / 5
    assert move / (move + local) < 1.4 * share


def test_the_price_of_a_potential_is_counted():
    layer = nn.Linear(30, 500)
    draws = torch.randn(100, 30)
    reference = Reference(lambda n: torch.randn(n, 30), normal)
    target = potential_target(lambda z: layer(z).square().sum(-1), 1.0)
    price = price_of(target._replace(reference=reference), draws)
    # A product and a sum for each weight; the layer, its squares and their sum are written.
    per_row = 2 * 30 * 500 / CPU.flops + 1001 / CPU.elements
    assert per_row <= price.potential.per_row < 1.2 * per_row
    assert 3 * CPU.per_operation <= price.potential.launch < 12 * CPU.per_operation
    # Normals, their squares and sums.
    assert 61 / CPU.elements <= price.proposal.per_row < 130 / CPU.elements


@pytest.mark.parametrize("kernel", ["Langevin", "Kinetic", "IMH"])
def test_off_for_kernels_that_are_looked_at_for_themselves(kernel):
    idata, messages = told(ring().gebm, kernel=kernel)
    assert "global_moves" not in idata.attrs
    assert not mentions(messages, "global moves are off")


def test_off_without_a_base():
    idata, _ = told(normal, initial_params=torch.zeros(32, 2))
    assert "global_moves" not in idata.attrs


def test_missed_modes_are_told():
    made = ring()
    _, messages = told(made.gebm, initial_params=made.start(32), global_moves=None)
    assert mentions(messages, "miss mass.*global_moves or tempering")


@pytest.mark.parametrize("seed", range(5))
def test_no_false_alarm(seed):
    _, messages = told(linear_gaussian(), seed=seed, num_chains=16, global_moves=None)
    assert not mentions(messages, "miss mass")


def test_moves_that_are_asked_for_are_taken():
    asked = pg.GlobalMoves(num_proposals=7, every=2)
    idata, _ = told(ring().gebm, global_moves=asked)
    assert list(idata.attrs["global_moves"]) == [7, 2]
    idata, _ = told(ring().gebm, global_moves=None)
    assert "global_moves" not in idata.attrs


def test_the_pilot_leaves_seeds_alone():
    gebm, before = ring().gebm, torch.get_rng_state()
    one, other = (told(gebm)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(one["posterior"]["z"].values, other["posterior"]["z"].values)
