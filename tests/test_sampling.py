"""``sample``: what comes back, from which seed, and that the model is left as it was."""

import numpy as np
import pytest
import torch
from helpers import (
    Counting,
    draws_of,
    gumbel,
    normal,
    quiet_sample,
    rng,
    small_gebm,
    stat_names,
    stats_of,
    wide_normal,
)
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc import KERNELS

SMALL = {"num_chains": 4, "num_samples": 6, "warmup_steps": 10}

COMMON_STATS = {"acceptance_rate", "diverging", "lp", "n_steps", "step_size"}
ENERGIES = {"energy", "energy_error"}
EXTRA_STATS = {
    "NUTS": ENERGIES | {"tree_depth", "max_energy_error", "reached_max_treedepth"},
    "HMC": ENERGIES | {"int_time"},
    "ChEES": ENERGIES | {"int_time"},
    "IMH": set(),
}


def same_draws(one, other):
    return np.array_equal(draws_of(one), draws_of(other))


@pytest.mark.parametrize("name", KERNELS)
def test_groups_names_and_shapes(name):
    idata = quiet_sample(small_gebm(), kernel=name, global_moves=None, **SMALL)
    assert draws_of(idata).shape == (4, 6, 2)
    assert {str(v) for v in idata["posterior"].data_vars} == {"z"}
    assert stat_names(idata) == COMMON_STATS | EXTRA_STATS.get(name, ENERGIES)
    assert all(stats_of(idata, stat).shape == (4, 6) for stat in stat_names(idata))
    assert stats_of(idata, "diverging").dtype == bool
    assert stats_of(idata, "n_steps").dtype == np.int64
    assert idata.attrs["kernel"] == name


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("auto", "HMC"),
        ("nuts", "NUTS"),
        ("chees", "ChEES"),
        ("LANGEVIN", "Langevin"),
        (pg.MALA(), "MALA"),
    ],
)
def test_kernels_by_any_name(kernel, name):
    assert quiet_sample(small_gebm(), kernel=kernel, **SMALL).attrs["kernel"] == name


@pytest.mark.parametrize(("chains", "name"), [(15, "HMC"), (16, "ChEES")])
def test_auto_takes_chees_for_many_chains(chains, name):
    settings = {"num_chains": chains, "num_samples": 2, "warmup_steps": 2}
    assert quiet_sample(small_gebm(), **settings).attrs["kernel"] == name


def test_kernel_objects_keep_their_settings():
    settings = {"global_moves": None, **SMALL}
    idata = quiet_sample(small_gebm(), kernel=pg.NUTS(max_tree_depth=1), **settings)
    assert (stats_of(idata, "n_steps") == 1).all()
    fixed = pg.MALA(step_size=0.25, adapt_step_size=False, adapt_mass_matrix=False)
    idata = quiet_sample(small_gebm(), kernel=fixed, **SMALL)
    assert (stats_of(idata, "step_size") == 0.25).all()


def test_attributes():
    idata = quiet_sample(small_gebm(), kernel="MALA", beta=2, thinning=3, seed=11, **SMALL)
    expected = {
        "beta": 2.0,
        "seed": 11,
        "thinning": 3,
        "tuning_steps": 10,
        "num_chains": 4,
        "interrupted": 0,
        "inference_library": "pyro_gebm",
        "inference_library_version": pg.__version__,
    }
    for attributes in (idata.attrs, idata["posterior"].attrs):
        assert expected.items() <= attributes.items()
        assert attributes["sampling_time"] > 0
        assert attributes["created_at"]
        assert len(attributes["inverse_mass_matrix"]) == 2
        assert attributes["batch_steps"] == stats_of(idata, "n_steps").max(0).sum()
    # netCDF holds nothing else.
    assert all(isinstance(v, str | int | float | np.ndarray) for v in idata.attrs.values())


@pytest.mark.parametrize("name", ["HMC", "NUTS"])
def test_warmup_gradients_are_reported(name):
    potential = Counting(normal)
    start = torch.randn(4, 2)
    idata = quiet_sample(potential, initial_params=start, kernel=name, **SMALL)
    spent = idata.attrs["warmup_gradient_evaluations"] + idata.attrs["batch_steps"]
    assert potential.calls == 2 + spent  # two for the start: its check, and the first state
    steps = stats_of(idata, "n_steps")
    # NUTS runs freely: the batch works until the slowest chain is done.
    wanted = steps.sum(1).max() if name == "NUTS" else steps.max(0).sum()
    assert idata.attrs["batch_steps"] == wanted


def test_trajectory_length_is_reported():
    idata = quiet_sample(small_gebm(), kernel="ChEES", **SMALL)
    longest = stats_of(idata, "int_time").max() - stats_of(idata, "step_size").max()
    assert 0 < longest <= idata.attrs["trajectory_length"]
    assert "trajectory_length" not in quiet_sample(small_gebm(), kernel="HMC", **SMALL).attrs


@pytest.mark.parametrize(("chains", "steps"), [(4, 500), (25, 200), (64, 125), (400, 100)])
def test_default_warmup_shrinks_with_the_chains(chains, steps):
    idata = quiet_sample(small_gebm(), kernel="MALA", num_chains=chains, num_samples=2)
    assert idata.attrs["tuning_steps"] == steps


