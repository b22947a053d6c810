"""Pyro's own kernels inside ``sample``: the same groups, names and meanings."""

import numpy as np
import pyro.infer
import pytest
import torch
from helpers import (
    draws_of,
    gumbel,
    linear_gaussian,
    linear_gaussian_posterior,
    quiet_sample,
    rng,
    small_gebm,
    stat_names,
    stats_of,
)

import pyro_gebm as pg

HMC_STATS = {
    "acceptance_rate",
    "diverging",
    "energy",
    "energy_error",
    "lp",
    "n_steps",
    "step_size",
}
TREE_STATS = {"max_energy_error", "reached_max_treedepth", "tree_depth"}
SMALL = {"num_chains": 2, "num_samples": 8, "warmup_steps": 6}


def nothing(params):
    raise AssertionError("the potential of the object given is replaced")


KERNELS = {
    "NUTS": pyro.infer.NUTS,
    "HMC": pyro.infer.HMC,
    "NUTS object": pyro.infer.NUTS(potential_fn=nothing, max_tree_depth=3),
    "HMC object": pyro.infer.HMC(potential_fn=nothing, step_size=0.3, num_steps=4),
    "full mass": pyro.infer.NUTS(linear_gaussian().model, full_mass=True, max_tree_depth=3),
}


@pytest.mark.parametrize("name", KERNELS)
def test_same_groups_and_names(name):
    gebm = small_gebm()
    idata = quiet_sample(gebm, kernel=KERNELS[name], include_x=True, **SMALL)
    assert draws_of(idata).shape == (2, 8, 2) and draws_of(idata, "x").shape == (2, 8, 3)
    assert stat_names(idata) == HMC_STATS | (set() if "HMC" in name else TREE_STATS)
    assert idata.attrs["kernel"] == f"pyro.infer.{'HMC' if 'HMC' in name else 'NUTS'}"
    assert idata.attrs["inverse_mass_matrix"].shape == (2,)
    assert idata.attrs["warmup_gradient_evaluations"] >= 6
    with torch.no_grad():
        expected = -gebm.potential_fn(torch.as_tensor(draws_of(idata)))
    np.testing.assert_allclose(stats_of(idata, "lp"), expected.numpy(), rtol=1e-5)
    assert stats_of(idata, "diverging").dtype == bool
    assert len(np.unique(draws_of(idata)[:, -1], axis=0)) == 2  # the chains differ


@pytest.mark.parametrize("name", KERNELS)
def test_seeded_and_stateless(name):
    # An object may be used again: what one run adapted does not leak into the next.
    gebm = small_gebm()
    before = torch.get_rng_state()
    once, again = (quiet_sample(gebm, kernel=KERNELS[name], **SMALL) for _ in range(2))
    assert np.array_equal(draws_of(once), draws_of(again))
    assert np.array_equal(stats_of(once, "step_size"), stats_of(again, "step_size"))
    assert torch.equal(torch.get_rng_state(), before)


def test_objects_are_left_as_they_were():
    given = pyro.infer.HMC(potential_fn=nothing, step_size=0.3, num_steps=4)
    quiet_sample(small_gebm(), kernel=given, **SMALL)
    assert given.step_size == 0.3
    assert given.potential_fn is nothing
    assert given.inverse_mass_matrix is None or not given.inverse_mass_matrix


def test_full_mass_matrix_is_reported_by_its_diagonal():
    gebm = linear_gaussian()
    full = KERNELS["full mass"]
    settings = {"num_chains": 2, "num_samples": 4, "warmup_steps": 250}
    masses = quiet_sample(gebm, kernel=full, **settings).attrs["inverse_mass_matrix"]
    covariance = linear_gaussian_posterior(gebm)[1]
    # Of about 100 draws in Pyro's longest window, half count: √(2/50) for each of two chains.
    ratio = masses / covariance.diagonal()
    assert abs(ratio - 1).max() < 4 * (2 / 50) ** 0.5 / 2**0.5


def test_settings_of_an_object_are_used():
    fixed = pyro.infer.HMC(potential_fn=nothing, step_size=0.25, num_steps=4, adapt_step_size=False)
    idata = quiet_sample(small_gebm(), kernel=fixed, **SMALL)
    assert (stats_of(idata, "n_steps") == 4).all()
    assert (stats_of(idata, "step_size") == 0.25).all()
    shallow = quiet_sample(small_gebm(), kernel=KERNELS["NUTS object"], **SMALL)
    assert stats_of(shallow, "n_steps").max() <= 7


def test_thinning_and_acceptance():
    start = torch.zeros(2, 2, dtype=torch.float64)
    fixed = pyro.infer.HMC(potential_fn=nothing, step_size=0.8, num_steps=2, adapt_step_size=False)

    def stepped(z):
        # A step of 2,000 nats, which Pyro counts as a divergence; the second run must not
        # find those of the first, nor a chain those of another.
        return gumbel(z) + 2000.0 * (z[:, 0] > 1.5)

    every, third = (
        quiet_sample(
            stepped,
            initial_params=start,
            kernel=fixed,
            num_chains=2,
            num_samples=60 // k,
            warmup_steps=5,
            thinning=k,
        )
        for k in (1, 3)
    )
    assert np.array_equal(draws_of(every)[:, 2::3], draws_of(third))
    grouped = {s: stats_of(every, s).reshape(2, 20, 3) for s in ("n_steps", "diverging")}
    assert np.array_equal(grouped["n_steps"].sum(-1), stats_of(third, "n_steps"))
    assert np.array_equal(grouped["diverging"].any(-1), stats_of(third, "diverging"))
    accept = stats_of(every, "acceptance_rate")
    assert accept.min() > -1e-9 and accept.max() < 1 + 1e-9
    np.testing.assert_allclose(
        accept.reshape(2, 20, 3).mean(-1), stats_of(third, "acceptance_rate"), atol=1e-9
    )
    # A divergence has acceptance exp(-2000) = 0, and the chain stays.
    diverging = stats_of(every, "diverging")
    assert 0 < diverging.mean() < 1
    assert np.abs(accept[diverging]).max() < 1e-9
    stays = (np.diff(draws_of(every), axis=1) == 0).all(-1)
    assert stays[diverging[:, 1:]].all()
    assert accept[:, 1:][~stays].min() > 0


def test_bounded_prior():
    gebm = small_gebm(pg.UniformPrior(2))
    z = draws_of(quiet_sample(gebm, kernel=pyro.infer.NUTS, **SMALL))
    assert z.min() > 0
    assert z.max() < 1


def test_start_is_used():
    still = pyro.infer.HMC(potential_fn=nothing, step_size=1e-6, num_steps=1, adapt_step_size=False)
    start = torch.randn(2, 2, generator=rng())
    idata = quiet_sample(
        small_gebm(),
        kernel=still,
        initial_params=start,
        num_chains=2,
        num_samples=1,
        warmup_steps=0,
    )
    np.testing.assert_allclose(draws_of(idata)[:, 0], start.numpy(), atol=1e-4)
