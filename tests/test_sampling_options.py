"""``generate``, and what else ``sample`` can be asked for: groups, chunks, storage, bounds."""

from collections import Counter as Multiset

import numpy as np
import pytest
import torch
from helpers import (
    draws_of,
    gumbel,
    linear_gaussian,
    quiet_sample,
    rng,
    small_gebm,
    stat_names,
    stats_of,
)
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm import inference_data

SMALL = {"num_chains": 4, "num_samples": 6, "warmup_steps": 10}


@pytest.mark.parametrize("kernel", ["HMC", "NUTS"])
def test_include_warmup(kernel):
    bare = quiet_sample(small_gebm(), kernel=kernel, **SMALL)
    idata = quiet_sample(small_gebm(), kernel=kernel, include_warmup=True, **SMALL)
    assert np.array_equal(draws_of(bare), draws_of(idata))
    assert "warmup_posterior" in idata and "warmup_posterior" not in bare
    z = inference_data.values(idata, "z", "warmup_posterior")
    names = inference_data.names(idata, "warmup_sample_stats")
    # Chains of NUTS run freely, and the slowest has made fewer transitions than the average.
    assert z.shape == (4, 10, 2) if kernel == "HMC" else 1 <= z.shape[1] <= 10
    assert set(names) == stat_names(idata) - {"step_size"}
    lp = inference_data.values(idata, "lp", "warmup_sample_stats")
    gebm = small_gebm()
    with torch.no_grad():
        expected = -gebm.potential_fn(torch.as_tensor(z))
    np.testing.assert_allclose(lp, expected.numpy(), rtol=1e-5)
    # HMC goes on where warm-up ends: its draws begin there.
    assert not np.array_equal(z[:, -1], draws_of(idata)[:, 0])


def test_include_prior():
    settings = {"num_chains": 40, "num_samples": 50, "warmup_steps": 5}
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.UniformPrior(2, -1.0, 2.0)), Slope())
    idata = quiet_sample(gebm, include_prior=True, **settings)
    prior = inference_data.values(idata, "z", "prior")
    assert prior.shape == draws_of(idata).shape
    law = stats.uniform(-1.0, 3.0)
    assert min(stats.kstest(column, law.cdf).pvalue for column in prior.reshape(-1, 2).T) > 1e-4
    bare = quiet_sample(gebm, **settings)
    assert "prior" not in bare
    assert np.array_equal(draws_of(bare), draws_of(idata))


@pytest.mark.parametrize("kernel", ["HMC", "NUTS", "ChEES"])
def test_chunks_of_an_elementwise_potential_change_nothing(kernel):
    start = torch.randn(10, 3, generator=rng(), dtype=torch.float64)
    settings = {"initial_params": start, "num_chains": 10, "num_samples": 6, "warmup_steps": 20}
    sizes = []

    def seen(z):
        sizes.append(len(z))
        return gumbel(z)

    whole = quiet_sample(gumbel, kernel=kernel, **settings)
    chunked = quiet_sample(seen, kernel=kernel, chunk_size=4, **settings)
    assert set(sizes) == {4, 2}
    assert np.array_equal(draws_of(whole), draws_of(chunked))
    for name in stat_names(whole):
        assert np.array_equal(stats_of(whole, name), stats_of(chunked, name))