@pytest.mark.parametrize("kernel", KERNELS)
def test_same_seed_same_draws_and_global_state_untouched(kernel):
    gebm = small_gebm()
    before = torch.get_rng_state()
    once = quiet_sample(gebm, kernel=kernel, seed=5, **SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(7)
    again = quiet_sample(gebm, kernel=kernel, seed=5, **SMALL)
    other = quiet_sample(gebm, kernel=kernel, seed=6, **SMALL)
    assert same_draws(once, again)
    assert not same_draws(once, other)


def test_without_seed_the_global_state_decides():
    gebm = small_gebm()
    torch.manual_seed(3)
    first, second = (quiet_sample(gebm, seed=None, **SMALL) for _ in range(2))
    torch.manual_seed(3)
    again = quiet_sample(gebm, seed=None, **SMALL)
    assert same_draws(first, again)
    assert not same_draws(first, second)
    # The seed used is reported, and gives the same draws.
    assert same_draws(first, quiet_sample(gebm, seed=first.attrs["seed"], **SMALL))


def test_first_momenta_are_not_the_starts():
    # At β = 0 the starts are exact draws: one transition without warm-up leaves N(0, I) as it
    # is, unless starts and momenta come from the same stream.
    fixed = pg.MALA(step_size=1.0, adapt_step_size=False)
    settings = {"num_chains": 4000, "num_samples": 1, "warmup_steps": 0}
    settings["global_moves"] = None
    z = draws_of(quiet_sample(small_gebm(), kernel=fixed, beta=0.0, **settings))[:, 0]
    assert min(stats.kstest(column, stats.norm.cdf).pvalue for column in z.T) > 1e-4


def with_batch_norm():
    gebm = small_gebm()
    generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    gebm = pg.GEBM(pg.Base(generator, gebm.base.latent_prior), gebm.energy)
    gebm.base.sample(500)
    gebm.energy.eval()
    gebm.energy[0].weight.requires_grad_(False)
    return gebm


def test_model_is_left_as_it_was():
    gebm = with_batch_norm()
    modes = [module.training for module in gebm.modules()]
    needs = [parameter.requires_grad for parameter in gebm.parameters()]
    tensors = {name: tensor.clone() for name, tensor in gebm.state_dict().items()}
    quiet_sample(gebm, include_x=True, **SMALL)
    pg.generate(gebm, 5, num_chains=2, warmup_steps=5, progress=False, seed=0)
    assert [module.training for module in gebm.modules()] == modes
    assert [parameter.requires_grad for parameter in gebm.parameters()] == needs
    assert all(parameter.grad is None for parameter in gebm.parameters())
    assert all(torch.equal(gebm.state_dict()[name], old) for name, old in tensors.items())


@pytest.mark.parametrize("make", [small_gebm, with_batch_norm])
def test_include_x_is_the_generator_at_z(make):
    gebm = make()
    idata = quiet_sample(gebm, include_x=True, **SMALL)
    with gebm.frozen():
        expected = gebm.base(torch.as_tensor(draws_of(idata)))
    np.testing.assert_allclose(draws_of(idata, "x"), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_lp_is_minus_the_potential():
    gebm = small_gebm()
    idata = quiet_sample(gebm, beta=2.0, **SMALL)
    with torch.no_grad():
        expected = -gebm.potential_fn(torch.as_tensor(draws_of(idata)), 2.0)
    np.testing.assert_allclose(stats_of(idata, "lp"), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_thinning_keeps_every_kth_transition(name):
    start = torch.randn(4, 2, generator=rng())
    # Steps so long that some transitions diverge or are rejected.
    kernel = KERNELS[name](step_size=1.2, adapt_step_size=False).bind(wide_normal(start))

    def walled(z):
        return torch.where(z[:, 0] < -1.5, torch.nan, gumbel(z))

    runs = [
        quiet_sample(
            walled,
            initial_params=start.clamp(min=-1),
            kernel=kernel,
            num_chains=4,
            num_samples=30 // thinning,
            warmup_steps=5,
            thinning=thinning,
        )
        for thinning in (1, 3)
    ]
    every, third = runs
    assert np.array_equal(draws_of(every)[:, 2::3], draws_of(third))
    for stat in {"lp"} | (ENERGIES & stat_names(every)):
        # energy_error is NaN at a non-finite proposal
        assert np.array_equal(stats_of(every, stat)[:, 2::3], stats_of(third, stat), equal_nan=True)
    grouped = {s: stats_of(every, s).reshape(4, 10, 3) for s in COMMON_STATS}
    assert np.array_equal(grouped["n_steps"].sum(-1), stats_of(third, "n_steps"))
    assert np.array_equal(grouped["diverging"].any(-1), stats_of(third, "diverging"))
    np.testing.assert_allclose(
        grouped["acceptance_rate"].mean(-1), stats_of(third, "acceptance_rate"), rtol=1e-5
    )
    assert 0 < grouped["diverging"].mean() < 1


def test_precision_is_the_models():
    assert draws_of(quiet_sample(small_gebm(), **SMALL)).dtype == np.float32
    double = small_gebm().double()
    idata = quiet_sample(double, include_x=True, **SMALL)
    assert draws_of(idata).dtype == draws_of(idata, "x").dtype == np.float64
    # Starts in another precision are converted.
    start = torch.zeros(4, 2, dtype=torch.float32)
    assert draws_of(quiet_sample(double, initial_params=start, **SMALL)).dtype == np.float64


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: {"z": z}])
def test_chains_start_where_they_are_told(wrap):
    start = torch.randn(4, 2, generator=rng())
    tiny = pg.MALA(step_size=1e-6, adapt_step_size=False)
    settings = {"num_chains": 4, "num_samples": 1, "warmup_steps": 0, "global_moves": None}
    z = draws_of(quiet_sample(small_gebm(), kernel=tiny, initial_params=wrap(start), **settings))
    np.testing.assert_allclose(z[:, 0], start.numpy(), atol=1e-4)
