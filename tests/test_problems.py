"""What a run is told of its problems: each is seen, and a good run is silent."""

import sys
import warnings

import numpy as np
import pytest
import torch
from helpers import normal, rng

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.inference_data import check_missing_mass, missing_mass


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


def run_of(latents, **attributes):
    return inference_data.build(latents, {}, attributes)


def independent(chains=8, draws=1000):
    return np.random.default_rng(0).normal(size=(chains, draws, 1))


def test_a_chain_that_stands_still_in_every_latent_is_named():
    z, tau = independent(), independent()[..., 0]
    tau[[2, 5]] = 1.0
    (found,) = inference_data.problems(run_of({"z": z, "tau": tau}))
    assert found.startswith("not converged yet")  # of tau; the chains moved in z
    z[5] = 0.0
    still, _ = inference_data.problems(run_of({"z": z, "tau": tau}))
    assert still.startswith("1 of 8 chains never moved (chains 5)")
    # x = G(z) stands still with z: it must not count as motion of its own, nor as its own latent
    x = np.concatenate([z, independent()], -1)
    still, *_ = inference_data.problems(run_of({"z": z, "x": x}, latent_sites="z"))
    assert still.startswith("1 of 8 chains never moved (chains 5)")


@pytest.mark.parametrize(("moves", "named"), [(9, True), (10, False)])
def test_a_chain_that_moved_in_under_a_hundredth_of_its_draws_is_stuck(moves, named):
    z = independent(draws=1001)
    z[3] = np.repeat(z[3, : moves + 1], [1] * moves + [1001 - moves], axis=0)
    found = inference_data.problems(run_of({"z": z}))
    assert any(f.startswith("1 of 8 chains are stuck (chains 3)") for f in found) == named


def test_a_chain_that_accepts_far_less_than_the_others_is_stuck():
    acceptance = np.full((8, 1000), 0.8)
    acceptance[1] = 0.009
    acceptance[6] = 0.007
    built = inference_data.build({"z": independent()}, {"accept_prob": acceptance}, {})
    (found,) = inference_data.problems(built)
    assert found.startswith("1 of 8 chains are stuck (chains 6)")
    # All accept little: it is the sampler, and no chain is worse than another.
    low = inference_data.build({"z": independent()}, {"accept_prob": acceptance * 0 + 1e-3}, {})
    assert inference_data.problems(low) == []


def test_the_latent_at_fault_is_named():
    z = np.random.default_rng(0).normal(size=(4, 1000, 2, 3))
    z[0, :, 1, 2] += 3
    (found,) = inference_data.problems(run_of({"tau": z[..., 0, 0], "z": z}))
    assert " of z[1, 2] (wanted <= 1.01)" in found and "of z[1, 2] (wanted >= 400)" in found


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_runs_too_short_for_r_hat_pass(draws):
    assert inference_data.problems(run_of({"z": independent(draws=draws)})) == []


ANGLES = 2 * np.pi * np.arange(8) / 8
CENTRES = 4 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
PROJECTION = np.array([[1.0, 0.6], [1.0, -0.3]])


def mixture(generator, shape, modes=8):
    """Draws of the first ``modes`` of eight modes on a ring."""
    noise = 0.3 * generator.normal(size=(*shape, 2))
    return CENTRES[generator.integers(modes, size=shape)] + noise


def statistics(z):
    return np.concatenate([z, z @ PROJECTION, np.square(z).sum(-1, keepdims=True)], -1)


def weighted_base(generator, n=2000):
    """Draws of N(0, 4² I) and their log weights as draws of the mixture."""
    z = 4 * generator.normal(size=(n, 2))
    squares = np.square(z[:, None] - CENTRES).sum(-1) / (2 * 0.3**2)
    log_target = np.logaddexp.reduce(-squares, axis=1)
    return log_target + np.square(z).sum(1) / (2 * 4**2), statistics(z)