def test_chunks_of_a_network_change_the_rounding_only():
    # A fixed tuning: that of a warm-up amplifies what rounding does.
    gebm = small_gebm().double()
    fixed = pg.HMC(step_size=0.3, adapt_step_size=False, adapt_mass_matrix=False)
    settings = {"kernel": fixed, "num_chains": 10, "num_samples": 10, "warmup_steps": 0}
    largest = []
    gebm.energy.register_forward_hook(lambda module, args, output: largest.append(len(output)))
    whole = quiet_sample(gebm, global_moves=None, **settings)
    assert max(largest) > 4
    largest.clear()
    chunked = quiet_sample(gebm, global_moves=None, chunk_size=4, **settings)
    assert max(largest) == 4
    np.testing.assert_allclose(draws_of(whole), draws_of(chunked), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_storage_dtype(name):
    gebm = small_gebm().double()
    exact = quiet_sample(gebm, **SMALL)
    stored = quiet_sample(gebm, storage_dtype=name, include_warmup=True, **SMALL)
    assert draws_of(stored).dtype == np.dtype(name)
    assert inference_data.values(stored, "z", "warmup_posterior").dtype == np.dtype(name)
    # What is stored is rounded; what runs is not.
    assert np.array_equal(draws_of(stored), draws_of(exact).astype(name))
    assert np.array_equal(stats_of(stored, "lp"), stats_of(exact, "lp"))


def test_global_moves_are_told():
    moves = pg.mcmc.GlobalMoves(num_proposals=8, every=3)
    idata = quiet_sample(small_gebm(), kernel="MALA", global_moves=moves, **SMALL)
    assert idata.attrs["global_moves"].tolist() == [8, 3]
    assert "global_acceptance_rate" in stat_names(idata)
    settings = {"num_chains": 16, "num_samples": 40, "warmup_steps": 10}
    rates = stats_of(
        quiet_sample(small_gebm(), global_moves=moves, **settings), "global_acceptance_rate"
    )
    tried = np.isfinite(rates).mean()
    # One in three; all chains of a kernel in step do it together, in 40 transitions.
    assert abs(tried - 1 / 3) < 4 * (2 / 9 / 40) ** 0.5
    bare = quiet_sample(small_gebm(), kernel="MALA", global_moves=None, **SMALL)
    assert "global_moves" not in bare.attrs
    assert "global_acceptance_rate" not in stat_names(bare)
    # The unadjusted kernels and potentials do without, by themselves.
    assert "global_moves" not in quiet_sample(small_gebm(), kernel="Langevin", **SMALL).attrs
    # Energy and prior of this small model are close: by themselves others would jump.
    assert "global_moves" in quiet_sample(small_gebm(), kernel="MALA", **SMALL).attrs


class Slope(nn.Module):
    """E(x) = 3 Σ x."""

    def forward(self, x):
        return 3 * x.sum(-1)


def test_bounded_prior_has_the_right_law():
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.UniformPrior(2, -1.0, 2.0)), Slope())
    idata = quiet_sample(gebm, num_chains=1000, num_samples=20, warmup_steps=100)
    z = draws_of(idata).astype(np.float64)
    assert -1 <= z.min() < -0.999 and 1 < z.max() <= 2
    # A truncated exponential: the last draws of 1,000 chains are independent.
    law = stats.truncexpon(b=9.0, loc=-1.0, scale=1 / 3)
    assert min(stats.kstest(column, law.cdf).pvalue for column in z[:, -1].T) > 1e-4
    # lp is the density in the coordinates sampled, u with z = -1 + 3 sigmoid(u).
    u01 = (z + 1) / 3
    jacobian = np.log(3 * u01 * (1 - u01)).sum(-1)
    expected = -3 * z.sum(-1) - 2 * np.log(3) + jacobian
    inner = np.abs(u01 - 0.5).max(-1) < 0.49  # float32 rounding near the walls
    np.testing.assert_allclose(stats_of(idata, "lp")[inner], expected[inner], atol=1e-3)


def test_generate_draws_the_model():
    gebm = linear_gaussian()
    settings = {"seed": 2, "num_chains": 100, "warmup_steps": 100, "progress": False}
    before = torch.get_rng_state()
    x = pg.generate(gebm, 2550, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert x.shape == (2550, 3) and not x.requires_grad
    assert torch.equal(x, pg.generate(gebm, 2550, **settings))
    assert not torch.equal(x, pg.generate(gebm, 2550, **{**settings, "seed": 3}))
    # The same latents as ``sample``, in another order.
    z = draws_of(
        quiet_sample(gebm, num_samples=26, thinning=5, seed=2, num_chains=100, warmup_steps=100)
    )
    with torch.no_grad():
        pushed = gebm.base(torch.as_tensor(z)).flatten(0, 1).numpy()
    # A rejected proposal leaves a draw that is there twice.
    ours, theirs = (Multiset(map(tuple, a.round(9))) for a in (x.numpy(), pushed))
    assert ours < theirs and ours.total() == 2550 and len(ours) > 2500
    assert not np.allclose(x.numpy(), pushed[:2550])


def test_generate_fewer_than_chains():
    x = pg.generate(small_gebm(), 3, num_chains=64, warmup_steps=5, seed=0, progress=False)
    assert x.shape == (3, 3) and len(x.unique(dim=0)) == 3
