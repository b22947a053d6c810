"""The InferenceData: files, diagnostics against independent formulas, and the warnings."""

import warnings

import arviz as az
import numpy as np
import pytest
import torch
from helpers import draws_of, normal, quiet_sample, rng, small_gebm, stat_names, stats_of
from scipy import stats

import pyro_gebm as pg
from pyro_gebm import inference_data


@pytest.fixture(scope="module")
def run():
    return quiet_sample(
        small_gebm(),
        kernel=pg.NUTS(),
        include_x=True,
        num_chains=4,
        num_samples=50,
        warmup_steps=50,
    )


def test_file_round_trip(run, tmp_path):
    path = tmp_path / "idata.nc"
    inference_data.save(run, path)
    back = inference_data.load(path)
    for group, names in (("posterior", {"z", "x"}), ("sample_stats", stat_names(run))):
        assert set(inference_data.names(back, group)) == names
        for name in names:
            old, new = (np.asarray(idata[group][name].values) for idata in (run, back))
            assert new.dtype == old.dtype
            assert np.array_equal(new, old)
    assert back.attrs.keys() == run.attrs.keys()
    for key, value in run.attrs.items():
        assert np.array_equal(back.attrs[key], value)
        assert np.array_equal(back["posterior"].attrs[key], value)


def test_arviz_reads_the_file(run, tmp_path):
    inference_data.save(run, tmp_path / "idata.nc")
    summary = az.summary(az.from_netcdf(str(tmp_path / "idata.nc")), var_names=["z"])
    assert list(summary.index) == ["z[0]", "z[1]"]
    means = draws_of(run).mean((0, 1))
    np.testing.assert_allclose(summary["mean"].astype(float), means, atol=0.01)


def test_build_keeps_values_and_renames():
    z = np.random.default_rng(0).normal(size=(3, 7, 2)).astype(np.float32)
    flags = z[..., 0] > 0
    built = inference_data.build({"z": z}, {"hamiltonian": z[..., 1], "diverging": flags}, {"a": 1})
    assert np.array_equal(draws_of(built), z) and draws_of(built).dtype == np.float32
    assert np.array_equal(stats_of(built, "energy"), z[..., 1])
    assert np.array_equal(stats_of(built, "diverging"), flags)
    assert inference_data.names(built, "sample_stats") == ["energy", "diverging"]
    assert dict(built["posterior"].sizes) == {"chain": 3, "draw": 7, "z_dim_0": 2}
    assert built.attrs["a"] == built["posterior"].attrs["a"] == 1
    with pytest.raises(KeyError):
        inference_data.build({"z": z}, {"unknown": flags}, {})


def test_subset_picks_latents_and_chains(run):
    some = inference_data.subset(run, dims=[1], chains=[3, 0])
    assert inference_data.names(some, "posterior") == ["z[1]"]
    assert np.array_equal(inference_data.values(some, "z[1]"), draws_of(run)[[3, 0], :, 1])


def autocorrelated(chains=4, draws=500, dims=3, phi=0.8, shift=0.0):
    """AR(1) chains of known effective sample size; the first is shifted."""
    noise = np.random.default_rng(1).normal(size=(draws + 100, chains, dims))
    z = np.zeros_like(noise)
    for t in range(1, len(z)):
        z[t] = phi * z[t - 1] + noise[t]
    z = z[100:].swapaxes(0, 1)
    z[0] += shift
    return inference_data.build({"z": z}, {}, {})


def split_rhat(z):
    """Rank-normalised split R-hat of one quantity (chain, draw): Vehtari et al. 2021, (1)-(4)."""
    half = z.shape[1] // 2

    def basic(values):
        parts = np.concatenate([values[:, :half], values[:, -half:]])
        normal_scores = stats.norm.ppf((stats.rankdata(parts) - 3 / 8) / (parts.size + 1 / 4))
        scores = normal_scores.reshape(parts.shape)
        within = scores.var(1, ddof=1).mean()
        between = half * scores.mean(1).var(ddof=1)
        return np.sqrt(((half - 1) / half * within + between / half) / within)

    return max(basic(z), basic(np.abs(z - np.median(z))))


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_rhat_is_the_published_formula(shift):
    idata = autocorrelated(draws=1000, shift=shift)
    rhat = inference_data.rhat(idata)
    expected = [split_rhat(column) for column in np.moveaxis(draws_of(idata), -1, 0)]
    np.testing.assert_allclose(rhat, expected, rtol=1e-3)
    assert (rhat > 1.1).all() if shift else (rhat < 1.05).all()


def test_ess_is_that_of_the_process():
    # AR(1) with φ: n (1 - φ)/(1 + φ) for means; the estimate is good to some 10 %.
    ess = inference_data.ess(autocorrelated(draws=2000))
    np.testing.assert_allclose(ess, 8000 * 0.2 / 1.8, rtol=0.2)


