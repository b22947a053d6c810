"""``sample_many``: tempering over the likelihood, and runs that go on."""

import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gebm import inference_data
from pyro_gebm.inverse import ready, sample_many
from pyro_gebm.inverse.problems import by_level, many_problems, tuned_by_problem
from pyro_gebm.inverse.ready import Plan, choose_ladder
from pyro_gebm.mcmc import HMC, MALA, NUTS, GlobalMoves
from pyro_gebm.mcmc.tempering import temper


def many(model, *observations, **settings):
    defaults = {"num_samples": 60, "warmup_steps": 60, "progress": False, "seed": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sample_many(model, *observations, **{**defaults, **settings})


def draws_of(idata, name="u"):
    return inference_data.values(idata, name).astype(float)


def conjugate(y, width):
    """u ~ N(0, I) in two dimensions, y ~ N(u, width²): N(y, width²) / (1 + width²) a posteriori."""
    u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(u, width).to_event(1), obs=y)


Y = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-0.5, 0.5]])
WIDTH = torch.tensor([0.1, 1.0, 0.3])


def assert_exact(idata):
    u, gain = draws_of(idata), (1 / (1 + WIDTH**2)).numpy()
    mean, deviation = gain[:, None] * Y.numpy(), (WIDTH.numpy() * np.sqrt(gain))[:, None]
    # Standard errors from the chains: Student's t with 15 degrees of freedom, 12 scores.
    for values, truth in ((u, mean), ((u - mean) ** 2, deviation**2)):
        by_chain = values.mean(1)
        error = by_chain.std(0, ddof=1) / np.sqrt(len(by_chain))
        assert (abs(by_chain.mean(0) - truth) < 6 * error).all()
        assert (error < 0.3 * deviation).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"tempering": (0, 0.05, 1.0)},
        {"tempering": (0.02, 0.2, 1.0), "kernel": "MALA", "thinning": 2},
        {"tempering": (0.1, 1.0), "kernel": NUTS(max_tree_depth=3), "num_samples": 15},
    ],
    ids=str,
)
def test_tempered_posteriors_are_exact(settings):
    idata = many(conjugate, Y, WIDTH, **{"num_chains": 16, "num_samples": 50, **settings})
    assert_exact(idata)
    ladder = idata.attrs["tempering"]
    assert ladder[1:].tolist() == [x for x in settings["tempering"] if x]
    steps = inference_data.values(idata, "step_size", "sample_stats")[:, 0]
    kept = inference_data.sampling_state(idata)["step_size"][-3 * 16 :].reshape(3, 16)
    np.testing.assert_array_equal(steps, kept.T)  # of the coldest replicas
    swaps = inference_data.values(idata, "swap_acceptance_rate", "sample_stats")
    assert 0.05 < np.nanmean(swaps) < 1


def two_wells(y):
    """Wells at -4 and 4, both 0.3 wide, of log weights 0 and y: a posteriori exp(y) to one."""
    u = pyro.sample("u", dist.Normal(torch.zeros(()), 4.0))
    wells = [0.5 * (u / 4) ** 2 - 0.5 * ((u - side * 4) / 0.3) ** 2 for side in (-1, 1)]
    pyro.factor("wells", torch.logaddexp(wells[0], wells[1] + y))


def test_tempering_has_the_weights_of_modes_where_plain_chains_stay():
    y = torch.tensor([0.0, 1.5])
    start = {"u": torch.full((2, 16), -4.0)}
    settings = {"num_chains": 16, "initial_params": start, "kernel": "MALA", "num_samples": 250}
    stuck = draws_of(many(two_wells, y, **settings))
    assert (stuck < 0).all()
    idata = many(two_wells, y, tempering=(0, 0.01, 0.03, 0.1, 0.3, 1.0), **settings)
    right = (draws_of(idata) > 0).mean(1)  # (chain, problem)
    error = right.std(0, ddof=1) / 4
    truth = torch.sigmoid(y).numpy()
    assert (abs(right.mean(0) - truth) < 5 * error).all() and (error < 0.1).all()
    assert (np.asarray(idata.attrs["rhat_by_problem"]) < 1.2).all()


def test_a_number_of_replicas(monkeypatch):
    monkeypatch.setattr(ready, "PILOT_ROUNDS", 1)
    monkeypatch.setattr(ready, "PILOT_STEPS", 5)
    idata = many(conjugate, Y, WIDTH, tempering=4, num_samples=3, warmup_steps=3)
    ladder = idata.attrs["tempering"]
    assert len(ladder) == 4 and ladder[0] == 0 and ladder[-1] == 1 and (np.diff(ladder) > 0).all()


