"""Checkpoints of a training: which stay, which is best, and what is told of damage."""

import errno
import math
import os
import random

import pytest
import torch
from stand_in import StandIn, flat

from pyro_gebm.training.checkpoints import Checkpoints, remove_checkpoints
from pyro_gebm.training.container import CheckpointError


def bound(value):
    return {"held_out_bound": value}


def steps_in(folder):
    return sorted(int(file.stem.split("-")[1]) for file in folder.glob("checkpoint-*.pt"))


def damage(path):
    path.write_bytes(path.read_bytes()[:-1])


# --- round trips ------------------------------------------


def test_a_state_comes_back_bit_by_bit(tmp_path):
    trainer = StandIn()
    for _ in zip(range(7), trainer.fit(), strict=False):
        pass
    state = trainer.state_dict()
    path = Checkpoints(tmp_path).save(state, 7, {"held_out_bound": 0.1, "ess": math.inf})
    found = Checkpoints.load(path)
    assert path.name == "checkpoint-00000007.pt"
    assert flat(found.state) == flat(state)
    assert (found.path, found.step) == (path, 7)
    assert found.metrics == {"held_out_bound": 0.1, "ess": math.inf}


# --- which stay ------------------------------------------


def oracle(history, larger_is_better):
    """Step of the first best of all that were ever saved, by looking at each."""
    best = None
    for step, value in history:
        if not math.isfinite(value):
            continue
        if best is None or (value > best[1] if larger_is_better else value < best[1]):
            best = (step, value)
    return best and best[0]


@pytest.mark.parametrize("seed", range(12))
def test_the_last_and_the_best_stay(tmp_path, seed):
    choose = random.Random(seed)
    keep, larger = choose.randint(1, 4), choose.random() < 0.5

    def opened():
        return Checkpoints(tmp_path, keep=keep, larger_is_better=larger)

    checkpoints, history, step = opened(), [], 0
    for _ in range(25):
        step += choose.randint(1, 3)
        value = choose.choice(
            [choose.gauss(0, 1), choose.randint(-1, 1), math.nan, math.inf, -math.inf]
        )
        measured = choose.random() < 0.9
        checkpoints.save({"step": step}, step, bound(value) if measured else {})
        history.append((step, value if measured else math.nan))
        if choose.random() < 0.3:
            checkpoints = opened()  # as after a restart
        best = oracle(history, larger)
        expected = {s for s, _ in history[-keep:]} | ({best} if best else set())
        assert steps_in(tmp_path) == sorted(expected)
        assert checkpoints.latest().state == {"step": step}
        found = checkpoints.best()
        assert (found and found.state) == (best and {"step": best})


def test_another_metric_can_decide(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, metric="distance", larger_is_better=False)
    for step, distance in enumerate([3.0, 1.0, 2.0], 1):
        checkpoints.save({}, step, {"distance": distance, "held_out_bound": float(step)})
    assert checkpoints.best().step == 2
    with pytest.raises(ValueError, match=r"metrics: expected 'distance'.*got loss"):
        checkpoints.save({}, 4, {"loss": 1.0})
    with pytest.raises(ValueError, match="metrics: expected one number"):
        checkpoints.save({}, 4, {"distance": torch.ones(2)})
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_the_newest_step_may_be_written_again_and_keeps_its_metric(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save({"a": 1}, 10, bound(0.5))
    checkpoints.save({"a": 2}, 10, {})  # Ctrl-C right after
    checkpoints.save({"a": 3}, 11, bound(0.1))
    best = Checkpoints(tmp_path).best()
    assert (best.step, best.state, best.metrics) == (10, {"a": 2}, bound(0.5))


def test_a_training_that_goes_on_from_an_older_step_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5)
    for step in (10, 20, 30):
        checkpoints.save({"a": step}, step, bound(float(step)))
    with pytest.raises(ValueError, match=r"step: expected 30.*got 21.*discard_after"):
        checkpoints.save({}, 21, {})
    damage(tmp_path / "checkpoint-00000030.pt")
    with pytest.warns(UserWarning, match="00000030"):
        checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.discard_after(10)
    assert steps_in(tmp_path) == [10] and checkpoints.best().step == 10
    checkpoints.save({}, 21, {})
    assert steps_in(tmp_path) == [10, 21]


# --- damage ------------------------------------------


def test_a_damaged_newest_is_named_and_the_next_taken(tmp_path):
    writer = Checkpoints(tmp_path)
    for step, value in [(1, 5.0), (2, 4.0), (3, 9.0)]:
        writer.save({"a": step}, step, bound(value))
    damage(tmp_path / "checkpoint-00000003.pt")
    with pytest.warns(UserWarning, match=r"checkpoint-00000003\.pt: damaged") as told:
        assert writer.latest().step == 2  # met whole, damaged since
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match=r"checkpoint-00000003\.pt: damaged") as told:
        opened = Checkpoints(tmp_path)
    assert [told[0].filename, len(told)] == [__file__, 1]
    with pytest.warns(UserWarning, match="00000003"):
        assert (opened.latest().step, opened.best().step) == (2, 1)
    opened.save({"a": "again"}, 3, bound(0.0))  # the damaged file is replaced
    assert Checkpoints(tmp_path).latest().state == {"a": "again"}


def test_damaged_files_do_not_count_among_the_last(tmp_path):
    for step in (1, 2, 3):
        Checkpoints(tmp_path).save({}, step, {})
    damage(tmp_path / "checkpoint-00000003.pt")
    with pytest.warns(UserWarning, match="00000003"):
        checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save({}, 4, {})
    assert steps_in(tmp_path) == [2, 3, 4]


def test_nothing_and_nothing_but_damage_are_told_apart(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.latest() is None and checkpoints.best() is None
    assert not (tmp_path / "none").exists()  # looking makes no folder
    for step in (1, 2):
        damage(checkpoints.save({}, step, bound(1.0)))
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(CheckpointError, match=r"00000001\.pt, checkpoint-00000002\.pt"),
    ):
        checkpoints.latest()


def test_who_only_reads_sees_what_a_training_writes_meanwhile(tmp_path):
    writer = Checkpoints(tmp_path, keep=1)
    writer.save({"a": 1}, 1, bound(1.0))
    (tmp_path / ".checkpoint-00000002.pt.123.part").write_text("being written")
    reader = Checkpoints(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # the part is the writer's
    writer.save({"a": 2}, 2, bound(2.0))
    assert steps_in(tmp_path) == [2]  # what the reader has met is gone
    assert reader.best().step == 2
    writer.save({"a": 3}, 3, bound(0.0))
    assert reader.latest().step == 3
    writer.discard_after(2)
    assert reader.latest().step == 2


def test_other_files_are_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    others = ["checkpoint-7.pt", "checkpoint-best.pt", "notes.txt", ".other.pt.3.part"]
    for name in others:
        (tmp_path / name).write_text("")
    (tmp_path / ".checkpoint-00000009.pt.123.part").write_text("left by a killed writer")
    for step in (1, 2):
        checkpoints.save({}, step, {})
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {*others, "checkpoint-00000002.pt"}
    remove_checkpoints(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(others)


def test_a_full_disk_leaves_the_older_ones(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save({"a": 1}, 1, bound(1.0))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        checkpoints.save({"a": 2}, 2, bound(2.0))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint-00000001.pt"]
    assert checkpoints.latest().state == checkpoints.best().state == {"a": 1}
