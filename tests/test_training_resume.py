"""A training that stops anywhere and goes on is, bit for bit, one that never stopped."""

import io
import os
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from killed_training import KILLS, enduring
from torch.utils.data import DataLoader, TensorDataset
from training_worker import (
    CLOSED,
    DATA,
    DV,
    SMALL,
    batch_norm,
    bits,
    figures,
    model,
    spectral,
    spoilt_batches,
)

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader
from pyro_gebm.training import ChainsConfig, GuardConfig, ReplayConfig
from pyro_gebm.training.processes import Processes

HERE = Path(__file__).parent
HELD_OUT = DATA[:20]


def in_order_of_a_generator():
    return BatchLoader(DATA, 8, generator=torch.Generator().manual_seed(2))


def shuffled():
    return DataLoader(TensorDataset(DATA), batch_size=8, shuffle=True)


def spoilt():
    return spoilt_batches((3, 9, 11), Processes(0, 1))


def overflowing():
    """One batch so large that its float16 gradient is infinite, unless the loss's scale falls."""
    batches = list(DATA.split(8))
    batches[1] = 3 * batches[1]
    return batches


def warming(optimizer):
    """A schedule made of two, which keep their rates in places of their own."""
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], milestones=[3])


CONTRASTIVE = {"objective": "contrastive", "mode": "energy"}
KINDS = {
    "kale": {},
    "DataLoader": {"loader": shuffled},
    "gan": {"objective": "gan", "loader": shuffled},
    "donsker_varadhan": DV | {"accumulate": 3},
    "contrastive": CONTRASTIVE | {"replay": ReplayConfig(size=40, steps=2)},
    "closed form": CLOSED | {"log_partition_start": 64, "schedule": "constant"},
    "joint": {"update": "joint", "latents_per_datum": 2},
    "boosts": {"boost_steps": 4, "boost_every": 3, "penalty_every": 3},
    "chains": {"chains": ChainsConfig(steps=2, use_for="both", persistent=True)},
    "fresh chains": {"chains": ChainsConfig(steps=2), "loader": shuffled},
    "patience": {"refit_patience": 2, "refit_lr": 1.0, "evaluate_every": 1},
    "batch norm": {"build": batch_norm, "loader": shuffled},
    "spectral norm": {"build": spectral},
    "own schedule": {"lr_schedule": warming},
    "float16": {
        "build": lambda: model(dtype=torch.float32),
        "precision": "float16",
        "loader": overflowing,
    },
    "rolled back": {"loader": spoilt, "guard": GuardConfig(snapshot_every=1)},
    "rolled back several steps": {
        "loader": spoilt,
        "guard": GuardConfig(snapshot_every=3, max_rollbacks=4),
    },
}


class Run:
    """A trainer of one of the kinds, and its loader."""

    def __init__(self, kind, **more):
        settings = SMALL | {"base_steps": 5, "refit_steps": 5} | KINDS[kind] | more
        build = settings.pop("build", model)
        self.loader = settings.pop("loader", in_order_of_a_generator)()
        schedule = settings.pop("lr_schedule", None)
        config = pg.TrainConfig(**settings)
        self.trainer = pg.Trainer(build(), config, held_out=HELD_OUT, lr_schedule=schedule)

    def fit(self, steps=None):
        """Figures of ``steps`` steps, or of all that are left."""
        found = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "energy: the loss")
            for info in self.trainer.fit(self.loader):
                found.append(bits(figures(info)))
                if len(found) == steps:
                    break
        return found

    def state(self):
        return bits(self.trainer.state_dict())


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def whole_run(kind):
    """All figures, the state at the end, and states that were saved after each step."""
    run, saved, infos = Run(kind), [], []
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "energy: the loss")
        for info in run.trainer.fit(run.loader):
            infos.append(bits(figures(info)))
            saved.append(through_a_file(run.trainer.state_dict()))
    return infos, run.state(), saved


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_process_goes_on_bit_for_bit_from_any_step(kind):
    infos, end, saved = whole_run(kind)
    assert {state["phase"] for state in saved} == {"alternate", "refit"}
    if kind == "patience":
        assert len(infos) < 10, "it did not stop early"
    for done, state in enumerate(saved, start=1):
        torch.manual_seed(100 + done)
        run = Run(kind)
        torch.randn(done)
        run.trainer.load_state_dict(state)
        torch.randn(done)
        assert run.fit() == infos[done:]
        assert run.state() == end


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_may_be_left_and_entered_again(kind):
    infos, end, _ = whole_run(kind)
    run, parts = Run(kind), []
    torch.manual_seed(3)
    for steps in (1, 3, 1, 2, None):  # in both phases, and at the end of the first
        parts += run.fit(steps)
    assert parts == infos
    assert run.state() == end


