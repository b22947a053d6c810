"""Steps that diverge: back to the last good state, with lower rates, and an end after three."""

import math
import random
import re
import warnings

import pytest
import torch
from planned_training import BATCHES, Planned
from torch import nn
from training_worker import CLOSED, DV, SMALL, bits, figures

import pyro_gebm as pg
from pyro_gebm.training import ChainsConfig, ReplayConfig

WRONG = {
    "data": r"^energy: the loss, nan, or its gradient is not finite at energy step \d+",
    "energy value": r"^energy: the loss, nan, or its gradient is not finite at energy step \d+",
    "energy gradient": r"^energy: the loss, [-\d.]+, or its gradient is not finite at energy",
    "energy gap": r"^energy: the energy gap, [\d.e+]+ nats, exceeds 50 at energy step \d+",
    "generator gradient": r"^base: the loss, [-\d.]+, or its gradient is not finite at energy",
}


def tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for part in parts for tensor in tensors(part)]


def assert_finite(weights):
    found = tensors(weights)
    assert found and all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("how", WRONG)
def test_training_goes_back_to_the_last_snapshot(how):
    run = Planned({5: how})
    infos = list(run.fit())
    assert [info.step for info in infos] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert [info.rollbacks for info in infos] == [0] * 5 + [1] * 6
    ((message, weights),) = run.warned
    assert message.endswith("; rolled back to the last good state, with rates multiplied by 0.5")
    assert re.match(WRONG[how], message)
    assert weights == run.good(4)
    assert weights not in (run.good(5), run.good(3))
    assert_finite(run.weights())


def test_the_second_in_a_row_goes_to_the_snapshot_before():
    run = Planned({5: "data", 6: "energy gap"})
    assert len(list(run.fit())) == 10
    assert [weights for _, weights in run.warned] == [run.good(4), run.good(2)]


def test_the_snapshot_that_did_not_help_is_forgotten():
    # After two rollbacks two good steps make a new snapshot; before it stands the older one.
    run = Planned({5: "data", 6: "data", 9: "data", 10: "data"})
    list(run.fit())
    back = [weights for _, weights in run.warned]
    assert back == [run.good(4), run.good(2), run.good(7), run.good(2)]


def test_good_steps_between_begin_the_count_anew():
    run = Planned(dict.fromkeys([2, 5, 8, 11, 14, 17], "data"), base_steps=20)
    infos = list(run.fit())
    assert infos[-1].rollbacks == 6
    assert [weights for _, weights in run.warned] == [run.good(n) for n in (2, 4, 6, 8, 10, 12)]


@pytest.mark.parametrize(("most", "back_to"), [(1, 4), (2, 2), (3, 2)])
def test_too_many_in_a_row_end_it_with_what_was_seen(most, back_to):
    run = Planned({5: "data", 6: "energy gap", 7: "energy value"}, guard={"max_rollbacks": most})
    with pytest.raises(pg.TrainingError) as raised:
        list(run.fit())
    message = str(raised.value)
    assert message.startswith(f"training diverged {most} times without 2 good steps between: ")
    assert message.count("at energy step") == most
    assert ("energy gap" in message) == (most > 1)
    assert "Lower the learning rates" in message
    assert len(run.warned) == most - 1
    assert bits(run.weights()) == run.good(back_to)
    assert_finite(run.weights())
    factor = 0.5 ** (most - 1)  # rates are where the schedule is, and not those of the snapshot
    expected = [cosine(SMALL[rate], 12)[4 + most] * factor for rate in ("energy_lr", "base_lr")]
    assert run.rates() == pytest.approx(expected, rel=1e-9)


def test_the_first_round_may_go_wrong():
    run = Planned({0: "data"})
    infos = list(run.fit())
    assert infos[0].step == 2 and infos[0].rollbacks == 1
    expected = run.good(0)[:-1]  # all but the running average, which is not there before
    assert run.warned[0][1][: len(expected)] == expected


def test_a_refit_that_diverges_goes_back_within_the_refit():
    settings = {"mode": "both", "base_steps": 3, "refit_steps": 6}
    run = Planned({3: "data", 4: "data"}, **settings)
    infos = list(run.fit())
    assert [info.step for info in infos] == [1, 2, 3, 3, 4, 5, 6]
    base = [bits({k: v for k, v in w[0].items() if "base" in k}) for w in run.kept.values()]
    assert base[4:] == [base[-1]] * 4  # nothing of the alternation came back


# --- rates ------------------------------------------


def cosine(rate, total):
    return [rate * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total + 1)]


def warming(optimizer):
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=6)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], milestones=[6])


def one_cycle(optimizer):
    highest = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=14)


