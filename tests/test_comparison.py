"""``compare`` on a model whose law is known: N(0, I) tilted by a quadratic is N(1.5, 1/4)."""

import dataclasses
import json
import math
import statistics
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm import comparison as pc
from pyro_gebm import inference_data
from pyro_gebm.comparison import walk
from pyro_gebm.comparison.results import interval, summarise
from pyro_gebm.mcmc import Kernel, run
from pyro_gebm.metrics import EnergyDistanceScorer, FrechetScorer, MeanSpread, mode_summary

MEAN, SCALE, CURVATURE = 1.5, 0.5, 4.0
DIM = 2


class Quadratic(nn.Module):
    """E(x) = 1.5 |x - 2|²; counts the rows whose gradient is taken."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def forward(self, x):
        self.rows += len(x) * x.requires_grad
        return 1.5 * (x - 2).square().sum(-1)


def known(energy=None, prior=None):
    return pg.GEBM(pg.Base(nn.Identity(), prior or pg.StandardNormal(DIM)), energy or Quadratic())


def exact(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return MEAN + SCALE * torch.randn(count, DIM, generator=generator)


class Recorder:
    """Scores by the distance of the mean from the truth, and keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def score(self, x):
        self.seen.append(x)
        return float((x.double().mean() - MEAN).abs())

    def floor(self, *, generator, repeats=20):
        return MeanSpread(0.0, 0.0, repeats)