def unwrap(result, name):
    """A variable of what ArviZ returns: a Dataset in 0.x, a DataTree in 1.x."""
    return np.asarray(result.get("posterior", result)[name].values)


def test_diagnostics_are_those_of_arviz(run):
    np.testing.assert_array_equal(inference_data.rhat(run), unwrap(az.rhat(run), "z"))
    for method in ("bulk", "tail"):
        ours = inference_data.ess(run, method=method)
        np.testing.assert_array_equal(ours, unwrap(az.ess(run, method=method), "z"))
    x = inference_data.rhat(run, "x")
    np.testing.assert_array_equal(x, unwrap(az.rhat(run), "x"))


def test_bfmi_is_its_formula(run):
    energy = stats_of(run, "energy").astype(np.float64)
    expected = np.square(np.diff(energy)).mean(1) / energy.var(1)
    assert inference_data.bfmi(run).shape == (4,)
    # ArviZ differs in the degrees of freedom only: 50/49.
    np.testing.assert_allclose(inference_data.bfmi(run), expected, rtol=0.03)


def warned(model, **settings):
    settings = {"num_chains": 4, "num_samples": 100, "warmup_steps": 50, **settings}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pg.sample(model, progress=False, seed=0, **settings)
    ours = [w for w in caught if w.category is UserWarning]
    assert all(w.filename == __file__ for w in ours)  # they point at the caller
    return [str(w.message) for w in ours]


def spread(chains=4, scale=1.0):
    return scale * torch.randn(chains, 2, generator=rng(), dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["HMC", pg.NUTS(max_tree_depth=3)], ids=["HMC", "NUTS"])
def test_good_run_is_silent(kernel):
    # 500 draws: R-hat is not below 1.01 for short chains, however many they are.
    settings = {"num_chains": 64, "num_samples": 500, "initial_params": spread(64)}
    assert warned(normal, kernel=kernel, **settings) == []


def test_warns_of_a_stuck_chain():
    def isolated(z):
        inside = torch.where(z[:, 0] == 100, 0.0, torch.nan)
        return torch.where(z[:, 0] > 50, inside, normal(z))

    start = spread()
    start[2] = 100.0
    (stuck, *_) = warned(isolated, initial_params=start)
    assert stuck.startswith("1 of 4 chains never moved (chains 2)")


def test_warns_of_separate_modes():
    def modes(z):
        return -torch.logaddexp(-normal(z - 20), -normal(z + 20))

    (found,) = warned(modes, initial_params=spread(64, 20.0), num_chains=64)
    assert found.startswith("not converged yet: largest R-hat ")
    assert float(found.split()[5]) > 1.5


def test_warns_of_few_draws():
    found = warned(normal, kernel="MALA", initial_params=spread())
    assert any("smallest bulk ESS" in problem for problem in found)


def test_warns_of_divergences():
    def walled(z):
        return torch.where(z[:, 0] > 1, torch.nan, normal(z))

    start = spread(64).clamp(max=0.9)
    found = warned(walled, kernel="MALA", initial_params=start, num_chains=64)
    (problem,) = [p for p in found if "diverged" in p]
    share = float(problem.split("%")[0])
    assert 1 < share < 50 and "raise target_accept_prob" in problem


def test_warns_of_the_tree_depth():
    shallow = pg.NUTS(max_tree_depth=2, step_size=0.05, adapt_step_size=False)
    found = warned(normal, kernel=shallow, initial_params=spread())
    assert any(p.startswith("100.0% of the trees reached max_tree_depth") for p in found)


def test_warns_of_r_hat_alone():
    # Independent draws, one chain twice as wide: only the folded R-hat tells.
    z = np.random.default_rng(0).normal(size=(4, 2000, 1))
    z[0] *= 2
    flags = np.zeros((4, 2000), dtype=bool)
    built = inference_data.build({"z": z}, {"diverging": flags}, {})
    assert inference_data.ess(built).min() > 1000
    (found,) = inference_data.problems(built)
    assert 1.01 < float(found.split()[5]) < 1.2


def test_warns_of_bfmi():
    # Two chains of energies that hardly change from draw to draw, two of independent ones.
    generator = np.random.default_rng(0)
    energy = generator.normal(size=(4, 1000))
    energy[:2] = energy[:2].cumsum(1)
    z = generator.normal(size=(4, 1000, 2))
    flags = np.zeros((4, 1000), dtype=bool)
    statistics = {"hamiltonian": energy, "tree_depth": flags * 1, "diverging": flags}
    found = inference_data.problems(inference_data.build({"z": z}, statistics, {}))
    assert len(found) == 1 and found[0].startswith("BFMI below 0.3 in 2 chains")


def test_rank_picture(run, tmp_path):
    import matplotlib.pyplot as plt

    path = tmp_path / "rank.png"
    inference_data.plot_rank(run, path, dims=[0, 1])
    picture = plt.imread(path)
    assert min(picture.shape[:2]) > 100 and picture[..., :3].std() > 0.05
    assert plt.get_fignums() == []