def test_one_missed_mode_of_eight_is_seen():
    generator = np.random.default_rng(0)
    for _ in range(20):
        log_weights, reference = weighted_base(generator, 10_000)
        run = mixture(generator, (4, 500), modes=7)
        assert inference_data.rhat(run_of({"z": run})).max() < 1.02  # blind
        found = check_missing_mass(log_weights, reference, statistics(run))
        assert found.startswith("the run seems to miss mass: base draws, weighted (worth ")


def autoregressive(generator, chains, draws, phi, dims=2):
    """Stationary N(0, I) chains of lag-one correlation φ."""
    z = generator.normal(size=(draws, chains, dims))
    for t in range(1, draws):
        z[t] = phi * z[t - 1] + np.sqrt(1 - phi**2) * z[t]
    return z.swapaxes(0, 1)


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_exact_draws_raise_no_alarm(phi):
    # At most 1 in 500 expected of each 200 repeats: two alarms have probability 0.06.
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        z = 1 + generator.normal(size=(1000, 2))  # base N(1, I), target N(0, I)
        run = autoregressive(generator, 4, 250, phi)
        alarms += check_missing_mass(-z.sum(1), statistics(z), statistics(run)) != ""
    assert alarms <= 1


def test_alarms_have_the_stated_rate(monkeypatch):
    # The same test at a level that can be measured; without Bonferroni it would be far above.
    monkeypatch.setattr(missing_mass, "FALSE_ALARMS", 0.2)
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        run = generator.normal(size=(4, 250, 2))
        z = generator.normal(size=(1000, 2))
        alarms += check_missing_mass(np.zeros(1000), statistics(z), statistics(run)) != ""
    assert 0 < alarms <= 0.2 * 200


def test_a_run_wholly_elsewhere_is_seen():
    base = np.random.default_rng(0).normal(size=(500, 1))
    found = check_missing_mass(np.zeros(500), base, independent() + 50, names=["energy"])
    assert "put 100.0% of the model where the run has 10.0%" in found and "seen in energy" in found
    never_moved = np.full((64, 500, 1), 50.0)
    assert check_missing_mass(np.zeros(500), base, never_moved) != ""


def test_a_base_that_cannot_judge_says_nothing():
    generator = np.random.default_rng(0)
    base = generator.normal(size=(500, 1))
    elsewhere = independent() + 50
    few = np.where(np.arange(500) < 49, 0.0, -np.inf)
    assert check_missing_mass(few, base, elsewhere) == ""
    assert check_missing_mass(np.full(500, -np.inf), base, elsewhere) == ""
    assert check_missing_mass(np.linspace(0, 100, 500), base, elsewhere) == ""  # worth five
    # A narrow deep basin that no base draw hit: it is the base that misses mass.
    basin = {"run_log_weights": np.full((8, 1000), 9.0)}
    assert check_missing_mass(np.zeros(500), base, elsewhere, **basin) == ""
    shallow = {"run_log_weights": np.zeros((8, 1000))}
    assert check_missing_mass(np.zeros(500), base, elsewhere, **shallow) != ""


def test_statistics_of_no_weight_do_not_count():
    base = np.random.default_rng(0).normal(size=(600, 1))
    base[:100] = np.inf
    log_weights = np.where(np.arange(600) < 100, -np.inf, 0.0)
    assert check_missing_mass(log_weights, base, independent()) == ""


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"log_weights": np.zeros(99)}, r"expected \(N,\) and \(N, K\); got \(99,\)"),
        ({"log_weights": np.full(100, np.nan)}, "finite numbers or -inf"),
        ({"run_statistics": np.zeros((2, 5, 3))}, r"expected \(C, S, 2\) with S >= 4"),
        ({"run_statistics": np.zeros((2, 3, 2))}, "S >= 4; got"),
        ({"run_statistics": np.full((2, 5, 2), np.inf)}, "wherever the weight is above 0"),
        ({"reference_statistics": np.full((100, 2), np.nan)}, "wherever the weight is above 0"),
        ({"run_log_weights": np.zeros(5)}, r"run_log_weights: expected \(2, 5\)"),
        ({"names": ["energy"]}, "names: expected 2"),
    ],
)
def test_missing_mass_refuses(change, what):
    good = {
        "log_weights": np.zeros(100),
        "reference_statistics": np.zeros((100, 2)),
        "run_statistics": np.zeros((2, 5, 2)),
    }
    assert check_missing_mass(**good) == ""
    with pytest.raises(ValueError, match=what):
        check_missing_mass(**{**good, **change})