def small(gebm=None, scorer=None, **changes):
    """A comparison of a second or less."""
    settings = {
        "kernels": ["HMC"],
        "budget": 250,
        "num_chains": 16,
        "warmup_steps": 20,
        "seeds": [0],
        "num_points": 8,
        "progress": False,
    }
    return pc.compare(gebm or known(), scorer=scorer or Recorder(), **(settings | changes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Kernel):
    """Raises in the walk, or at once."""

    error: type = RuntimeError

    def step(self, potential_fn, state, tuning, *, generator):
        raise self.error("planted")


def plain_langevin(step):
    return pg.Langevin(step_size=step, adapt_step_size=False, adapt_mass_matrix=False)


# --- the known law -----------------------------------------


@pytest.fixture(scope="module")
def found():
    scorer = EnergyDistanceScorer(exact(800, 5))
    return pc.compare(
        known(),
        scorer=scorer,
        kernels=("NUTS", "HMC", "Langevin", "ChEES"),
        budget=300,
        num_chains=100,
        warmup_steps=30,
        seeds=(3, 4),
        num_points=12,
        progress=False,
    )


@pytest.fixture(scope="module")
def null():
    """Scores of exact sets as large as those of ``found``: mean and sd."""
    scorer = EnergyDistanceScorer(exact(800, 5))
    scores = [scorer.score(exact(100, 100 + i)) for i in range(60)]
    return statistics.fmean(scores), statistics.stdev(scores)


@pytest.mark.parametrize("kernel", ["NUTS", "HMC", "ChEES"])
def test_stationary_scores_are_those_of_exact_draws(found, null, kernel):
    summary = found.kernels[kernel].summary
    mean, sd = null
    # Sets of one walk count as one, however many there are.
    assert abs(summary.stationary.mean - mean) < 4 * sd / math.sqrt(2)
    assert abs(summary.end.mean - mean) < 4 * sd / math.sqrt(2)
    # The floor, halves of 400, is as near to 0 as the sets are, on the scale of the base.
    assert abs(summary.stationary.mean - found.floor.mean) < 0.01 * found.base.score.mean
    # Of some 25 draws a chain.
    assert summary.rhat < 1.1 and summary.divergent_share == 0
    assert 0.6 < summary.acceptance < 1


def test_langevin_is_not_far_from_it(found):
    # At an acceptance of 0.95 the variance is 8 % too large.
    ratio = found.kernels["Langevin"].summary.stationary_ratio
    assert abs(ratio.mean) < 0.02


@pytest.mark.parametrize("kernel", ["NUTS", "HMC", "Langevin", "ChEES"])
def test_curves_fall_from_the_base_to_the_stationary_value(found, kernel):
    for seed_run, base in zip(found.kernels[kernel].runs, found.base.scores, strict=True):
        assert seed_run.scores[0] == base > 1
        assert seed_run.gradients[0] == seed_run.warmup_gradients
        assert (np.diff(seed_run.gradients) > 0).all()
        assert seed_run.scores[1] < base
        half = seed_run.scores[len(seed_run.scores) // 2 :]
        assert (abs(half - seed_run.stationary_scores.mean()) < 0.06).all()


@pytest.mark.parametrize("kernel", ["NUTS", "HMC", "Langevin", "ChEES"])
def test_all_spend_the_budget(found, kernel):
    for seed_run in found.kernels[kernel].runs:
        total = seed_run.gradients[-1]
        assert total == pytest.approx(seed_run.warmup_gradients + seed_run.walk_gradients)
        # Less than one transition too many.
        assert 300 <= total < 300 + 2 * seed_run.walk_gradients / seed_run.transitions
        assert seed_run.batch_gradients >= seed_run.walk_gradients
    assert found.kernels[kernel].summary.gradients == pytest.approx(300, rel=0.02)


def test_ratios_are_paired_with_the_base_of_the_same_starts(found):
    result = found.kernels["HMC"]
    ratios = [
        run.scores[-1] / base for run, base in zip(result.runs, found.base.scores, strict=True)
    ]
    assert result.summary.end_ratio.mean == pytest.approx(statistics.fmean(ratios))
    half = stats.t.ppf(0.975, 1) * statistics.stdev(ratios) / math.sqrt(2)
    assert result.summary.end_ratio.half_width == pytest.approx(half, rel=1e-4)


def test_ess_is_that_of_the_long_run_and_per_gradient(found):
    for seed_run in found.kernels["HMC"].runs:
        per_chain = seed_run.ess_per_1000_gradients / 1000 * 100
        long = seed_run.ess / per_chain  # gradients of a chain in the second half
        assert long == pytest.approx(seed_run.walk_gradients / 2, rel=0.1)


def test_curve_follows_the_exact_mean_of_langevin():
    step, chains = 0.2, 4000
    seen = Recorder()
    result = small(
        scorer=seen,
        kernels={"slow": plain_langevin(step)},
        num_chains=chains,
        budget=60,
        num_points=12,
    ).kernels["slow"]
    (seed_run,) = result.runs
    spent = seed_run.gradients[1:] - seed_run.warmup_gradients
    # z' = z - ε²/2 U'(z) + ...: the mean nears 1.5 by 1 - 2 ε² a transition, one gradient each;
    # the first gradient of a walk is that at its start.
    gap = MEAN * (1 - step**2 * CURVATURE / 2) ** (spent - 1)
    error = 1 / math.sqrt(chains * DIM)
    clear = gap > 4 * error
    assert clear.sum() > 5
    assert (abs(seed_run.scores[1:] - gap)[clear] < 4 * error).all()


# --- gradients ------------------------------------------


@pytest.mark.parametrize("thinned", [False, True])
@pytest.mark.parametrize("kernel", ["NUTS", "HMC", "Langevin", "ChEES"])
def test_every_gradient_is_counted(kernel, thinned, monkeypatch):
    if thinned:
        monkeypatch.setattr(walk, "MOST_LONG_DRAWS", 10)
        monkeypatch.setattr(walk, "STRETCH_DRAWS", 8)
    energy = Quadratic()
    (seed_run,) = small(known(energy), kernels=[kernel]).kernels[kernel].runs
    assert (seed_run.thinning > 1) == thinned
    spent = seed_run.warmup_gradients + seed_run.batch_gradients
    # One more a chain to see that the starts have finite gradients.
    assert energy.rows == 16 * (1 + spent)


def test_checkpoints_are_the_first_transitions_that_pass_them():
    (seed_run,) = small(kernels=["Langevin"], num_points=10).kernels["Langevin"].runs
    left = 250 - seed_run.warmup_gradients
    wanted = np.geomspace(1, 250, 10)
    # A gradient a transition, and one at the start, before which there is nothing to record.
    passed = np.unique(np.ceil([*wanted[wanted < left], left]).clip(2))
    assert np.array_equal(seed_run.gradients[1:] - seed_run.warmup_gradients, passed)


def test_long_walks_are_thinned_evenly_to_the_end(monkeypatch):
    monkeypatch.setattr(walk, "MOST_LONG_DRAWS", 10)
    (seed_run,) = small(kernels=["Langevin"], budget=400).kernels["Langevin"].runs
    assert seed_run.thinning == (400 - seed_run.warmup_gradients) / 2 // 10
    assert 400 <= seed_run.gradients[-1] < 400 + seed_run.thinning
    assert seed_run.transitions == seed_run.walk_gradients - 1


# --- starts, tuning, noise --------------------------------------


def test_all_kernels_start_from_the_same_base_samples_by_seed():
    seen = Recorder()
    still = {
        "MALA": pg.MALA(step_size=1e-7, adapt_step_size=False),
        "Langevin": plain_langevin(1e-7),
        "NUTS": pg.NUTS(step_size=1e-7, adapt_step_size=False, max_tree_depth=1),
    }
    result = small(scorer=seen, kernels=still, seeds=[7, 8], budget=80)
    bases, rest = seen.seen[:2], seen.seen[2:]
    for seed, base in zip([7, 8], bases, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(base, torch.randn(16, DIM))
    assert not torch.equal(*bases)
    runs = [seed_run for found in result.kernels.values() for seed_run in found.runs]
    place = 0
    for seed_run in runs:
        shown = len(seed_run.stationary_scores) + len(seed_run.scores) - 1
        for x in rest[place : place + shown]:
            torch.testing.assert_close(x, bases[seed_run.seed - 7], atol=1e-4, rtol=0)
        place += shown
    assert place == len(rest) and len(runs) == 6


def test_tuned_as_sample_tunes():
    gebm = known()
    (seed_run,) = small(gebm, kernels=["ChEES"], seeds=[11]).kernels["ChEES"].runs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too short a run for R-hat
        idata = pg.sample(
            gebm,
            kernel="ChEES",
            num_chains=16,
            warmup_steps=20,
            num_samples=5,
            global_moves=None,
            seed=11,
            progress=False,
        )
    step = inference_data.values(idata, "step_size", "sample_stats")[0, 0]
    assert seed_run.tuning["step_size"] == pytest.approx(float(step), rel=1e-6)
    length = float(idata.attrs["trajectory_length"])
    assert seed_run.tuning["trajectory_length"] == pytest.approx(length, rel=1e-6)
    warmup = float(idata.attrs["warmup_gradient_evaluations"])
    assert seed_run.warmup_gradients == warmup + 1


@pytest.mark.parametrize("kernel", [pg.HMC(step_size=0.6), pg.NUTS(step_size=0.6)])
def test_the_walk_is_one_run_from_the_starts(kernel):
    kernel = dataclasses.replace(kernel, adapt_step_size=False, adapt_mass_matrix=False)
    gebm, seen = known(), Recorder()
    (seed_run,) = small(gebm, seen, kernels={"it": kernel}, seeds=[2]).kernels["it"].runs
    assert seed_run.thinning == 1
    start = seen.seen[0]
    tuning = pg.mcmc.Tuning(torch.full((16,), 0.6), torch.ones(DIM))
    draws = run(
        kernel,
        gebm.potential_fn,
        start,
        num_samples=seed_run.transitions,
        warmup_steps=0,
        tuning=tuning,
        seed=2,
    )
    assert torch.equal(seen.seen[-1], draws.z[:, -1])
    spent = 1 + draws.info.num_steps.double().mean(0).cumsum(0)
    assert seed_run.walk_gradients == pytest.approx(spent[-1].item())
    # It ends with the first transition that the budget is spent at.
    assert spent[-2] < 250 - seed_run.warmup_gradients <= spent[-1]


def test_same_seeds_same_figures_and_nothing_else_is_touched():
    gebm = known()
    gebm.train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = small(gebm)
    assert torch.equal(torch.get_rng_state(), before)
    assert gebm.training and gebm.log_partition.requires_grad
    torch.manual_seed(2)
    again = small(gebm)
    one, other = (c.kernels["HMC"].runs[0] for c in (first, again))
    assert np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.gradients, other.gradients)


def test_beta_is_the_same_for_all():
    # At β = 0 the model is the base.
    result = small(kernels=["MALA", "HMC"], beta=0.0, num_chains=400, budget=150)
    for found in result.kernels.values():
        assert found.summary.stationary.mean == pytest.approx(MEAN, abs=0.1)
    assert "β = 0" in pc.verdict(result)


def test_bounded_priors_and_global_moves():
    seen = Recorder()
    gebm = known(prior=pg.UniformPrior(DIM, 0, 3))
    moves = pg.GlobalMoves(num_proposals=4, every=2)
    result = small(gebm, seen, kernels=["HMC"], global_moves=moves, chunk_size=8)
    assert result.kernels["HMC"].runs[0].tuning["num_proposals"] == 4
    assert all(((x >= 0) & (x <= 3)).all() for x in seen.seen)
    assert "num_proposals=4" in result.protocol.global_moves


# --- modes --------------------------------------------


class TwoModes(nn.Module):
    """ν = 0.8 N(2, 0.04) + 0.2 N(-2, 0.04) on a standard normal."""

    def forward(self, x):
        parts = [math.log(w) - 12.5 * (x[:, 0] - m) ** 2 for w, m in ((0.8, 2.0), (0.2, -2.0))]
        return -0.5 * x[:, 0] ** 2 - torch.logaddexp(*parts)


def test_modes_that_chains_do_not_cross_between_are_found_out():
    gebm = known(TwoModes(), pg.StandardNormal(1))
    settings = {"num_chains": 100, "labeller": lambda x: (x[:, 0] > 0).long()}
    settings |= {"mode_truth": [0.2, 0.8], "seeds": [1, 2], "budget": 200}
    alone = small(gebm, **settings)
    summary = alone.kernels["HMC"].summary
    # Base samples are right and left in equal shares, and stay there.
    assert summary.occupancy_error.mean == pytest.approx(0.3, abs=4 * 0.5 / math.sqrt(200))
    assert summary.mode_rhat > 1.5 and summary.switches_per_1000_gradients == 0
    assert "HMC has not converged (R-hat infinite: chains stay in" in pc.verdict(alone)
    moving = small(gebm, global_moves=pg.GlobalMoves(num_proposals=32, every=2), **settings)
    summary = moving.kernels["HMC"].summary
    assert summary.occupancy_error.mean < 0.1 and summary.switches_per_1000_gradients > 10
    assert summary.mode_rhat < alone.kernels["HMC"].summary.mode_rhat


def right_half(x):
    return (x[:, 0] > MEAN).long()


def test_occupancy_errors_against_closed_forms():
    result = small(
        num_chains=400, seeds=[0, 1], labeller=right_half, mode_truth=[0.5, 0.5], budget=150
    )
    # Of N(0, 1) a share of 1 - Φ(1.5) lies on the right.
    expected = 0.5 - stats.norm.sf(MEAN)
    error = 4 * math.sqrt(0.07 / 800)
    assert result.base.occupancy_error.mean == pytest.approx(expected, abs=error)
    summary = result.kernels["HMC"].summary
    assert summary.occupancy_error.mean < 0.03
    assert summary.mode_rhat < 1.05 and summary.mode_ess > 400
    assert summary.switches_per_1000_gradients > 50
    assert small().kernels["HMC"].runs[0].modes is None


def test_labels_of_thinned_draws_count_all_gradients(monkeypatch):
    monkeypatch.setattr("pyro_gebm.comparison.judge.MOST_LABELS", 7)
    calls = []

    def labeller(x):
        calls.append(len(x))
        return right_half(x)

    result = small(kernels=["Langevin"], labeller=labeller).kernels["Langevin"]
    (seed_run,) = result.runs
    labelled = len(calls) - 1  # and the base once
    assert 4 <= labelled <= 7
    step = seed_run.walk_gradients / 2 / labelled
    # Langevin: as many gradients as transitions between two labels.
    switches = 1000 * seed_run.modes.switches_per_draw / step
    assert seed_run.modes.switches_per_1000_gradients == pytest.approx(switches, rel=0.15)
    assert seed_run.modes.total_variation is None


# --- failures ------------------------------------------


def test_failed_kernels_are_shown_and_do_not_stop_the_others():
    result = small(
        kernels={
            "raises": Broken(step_size=1.0, adapt_step_size=False),
            "diverges": pg.HMC(step_size=1e12, adapt_step_size=False),
            "HMC": "HMC",
        },
        seeds=[0, 1],
    )
    assert result.kernels["raises"].failure == "seed 0: RuntimeError: planted"
    assert "every transition diverged" in result.kernels["diverges"].failure
    for name in ("raises", "diverges"):
        assert result.kernels[name].summary is None and result.kernels[name].runs == ()
    assert result.kernels["HMC"].failure is None and len(result.kernels["HMC"].runs) == 2
    assert "raises failed (seed 0: RuntimeError: planted)" in pc.verdict(result)
    assert json.dumps(pc.to_dict(result), allow_nan=False)
    with pytest.raises(ValueError, match="one that failed"):
        pc.common_curve(result.kernels["raises"])


def test_chains_that_never_move_have_failed():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Stuck(Kernel):
        def step(self, potential_fn, state, tuning, *, generator):
            none = torch.zeros_like(state.potential_energy)
            return state, pg.mcmc.Info(none, none.bool(), none.long() + 1)

    assert "no proposal was accepted" in small(kernels={"it": Stuck()}).kernels["it"].failure


def test_seeds_before_a_failure_stay():
    class Fickle(Recorder):
        def score(self, x):
            super().score(x)
            return math.nan if len(self.seen) > 2 + 16 + 4 else 1.0

    result = small(scorer=Fickle(), seeds=[4, 5]).kernels["HMC"]
    assert [seed_run.seed for seed_run in result.runs] == [4]
    assert "seed 5: ValueError: scorer: expected finite scores; got nan" in result.failure


def test_a_budget_that_warm_up_eats_is_a_failure_with_advice():
    failure = small(budget=40).kernels["HMC"].failure
    assert "raise it, or lower warmup_steps" in failure and "budget" in failure


def test_ctrl_c_comes_through():
    with pytest.raises(KeyboardInterrupt):
        small(kernels={"it": Broken(error=KeyboardInterrupt)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gebm": nn.Identity()}, "gebm: expected a GEBM"),
        ({"scorer": abs}, "scorer: expected an object with score"),
        ({"kernels": []}, "kernels: expected at least one"),
        ({"kernels": "NUTS"}, "kernels: expected a sequence"),
        ({"kernels": ["HMC", "hmc"]}, "different names"),
        ({"kernels": ["auto"]}, "kernels of ours"),
        ({"kernels": ["Gibbs"]}, "expected one of auto, NUTS"),
        ({"kernels": {"it": 3}}, "kernel: expected a name"),
        ({"budget": 0}, "budget: expected a whole number >= 1"),
        ({"budget": 2.5}, "budget: expected a whole number >= 1"),
        ({"num_chains": 1}, "num_chains: expected a whole number >= 2"),
        ({"num_points": 1}, "num_points: expected a whole number >= 2"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"beta": -1.0}, "beta"),
        ({"seeds": []}, "seeds: expected one or more different numbers"),
        ({"seeds": [1, 1]}, "seeds: expected one or more different numbers"),
        ({"seeds": [-1]}, "seeds: expected a whole number >= 0"),
        ({"global_moves": 3}, "global_moves"),
        ({"target_accept_prob": 1.5}, "target_accept_prob"),
        ({"labeller": 3}, "labeller: expected a function"),
        ({"mode_truth": [1.0]}, "labeller: expected a function of x with mode_truth"),
        ({"labeller": right_half, "mode_truth": [0.5, 0.6]}, "mode_truth: expected"),
        (
            {"labeller": lambda x: 5 + right_half(x), "mode_truth": [1.0]},
            "labels from 0 to below 1",
        ),
        ({"labeller": lambda x: x}, "labeller: expected 16 integers"),
    ],
)
def test_bad_arguments_are_refused_before_any_run(changes, message, monkeypatch):
    # By its name as text it would be found as the function of this name.
    module = sys.modules["pyro_gebm.comparison.compare"]
    monkeypatch.setattr(module, "take_walk", None)
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_kernels_of_pyro_are_refused():
    from pyro.infer import NUTS

    with pytest.raises(ValueError, match="kernels of ours"):
        small(kernels=[NUTS])


# --- words and data ----------------------------------------


def test_json_round_trip(found):
    plain = pc.to_dict(found)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["verdict"] == pc.verdict(found)
    assert plain["kernels"]["NUTS"]["summary"]["end"]["count"] == 2
    assert (
        plain["kernels"]["NUTS"]["runs"][0]["scores"]
        == found.kernels["NUTS"].runs[0].scores.tolist()
    )
    protocol = plain["protocol"]
    assert protocol["score"] == "energy distance" and protocol["seeds"] == [3, 4]
    assert protocol["versions"]["torch"] == torch.__version__ and protocol["device"] == "cpu"
    assert any("300 gradient evaluations" in note for note in protocol["notes"])
    assert "max_tree_depth=" in plain["kernels"]["NUTS"]["settings"]


def test_a_single_seed_has_no_interval():
    result = small()
    plain = pc.to_dict(result)
    assert plain["kernels"]["HMC"]["summary"]["end"]["low"] is None
    assert pc.common_curve(result.kernels["HMC"]).stationary_interval is None
    assert "one seed, hence no intervals" in pc.verdict(result)


def test_names_of_scores():
    assert small(scorer=FrechetScorer(nn.Identity(), exact(50, 0))).protocol.score == (
        "Fréchet distance"
    )
    assert small().protocol.score == "Recorder"
    assert small(score_name="gap").protocol.score == "gap"


def made(name, ratios, rhat=1.0, divergent=0.0, failure=None):
    """A kernel's result with these ratios to a base of 2, by seed."""
    run = pc.SeedRun(
        seed=0,
        gradients=np.array([10.0, 100.0]),
        scores=np.array([2.0, 1.0]),
        stationary_scores=np.array([1.0]),
        warmup_gradients=10.0,
        walk_gradients=90.0,
        batch_gradients=90.0,
        seconds=1.0,
        transitions=9,
        thinning=1,
        rhat=rhat,
        ess=500.0,
        ess_per_1000_gradients=1.0,
        acceptance=0.8,
        divergent_share=divergent,
        modes=None,
        tuning={},
        problems=(),
    )
    if failure:
        return pc.KernelResult(name, "", (), None, failure)
    runs = [run._replace(seed=seed, scores=np.array([2.0, 2 * r])) for seed, r in enumerate(ratios)]
    return pc.KernelResult(name, "", tuple(runs), summarise(runs, [2.0] * len(runs)), None)


def stated(*results, seeds=(0, 1, 2), beta=1.0):
    protocol = pc.Protocol(
        "Fréchet distance", 20_000, 256, 100, beta, seeds, "none", None, 8, "cpu", "float32", {}, ()
    )
    base = pc.BaseResult(np.full(len(seeds), 2.0), interval([2.0] * len(seeds)), None)
    kernels = {result.kernel: result for result in results}
    return pc.verdict(pc.Comparison(kernels, base, MeanSpread(0.0, 0.0, 20), protocol))


def test_verdict_says_what_the_intervals_say():
    said = stated(
        made("NUTS", [0.63, 0.64, 0.65]),
        made("HMC", [0.60, 0.66, 0.70]),
        made("Langevin", [0.7, 0.71, 0.72], rhat=1.3),
        made("ChEES", [0.9, 1.1, 1.0]),
        made("MALA", [1.2, 1.21, 1.19]),
        made("Kinetic", [0.5, 0.5, 0.5], divergent=0.2),
        made("IMH", [], failure="seed 0: RuntimeError: out\nof memory"),
    )
    assert said == (
        "At 20,000 gradient evaluations a chain, warm-up included, NUTS lowers the Fréchet "
        "distance to 0.64 ± 0.02 of the base's (HMC to 0.65 ± 0.13); MALA raises the Fréchet "
        "distance to 1.20 ± 0.02 of the base's; no difference from the base's Fréchet distance is "
        "shown for ChEES to 1.00 ± 0.25 of it; Langevin has not converged (R-hat 1.30), its score "
        "being 0.71 ± 0.02 of the base's; Kinetic diverges in 20% of its draws, its score being "
        "0.500 ± 0.000 of the base's; IMH failed (seed 0: RuntimeError: out of memory)."
    )
    assert len([mark for mark in said if mark == "\n"]) == 0


def test_verdict_does_not_claim_what_is_not_known():
    assert "has not converged (R-hat unknown" in stated(made("HMC", [0.5] * 3, rhat=math.nan))
    assert "has not converged (R-hat 1.011)" in stated(made("HMC", [0.5] * 3, rhat=1.0111))
    assert "lowers" not in stated(made("HMC", [0.5] * 3, rhat=1.0111))
    assert "not above 0 for every seed" in stated(made("HMC", [0.5, math.nan, 0.5]))
    one = stated(made("HMC", [0.5]), seeds=(0,), beta=20.0)
    assert "and β = 20" in one and "to 0.50 of the base's (one seed, hence no intervals)." in one


def test_convergence_looks_at_modes_too():
    labels = np.repeat([[0], [1], [1], [0]], 20, axis=1)
    result = made("HMC", [0.5, 0.5])
    runs = [seed_run._replace(modes=mode_summary(labels, 2)) for seed_run in result.runs]
    summary = summarise(runs, [2.0, 2.0])
    assert summary.rhat == math.inf and summary.mode_rhat == math.inf


def test_base_scores_of_zero_or_less_leave_no_ratio():
    summary = summarise(made("HMC", [0.5, 0.5]).runs, [2.0, -0.1])
    assert math.isnan(summary.end_ratio.mean) and summary.end.mean == 1.0


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12, 13, 20, 100])
def test_interval_is_students(count):
    values = np.random.default_rng(count).normal(size=count)
    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    found = interval(values.tolist())
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-3)
    assert found.count == count


def test_common_curve_interpolates_between_seeds():
    result = made("HMC", [0.5, 0.7])
    one = result.runs[0]._replace(gradients=np.array([10.0, 110.0]), scores=np.array([2.0, 1.0]))
    other = result.runs[1]._replace(gradients=np.array([20.0, 120.0]), scores=np.array([3.0, 1.0]))
    curve = pc.common_curve(result._replace(runs=(one, other)))
    assert curve.gradients.tolist() == [20.0, 110.0]
    np.testing.assert_allclose(curve.scores, [[1.9, 1.0], [3.0, 1.2]])
    assert curve.stationary == 1.0 and curve.stationary_interval == (1.0, 1.0)


def test_progress_goes_to_standard_error(capsys):
    small(progress=True)
    told = capsys.readouterr()
    assert told.out == "" and "compare" in told.err
    small()
    told = capsys.readouterr()
    assert told.out == told.err == ""