def by_a_function(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def of_torch(schedule, rate, total):
    """The rates of a torch schedule alone."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=rate)
    made, rates = schedule(optimizer), [optimizer.param_groups[0]["lr"]]
    for _ in range(total):
        optimizer.step()
        made.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


SCHEDULES = {
    "cosine": ({"schedule": "cosine"}, cosine),
    "constant": ({"schedule": "constant"}, lambda rate, total: [rate] * (total + 1)),
}
for _schedule in (warming, one_cycle, by_a_function):
    _rates = of_torch.__get__(_schedule)
    SCHEDULES[_schedule.__name__] = ({"lr_schedule": _schedule}, _rates)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_lowered_and_stay_so(name):
    settings, schedule = SCHEDULES[name]
    run = Planned({3: "data", 7: "energy gap"}, guard={"rate_factor": 0.25}, **settings)
    energy, base = (schedule(SMALL[rate], 12) for rate in ("energy_lr", "base_lr"))
    for info in run.fit():
        factor = 0.25**info.rollbacks
        expected = [energy[info.step] * factor, base[info.step] * factor]
        assert run.rates() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert info.rollbacks == 2


# --- no other trace ------------------------------------------


def told(run):
    """All figures of a training with the same random numbers as any other."""
    torch.manual_seed(3)
    return [bits(figures(info)) for info in run.fit()]


@pytest.mark.parametrize("update", ["alternating", "joint"])
def test_gradients_that_someone_left_are_none_of_a_step(update):
    run, other = Planned({}, update=update), Planned({}, update=update)
    for parameter in run.gebm.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert told(run) == told(other)


def test_a_joint_step_that_is_left_in_the_middle_leaves_no_gradient():
    # The base's half ends the first, when there is a gradient of the energy; that of the energy
    # the second. Both go back to the same state.
    run, other = (Planned({5: how}, update="joint") for how in ("generator gradient", "data"))
    assert told(run) == told(other)
    assert len(run.warned) == len(other.warned) == 1


@pytest.mark.parametrize("how", ["value", "gradient", "gap"])
def test_a_refused_step_leaves_the_closed_form_constant(how):
    run = Planned({}, **CLOSED)
    trainer, gebm = run.trainer, run.gebm
    trainer.energy_step(BATCHES[0])
    before = bits(gebm.state_dict())
    gebm.energy.how = how
    with pytest.raises(pg.TrainingError):
        trainer.energy_step(BATCHES[1])
    assert bits(gebm.state_dict()) == before


@pytest.mark.parametrize("phase", ["alternate", "refit"])
def test_a_constant_that_is_not_finite_is_refused(phase):
    run = Planned({}, log_partition_start=64, refit_steps=3)
    run.gebm.energy.how = "value"
    fit = run.trainer.fit if phase == "alternate" else run.trainer.refit_energy
    before = bits(run.weights())
    for _ in range(2):  # nor has the phase begun
        with pytest.raises(pg.TrainingError, match=r"log Z of .* samples of the base, inf, is not"):
            next(fit(BATCHES))
        assert bits(run.weights()) == before


class Floored(nn.Module):
    """-10 + softplus(w (x₀ + 10)): with w = 1 as good as linear, with w = -9 flat."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return nn.functional.softplus(self.weight * (x[:, 0] + 10)) - 10


@pytest.mark.parametrize(("weight", "flat"), [(-9.0, True), (1.0, False)])
def test_an_energy_at_its_floor_is_told_of(weight, flat):
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2)), Floored(weight))
    config = pg.TrainConfig(base_steps=0, refit_steps=1, evaluation_samples=64)
    data = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(pg.Trainer(gebm, config, held_out=data).fit([data]))
    told = [str(w.message) for w in caught if "it is at a floor" in str(w.message)]
    assert len(told) == flat
    assert all("the energy is -10 nats on all data and base samples" in each for each in told)


# --- fuzz ------------------------------------------


FUZZED = {
    "kale": {},
    "no floor": {"linear_from": math.inf, "base_loss": "amortized"},
    "donsker_varadhan": DV | {"accumulate": 2},
    "closed form": CLOSED | {"schedule": "constant"},
    "gan": {"objective": "gan"},
    "contrastive": {
        "objective": "contrastive",
        "mode": "energy",
        "replay": ReplayConfig(size=40, steps=2),
    },
    "chains": {"chains": ChainsConfig(steps=1, use_for="both", persistent=True)},
    "joint": {"update": "joint"},
    "batch norm": {"norm": True},
    "float16": {"dtype": torch.float32, "precision": "float16"},
}


@pytest.mark.parametrize("kind", FUZZED)
@pytest.mark.parametrize("seed", range(4))
def test_no_parameter_is_ever_not_finite(kind, seed):
    choose = random.Random(seed)
    numbers = [number for number in range(40) if choose.random() < 0.2]
    plan = {number: choose.choice(list(WRONG)) for number in numbers}
    settings = {"base_steps": 14, "refit_steps": 8, "energy_steps": 2, **FUZZED[kind]}
    run = Planned(plan, guard={"max_rollbacks": 4}, **settings)
    try:
        for _ in run.fit():
            assert_finite(run.weights())
    except pg.TrainingError as error:
        assert "at energy step" in str(error) or "log Z" in str(error)
    assert run.warned, "nothing went wrong"
    assert_finite(run.weights())