def test_levels_and_problems_are_told_apart():
    problems = many_problems(conjugate, (Y, WIDTH))
    u = torch.randn(2 * 3 * 4, 2, generator=torch.Generator().manual_seed(1))
    found = by_level(problems, 4)(u).view(2, 3, 4)
    for problem in range(3):
        alone = many_problems(conjugate, (Y[problem][None], WIDTH[problem][None]))
        for level in range(2):
            rows = u.view(2, 3, 4, 2)[level, problem]
            torch.testing.assert_close(found[level, problem], alone.potential_fn(rows))
    tuned = tuned_by_problem(temper(MALA(), (0.2, 1.0), problems.reference), 3)
    assert tuned.num_levels == 6
    assert tuned.target_accept_prob == MALA().target_accept_prob != HMC().target_accept_prob


def test_the_sharpest_problem_decides_how_many_replicas(monkeypatch):
    def levels(widths):
        y = torch.zeros(len(widths), 2)
        problems = many_problems(conjugate, (y, torch.tensor(widths)))
        plan = Plan(problems, MALA(), 4, 30, 1, 1, None, None, "auto", False)
        return len(choose_ladder(plan, 0))

    monkeypatch.setattr(ready, "PILOT_ROUNDS", 1)
    monkeypatch.setattr(ready, "PILOT_STEPS", 20)
    assert levels([1.0, 1.0]) <= 3 < levels([1.0, 0.003])


# --- going on ------------------------------------------

TEMPERED = {"tempering": (0.2, 1.0), "kernel": "MALA"}
RUNS = [
    {},
    {"kernel": "NUTS", "warmup_steps": 10},
    {"global_moves": GlobalMoves(num_proposals=4, every=2), "thinning": 2},
    TEMPERED,
]


@pytest.mark.parametrize("settings", RUNS, ids=str)
def test_a_resumed_run_goes_on_bit_for_bit(settings, tmp_path):
    settings = {"num_chains": 3, "warmup_steps": 20, **settings}
    whole = many(conjugate, Y, WIDTH, num_samples=9, **settings)
    first = many(conjugate, Y, WIDTH, num_samples=5, **settings)
    inference_data.save(first, tmp_path / "first.nc")
    first = inference_data.load(tmp_path / "first.nc")
    thinning = settings.get("thinning", 1)
    rest = many(conjugate, Y, WIDTH, num_samples=4, thinning=thinning, resume=first, seed=None)
    together = np.concatenate([draws_of(first), draws_of(rest)], 1)
    np.testing.assert_array_equal(together, draws_of(whole))
    assert rest.attrs["kernel"] == whole.attrs["kernel"] and rest.attrs["tuning_steps"] == 0
    for name in ("tempering", "global_moves"):
        np.testing.assert_array_equal(rest.attrs.get(name), whole.attrs.get(name))


def test_what_is_resumed_must_be_the_same_run():
    first = many(conjugate, Y, WIDTH, num_samples=5, warmup_steps=5)
    tempered = many(conjugate, Y, WIDTH, num_samples=5, warmup_steps=5, **TEMPERED)
    again = partial(many, conjugate, seed=None, num_samples=2)
    for call, message in (
        (lambda: again(Y, WIDTH, resume={}), "resume: expected what sample"),
        (lambda: again(Y, WIDTH, resume=first, kernel="MALA"), "expected a run of MALA with 4"),
        (lambda: again(Y, WIDTH, resume=first, num_chains=5), "with 5 chains for each of 3"),
        (lambda: again(Y[:2], WIDTH[:2], resume=first), "for each of 2 problems; got .* of 3"),
        (lambda: again(Y + 1, WIDTH, resume=first), "expected the model and the observations"),
        (lambda: again(Y, WIDTH, resume=first, seed=3), "seed: expected None or 0"),
        (lambda: again(Y, WIDTH, resume=first, tempering="auto"), "tempering: expected None"),
        (
            lambda: again(Y, WIDTH, resume=tempered, global_moves=GlobalMoves()),
            "global_moves: expected None",
        ),
        (
            lambda: again(Y, WIDTH, resume=first, initial_params={"u": Y}),
            "initial_params: expected None with resume",
        ),
        (lambda: again(Y, WIDTH, tempering=(0.5, 0.2)), "tempering: expected None, .auto."),
        (
            lambda: again(Y, WIDTH, tempering=3, global_moves=GlobalMoves()),
            "global_moves: expected None with tempering",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
