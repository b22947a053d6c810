"""The InferenceData: groups, files, and diagnostics against independent formulas."""

import warnings

import arviz as az
import numpy as np
import pytest
from helpers import draws_of, quiet_sample, small_gebm, stat_names, stats_of
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
            np.testing.assert_array_equal(new, old)  # nan where a draw had no such move
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


def brute_force_nested_rhat(draws, labels):
    """Margossian et al. 2022, loop by loop, of one quantity (chain, draw)."""
    superchains = [[draws[c] for c in np.flatnonzero(labels == label)] for label in set(labels)]
    means = [np.mean([np.mean(chain) for chain in superchain]) for superchain in superchains]
    between = sum((mean - np.mean(means)) ** 2 for mean in means) / (len(means) - 1)
    within = 0.0
    for superchain, mean in zip(superchains, means, strict=True):
        if len(superchain) > 1:
            spread = sum((np.mean(chain) - mean) ** 2 for chain in superchain)
            within += spread / (len(superchain) - 1)
        for chain in superchain:
            if len(chain) > 1:
                squares = sum((value - np.mean(chain)) ** 2 for value in chain)
                within += squares / (len(chain) - 1) / len(superchain)
    return np.sqrt(1 + between / (within / len(means)))


@pytest.mark.parametrize(("chains", "draws"), [(2, 3), (1, 3), (2, 1)])
def test_nested_rhat_is_the_published_formula(chains, draws):
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat([7, 3, 5], chains))
    tau = generator.normal(size=(3 * chains, draws, 2, 2))
    nested = inference_data.nested_rhat(inference_data.build({"tau": tau}, {}, {}), labels, "tau")
    for i, j in np.ndindex(2, 2):
        assert nested[i, j] == pytest.approx(brute_force_nested_rhat(tau[..., i, j], labels))


def test_nested_rhat_of_one_law_and_of_split_modes():
    # E B = σ²/(M N) and E W = σ² (1 + 1/N): 1 + B/W has mean about 1 + 1/(M (N + 1)), and B
    # is χ²/(K - 1) with K = 512, 1,000 times over: a standard error of 1 in 500 of its excess.
    z = np.random.default_rng(0).normal(size=(512 * 4, 5, 500))
    nested = inference_data.nested_rhat(inference_data.build({"z": z}, {}, {}), 512)
    assert np.square(nested).mean() - 1 == pytest.approx(1 / (4 * 6), rel=0.02)
    z[: 256 * 4] += 4  # B = 4, W = 1.2: two modes that superchains do not leave
    split = inference_data.nested_rhat(inference_data.build({"z": z}, {}, {}), 512)
    np.testing.assert_allclose(split, np.sqrt(1 + 4 / 1.2), rtol=0.03)
    # Chains that differ within superchains as much as between them are no sign of either.
    shuffled = np.arange(512 * 4) % 512
    mixed = inference_data.nested_rhat(inference_data.build({"z": z}, {}, {}), shuffled)
    assert mixed.max() < 1.2


@pytest.mark.parametrize(
    ("superchains", "shape", "what"),
    [
        (3, (4, 5), "a number that divides the 4 chains"),
        (0, (4, 5), "a number that divides"),
        (1, (4, 5), "two or more of equal size"),
        ([0, 0, 0, 1], (4, 5), "two or more of equal size"),
        ([0, 1], (4, 5), r"\(4,\)"),
        (4, (4, 1), "two chains or two draws"),
    ],
)
def test_nested_rhat_refuses(superchains, shape, what):
    with pytest.raises(ValueError, match=what):
        inference_data.nested_rhat(
            inference_data.build({"z": np.zeros(shape)}, {}, {}), superchains
        )


def test_worst_of_all_latents():
    generator = np.random.default_rng(0)
    z, tau, x = (generator.normal(size=(4, 500, *shape)) for shape in [(3,), (), (2,)])
    tau[0] += 1
    x[0] += 9
    about = {"latent_sites": "z,tau"}
    idata = inference_data.build({"z": z, "tau": tau, "x": x}, {}, about)
    assert inference_data.worst_rhat(idata) == inference_data.rhat(idata, "tau")
    assert inference_data.least_ess(idata) == inference_data.ess(idata, "tau")
    every = inference_data.build({"z": z, "tau": tau, "x": x}, {}, {})
    assert inference_data.worst_rhat(every) == inference_data.rhat(every, "x").max()
    z[:, :, 1] = 0  # never varies: not a number, and not passed over
    still = inference_data.build({"z": z, "tau": tau}, {}, {})
    assert np.isnan(inference_data.worst_rhat(still))


def every_group():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(3, 6, 2)).astype(np.float32)
    state = {
        "z": z[:, -1],
        "half": z[0, 0].astype(np.float16),
        "step_size": np.float64(0.1),
        "flags": np.array([[True], [False]]),
        "count": np.array([2**60, -1]),
        "generator": np.arange(256).astype(np.uint8),
        "empty": np.zeros((0, 2), dtype=np.float32),
        "bounds": np.array([np.nan, -np.inf, np.inf]),
    }
    warm = {"hamiltonian": z[:, :2, 0], "swap_accept_prob": z[:, :2, 1]}
    stats = {"trajectory_length": z[..., 0], "global_accept_prob": z[..., 1]}
    return inference_data.build(
        {"z": z},
        stats,
        {"beta": 0.5},
        prior={"z": z[:1, :4]},
        warmup_posterior={"z": z[:, :2]},
        warmup_sample_stats=warm,
        state=state,
    ), state


def test_all_groups_and_the_state_survive_the_file(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        idata, state = every_group()
        path = tmp_path / "idata.nc"
        inference_data.save(idata, path)
        back = inference_data.load(path)
        inference_data.save(back, path)  # the file is not kept open
    assert [p.name for p in tmp_path.iterdir()] == ["idata.nc"]
    assert set(inference_data.names(back, "sample_stats")) == {"int_time", "global_acceptance_rate"}
    warm = {"energy", "swap_acceptance_rate"}
    assert set(inference_data.names(back, "warmup_sample_stats")) == warm
    for group, shape in (("prior", (1, 4, 2)), ("warmup_posterior", (3, 2, 2))):
        z = inference_data.values(back, "z", group)
        assert z.shape == shape and np.array_equal(z, inference_data.values(idata, "z", group))
    for name, array in inference_data.sampling_state(back).items():
        given = np.asarray(state[name])
        assert array.dtype == (np.float32 if name == "half" else given.dtype)
        np.testing.assert_array_equal(array, given)
    assert inference_data.sampling_state(back).keys() == state.keys()
    az.summary(back, var_names=["z"])


def test_interrupted_save_keeps_the_old_file(run, tmp_path):
    path = tmp_path / "idata.nc"
    inference_data.save(run, path)
    old = path.read_bytes()
    unwritable = inference_data.build({"z": np.zeros((2, 5))}, {}, {"a": {"no": "dicts"}})
    with pytest.raises(TypeError):
        inference_data.save(unwritable, path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["idata.nc"]


def test_a_run_without_state_says_so():
    plain = inference_data.build({"z": np.zeros((2, 5))}, {}, {})
    with pytest.raises(ValueError, match="sampling_state"):
        inference_data.sampling_state(plain)


def test_rank_picture(run, tmp_path):
    import matplotlib.pyplot as plt

    path = tmp_path / "rank.png"
    inference_data.plot_rank(run, path, dims=[0, 1])
    picture = plt.imread(path)
    assert min(picture.shape[:2]) > 100 and picture[..., :3].std() > 0.05
    assert plt.get_fignums() == []
