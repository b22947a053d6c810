"""SIGKILL at any moment: no corrupt checkpoint in place, and training goes on bit-exactly."""

import os
import random
import shutil
import signal
import time
import warnings

import pytest
import torch
from stand_in import STEPS, StandIn, at_line, flat, train

from pyro_gebm import _files
from pyro_gebm.training import checkpoints as module
from pyro_gebm.training.checkpoints import Checkpoints

SAVING = (module.__file__, module.container.__file__, _files.__file__)


def forked(target, *args):
    """The process id of a child that runs ``target`` and then ends with code 0."""
    with warnings.catch_warnings():
        # Python 3.12 warns of threads; the child does nothing that needs another one.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            target(*args)
            code = 0
        finally:
            os._exit(code)
    return child


def ending(child):
    """The exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def steps_in(folder):
    return sorted(int(file.stem.split("-")[1]) for file in folder.glob("checkpoint-*.pt"))


def opened(folder, keep=2):
    """The checkpoints of a folder in which none is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Checkpoints(folder, keep=keep)


def state(step, size=10):
    return {"w": torch.full((size,), float(step))}


def worth(step):
    return {"held_out_bound": float(step * 7919 % 101)}


def save_for_ever(folder):
    parent, checkpoints = os.getppid(), opened(folder)
    found = checkpoints.latest()
    step = 0 if found is None else found.step
    while os.getppid() == parent:
        step += 1
        checkpoints.save(state(step, 30_000), step, worth(step))


def test_fifty_killed_writers_leave_whole_files(tmp_path):
    pauses, reached = random.Random(0), 0
    for _ in range(50):
        child = forked(save_for_ever, tmp_path)
        while max(steps_in(tmp_path), default=0) <= reached:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # still at work
            time.sleep(0.001)
        time.sleep(pauses.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert ending(child) == -signal.SIGKILL
        checkpoints = opened(tmp_path)
        latest, best = checkpoints.latest(), checkpoints.best()
        assert latest.step > reached and torch.equal(
            latest.state["w"], state(latest.step, 30_000)["w"]
        )
        reached = latest.step
        assert best.step == max(
            range(1, reached + 1), key=lambda step: worth(step)["held_out_bound"]
        )
        assert len(steps_in(tmp_path)) <= 4  # two, the best, and one that was to go


def save_killed_at(folder, line):
    checkpoints = Checkpoints(folder, keep=1)
    with at_line(line, kill_me, SAVING) as lines:
        checkpoints.save(state(3), 3, {"held_out_bound": 0.0})
    assert lines[0] > 50, "the lines were not watched"


def test_a_save_killed_at_a_line_is_done_or_not(tmp_path):
    before = tmp_path / "before"
    for step, bound in [(1, 5.0), (2, 1.0)]:
        Checkpoints(before, keep=1).save(state(step), step, {"held_out_bound": bound})
    seen, line, code = set(), 1, None
    while code != 0:
        line += 4  # a fork takes a while
        folder = shutil.copytree(before, tmp_path / str(line))
        code = ending(forked(save_killed_at, folder, line))
        assert code in (0, -signal.SIGKILL)
        checkpoints = opened(folder, keep=1)
        latest = checkpoints.latest()
        assert torch.equal(latest.state["w"], state(latest.step)["w"])
        assert checkpoints.best().step == 1
        parts = any(file.suffix == ".part" for file in folder.iterdir())
        left = (latest.step, parts, tuple(steps_in(folder)))
        if left not in seen:
            checkpoints.save(state(4), 4, {})  # the next one clears up
            names = sorted(file.name for file in folder.iterdir())
            assert names == ["checkpoint-00000001.pt", "checkpoint-00000004.pt"]
        seen.add(left)
    # Before, with part of a file beside, moved but the older one still there, done.
    assert seen == {
        (2, False, (1, 2)),
        (2, True, (1, 2)),
        (3, False, (1, 2, 3)),
        (3, False, (1, 3)),
    }


def train_killed_at(folder, line):
    with at_line(line, kill_me):
        train(folder)


@pytest.mark.parametrize("seed", range(3))
def test_a_training_killed_time_and_again_ends_as_one_that_was_not(tmp_path, seed):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with at_line(0, None) as lines:
        assert not train(whole)
    choose, reached = random.Random(seed), set()
    for _ in range(12):
        code = ending(forked(train_killed_at, killed, choose.randint(lines[0] // 6, lines[0] // 2)))
        assert code in (0, -signal.SIGKILL)
        found = Checkpoints(killed / "checkpoints").latest()
        reached.add(found and found.step)
    assert len(reached) >= 3, "the kills came too early or too late to tell anything"
    train(killed)
    left, other = (Checkpoints(folder / "checkpoints").latest() for folder in (whole, killed))
    assert left.step == STEPS and flat(left.state) == flat(other.state)
    assert (whole / "log.jsonl").read_bytes() == (killed / "log.jsonl").read_bytes()
    assert steps_in(whole / "checkpoints") == steps_in(killed / "checkpoints")


@pytest.mark.parametrize("part", ["net", "optimizer", "schedule", "loader", "averaged", "random"])
def test_a_part_that_is_not_restored_is_noticed(tmp_path, monkeypatch, part):
    """The comparison above can fail: each part matters to the end."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    with at_line(0, None) as lines:
        train(whole)
    honest = StandIn.load_state_dict

    def load_but(self, saved):
        fresh = StandIn().state_dict()
        names = ["net", "optimizer", "schedule", "loader"]
        if part in names:
            index = names.index(part)
            saved["parts"][index] = fresh["parts"][index]
        else:
            saved[part] = fresh[part]
        honest(self, saved)

    monkeypatch.setattr(StandIn, "load_state_dict", load_but)
    with at_line(lines[0] // 2, lambda: signal.raise_signal(signal.SIGINT)):
        assert train(broken)
    train(broken)
    left, other = (Checkpoints(folder / "checkpoints").latest() for folder in (whole, broken))
    assert flat(left.state) != flat(other.state)
