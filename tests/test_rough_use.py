"""Use that a newcomer may try: it works, or is refused in words."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import draws_of, normal, quiet_sample, small_gebm, standard_scores
from torch import nn

import pyro_gebm as pg

START = torch.zeros(32, 2)
SMALL = {"num_chains": 32, "num_samples": 200, "warmup_steps": 100}


def shifted(z):
    return 0.5 * (z - 3).square().sum(-1)


@pytest.mark.parametrize("kernel", ["HMC", "NUTS", "Kinetic"])
def test_gradients_are_there_in_inference_mode(kernel):
    settings = {"kernel": kernel, "seed": 1, **SMALL}
    plain, gebm = draws_of(quiet_sample(shifted, initial_params=START, **settings)), small_gebm()
    with torch.inference_mode():
        idata = quiet_sample(shifted, initial_params=torch.zeros(32, 2), **settings)
        latents = draws_of(quiet_sample(gebm, num_samples=3, num_chains=2, kernel=kernel))
    assert np.array_equal(draws_of(idata), plain) and np.isfinite(latents).all()


def test_a_potential_without_gradient_is_told_of():
    with pytest.warns(UserWarning, match="gradient is zero at all starts, its values differ"):
        start = torch.randn(8, 2)
        few = {"num_samples": 4, "warmup_steps": 3, "num_chains": 8, "progress": False}
        pg.sample(torch.no_grad()(normal), initial_params=start, kernel="MALA", **few)


class Wide(nn.Module):
    def forward(self, x):
        return x.double().square().sum(-1)


@pytest.mark.parametrize(
    ("potential_fn", "told"),
    [
        (lambda z: normal(z).double(), "expected a potential of torch.float32.*got torch.float64"),
        (lambda z: normal(z).half(), "got torch.float16"),
        (lambda z: normal(z).long(), "got torch.int64"),
        (lambda z: normal(z) > 0, "got torch.bool"),
        (lambda z: None, "got NoneType"),
        (lambda z: [float(u) for u in normal(z)], "got list"),
        (lambda z: normal(z).detach().numpy(), "got float32"),
    ],
)
@pytest.mark.parametrize("kernel", ["HMC", "NUTS"])
def test_potentials_of_another_type_are_refused(potential_fn, told, kernel):
    with pytest.raises(ValueError, match=f"model: .*{told}"):
        quiet_sample(potential_fn, initial_params=START, kernel=kernel, **SMALL)


def test_energies_of_another_type_are_refused():
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2)), Wide())
    with pytest.raises(ValueError, match=r"got torch\.float64; convert"):
        quiet_sample(gebm, kernel="NUTS", **SMALL)


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (START.half(), "expected float32 or float64; got torch.float16"),
        (START.bfloat16(), "expected float32 or float64; got torch.bfloat16"),
        (START.long(), "expected float32 or float64; got torch.int64"),
        (torch.zeros(32, 0), r"expected a dimension or more; got \(32, 0\)"),
    ],
)
def test_starts_of_another_type_are_refused(start, told):
    with pytest.raises(ValueError, match=f"initial_params: {told}"):
        quiet_sample(normal, initial_params=start, **SMALL)


def test_seeds_of_numpy_are_seeds():
    settings = {"kernel": "HMC", "num_samples": 5, "warmup_steps": 3, "num_chains": 4}
    one, other = (quiet_sample(small_gebm(), seed=s, **settings) for s in (3, np.int64(3)))
    assert np.array_equal(draws_of(one), draws_of(other))
    assert torch.equal(*(pg.generate(small_gebm(), 3, seed=s) for s in (3, np.int64(3))))
    with pytest.raises(ValueError, match=r"seed: expected a whole number below 2\*\*63"):
        quiet_sample(small_gebm(), seed=2**63, **settings)


def test_large_seeds_are_seeds():
    z = draws_of(quiet_sample(normal, initial_params=START, seed=2**63 - 1, kernel="HMC", **SMALL))
    assert (np.abs(standard_scores(z, 0.0)) < 4.5).all()


class Wall(nn.Module):
    """Half of the plane is forbidden."""

    def forward(self, x):
        return torch.where(x[:, 0] > 0, 0.5 * x.square().sum(-1), torch.inf)


def told(model, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pg.sample(model, progress=False, seed=1, **settings)
    return " ".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("stored", [False, True])
def test_walls_and_trajectories_that_are_cut_are_told_of(stored, tmp_path):
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2)), Wall())
    settings = {"num_chains": 16, "num_samples": 10, "warmup_steps": 0, "thinning": 2}
    settings |= {"store": tmp_path / "run.nc"} if stored else {}
    fixed = {"step_size": 0.01, "max_num_steps": 50, "trajectory_length": 2.0}
    short = told(gebm, kernel=pg.HMC(**fixed), **settings)
    assert "most of them to where the potential is not finite: behind a wall" in short
    assert "100.0% of the trajectories were cut at max_num_steps = 50" in short
    assert "cut at" not in told(gebm, kernel="NUTS", **settings)


def test_steep_places_are_no_walls():
    def steep(z):
        return 50 * z[:, 0].square() + 5e3 * (z[:, 1] - z[:, 0].square()).square()

    kernel = pg.HMC(step_size=0.05, adapt_step_size=False, adapt_mass_matrix=False)
    start = torch.zeros(16, 2)
    text = told(steep, kernel=kernel, initial_params=start, num_chains=16, num_samples=100)
    assert "diverged: the draws may avoid narrow regions; raise target" in text


@pytest.mark.parametrize("stored", [False, True])
def test_draws_beyond_float16_are_told_of(stored, tmp_path):
    def far(z):
        return 0.5 * (z - 1e5).square().sum(-1)

    settings = {"store": tmp_path / "run.nc"} if stored else {}
    settings |= {"num_chains": 8, "num_samples": 50, "storage_dtype": "float16"}
    text = told(far, kernel="HMC", initial_params=torch.full((8, 2), 1e5), **settings)
    assert "draws of z were stored as inf" in text
    assert "never moved" not in text and "R-hat" not in text


def test_four_draws_of_one_chain_tell_no_rhat():
    settings = {"num_chains": 1, "initial_params": torch.zeros(1, 2), "kernel": "HMC"}
    assert "R-hat" not in told(normal, num_samples=7, **settings)
    assert "nan" not in (text := told(normal, num_samples=8, **settings)) and "R-hat" in text


def matrices():
    pyro.sample("w", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
    pyro.sample("corr", dist.LKJCholesky(3, 1.0))


def in_a_plate(gebm):
    def model():
        with pyro.plate("k", 5):
            pyro.sample("y", dist.Normal(gebm.model(), 0.5).to_event(1), obs=torch.zeros(5, 3))

    return model


@pytest.mark.parametrize("chains", [1, 4, 64])
def test_matrix_sites_are_judged(chains, tmp_path):
    few = {"num_chains": chains, "num_samples": 20, "warmup_steps": 10}
    for model in (matrices, in_a_plate(small_gebm())):
        plain, stored = told(model, **few), told(model, store=tmp_path / f"{chains}.nc", **few)
        assert plain == stored and ", " in plain.split("R-hat")[1].split("]")[0]


def test_matrix_sites_through_pyros_front_door():
    few = {"num_samples": 20, "warmup_steps": 10, "num_chains": 2, "disable_progbar": True}
    mcmc = pg.MCMC("NUTS", matrices, **few)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mcmc.run()
    assert mcmc.get_samples()["w"].shape == (40, 3, 4)