def test_after_the_end_a_second_training_goes_on_likewise():
    first = Run("DataLoader")
    first.fit()
    saved = through_a_file(first.trainer.state_dict())
    assert saved["phase"] is None
    told, end = first.fit(), first.state()
    second = Run("DataLoader")
    second.trainer.load_state_dict(saved)
    assert (second.fit(), second.state()) == (told, end)


def test_a_saved_state_is_not_changed_by_going_on():
    run = Run("chains")
    run.fit(7)
    state = through_a_file(run.trainer.state_dict())
    before = bits(state)
    other = Run("chains")
    other.trainer.load_state_dict(state)
    other.fit()
    assert bits(state) == before


def test_divergences_before_the_stop_count_after_it():
    run, again = (Run("rolled back", guard=GuardConfig(max_rollbacks=2)) for _ in range(2))
    run.fit(3)
    again.trainer.load_state_dict(through_a_file(run.trainer.state_dict()))
    for chosen in (run, again):
        with pytest.raises(pg.TrainingError, match=r"diverged 2 times .* step 3; .* step 8"):
            chosen.fit()


def test_the_scale_of_a_float16_loss_moves_in_these_runs():
    scales = [state["steps"]["energy"]["scaler"]["scale"] for state in whole_run("float16")[2]]
    assert len(set(scales)) > 1


PARTS = ["gebm", "steps", "average", "best", "source", "guard", "phase", "step"]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_not_restored_is_noticed(part):
    """The comparisons above can fail: each part matters to what follows."""
    kind, done = ("patience", 7) if part == "best" else ("rolled back", 2)
    infos, end, saved = whole_run(kind)
    other = saved[5 if part == "phase" else 0]
    run = Run(kind)
    run.trainer.load_state_dict(saved[done - 1] | {part: other[part]})
    assert (run.fit(), run.state()) != (infos[done:], end)


def test_other_settings_are_refused_by_name():
    trainer = pg.Trainer(model(), pg.TrainConfig(**SMALL))
    state, before = through_a_file(trainer.state_dict()), bits(trainer.state_dict())
    for known in fields(pg.TrainConfig):
        other = state | {"config": state["config"] | {known.name: "another"}}
        with pytest.raises(ValueError, match=rf"^config: expected .*; got other {known.name}; "):
            trainer.load_state_dict(other)
    nested = state["config"] | {"guard": state["config"]["guard"] | {"max_rollbacks": 4}}
    with pytest.raises(ValueError, match="got other guard; "):
        trainer.load_state_dict(state | {"config": nested})
    assert bits(trainer.state_dict()) == before


def test_the_settings_in_a_state_build_the_trainer_that_takes_it():
    run = Run("rolled back")
    run.fit(2)
    state = through_a_file(run.trainer.state_dict())
    trainer = pg.Trainer(model(), pg.TrainConfig.from_dict(state["config"]), held_out=HELD_OUT)
    trainer.load_state_dict(state)
    assert bits(trainer.state_dict()) == bits(state)


def test_fifty_kills_end_as_an_undisturbed_training(tmp_path):
    script = HERE / "killed_training.py"
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    subprocess.run(
        [sys.executable, script, tmp_path], check=True, timeout=300, env=environment, cwd=HERE
    )
    told = torch.load(tmp_path / "told.pt", weights_only=True)
    assert told["kills"] == KILLS
    resumed = {step for run in told["started"] for step in run}
    assert len(resumed) > 8, "the kills came too early or too late to tell anything"
    ends = []
    for is_shuffled in (False, True):
        trainer, loader = enduring(is_shuffled)
        torch.manual_seed(3)
        for _ in trainer.fit(loader):
            pass
        ends.append(bits(trainer.state_dict()))
    for number in range(len(told["started"])):
        end = torch.load(tmp_path / str(number) / "end.pt", weights_only=True)
        assert bits(end) == ends[number % 2]