@pytest.mark.parametrize("ill", ["shifted", "wide", "slow"])
def test_of_many_chains_few_components_are_judged_and_the_worst_among_them(ill):
    z = np.random.default_rng(0).normal(size=(64, 1000, 40)).astype(np.float32)
    if ill == "shifted":
        z[::2, :, 23] += 0.4
    elif ill == "wide":  # ranks of the draws see nothing, those of their distances do
        z[::2, :, 23] *= 1.5
    else:
        for draw in range(1, 1000):
            z[:, draw, 23] = 0.98 * z[:, draw - 1, 23] + 0.2 * z[:, draw, 23]
    idata = inference_data.build({"z": z}, {}, {})
    (told,) = inference_data.problems(idata)
    worst, least = inference_data.worst_rhat(idata), inference_data.least_ess(idata)
    assert f"largest R-hat {worst:.3f} of z[23]" in told
    assert f"smallest bulk ESS {least:.0f} of z[23]" in told or ill == "wide"


def test_heavy_tails_hide_nothing():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 1000, 50))
    z[..., 17] = rng.standard_cauchy((4, 1000)) + np.array([0, 0.6, -0.6, 0])[:, None]
    (told,) = inference_data.problems(inference_data.build({"z": z}, {}, {}))
    assert "of z[17] (wanted <= 1.01)" in told and "of z[17] (wanted >= 400)" in told


def test_components_of_matrices_are_judged():
    z = np.random.default_rng(0).normal(size=(4, 500, 3, 4))
    z[::2, :, 1, 2] += 1
    idata = inference_data.build({"w, x": z}, {}, {"latent_sites": "w, x"})
    assert inference_data.latent_names(idata) == ["w, x"]
    (told,) = inference_data.problems(idata)
    assert "of w, x[1, 2] (wanted <= 1.01)" in told


def test_an_rhat_above_the_limit_is_not_shown_as_the_limit(monkeypatch):
    z = np.random.default_rng(0).normal(size=(4, 1000, 2))
    idata = inference_data.build({"z": z}, {}, {})
    # The function hides its module.
    problems_module = sys.modules["pyro_gebm.inference_data.problems"]
    for worst, shown in ((1.0101, "R-hat just above 1.01 of"), (1.0109, "R-hat 1.011 of")):
        monkeypatch.setattr(problems_module, "worst_component", lambda _, w=worst: (w, "z[0]"))
        assert shown in inference_data.problems(idata)[0]


def test_suspects_hold_the_worst_component():
    # 60 components that mix, and one that R-hat and one that only the folded R-hat tells.
    z = np.random.default_rng(5).normal(size=(8, 100, 60))
    z[:4, :, 17] += 0.6
    z[0, :, 41] *= 3
    idata = inference_data.build({"z": z}, {}, {})
    some = inference_data.suspects(idata)
    names = inference_data.names(some, "posterior")
    assert len(names) == inference_data.MOST_SUSPECTS and {"z[17]", "z[41]"} <= set(names)
    assert inference_data.worst_rhat(some) == inference_data.worst_rhat(idata)
    few = inference_data.build({"z": z[..., : inference_data.MOST_SUSPECTS]}, {}, {})
    assert inference_data.suspects(few) is few
