"""A tiny training with everything that a resumed one must restore, and signals at chosen lines."""

import contextlib
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pyro_gebm
from pyro_gebm.data import BatchLoader
from pyro_gebm.report import MetricsLog
from pyro_gebm.training.checkpoints import Checkpoints
from pyro_gebm.training.interrupt import deferred_interrupt

WATCHED = (str(Path(pyro_gebm.__file__).parent), __file__)
STEPS, EVERY = 24, 5


class Info(NamedTuple):
    step: int
    loss: Tensor
    noise: Tensor


class StandIn:
    """Regression with Adam, a falling rate, averaged weights, and noise of the global generator.

    The gradient is written out: autograd does not outlive a fork everywhere.
    """

    def __init__(self):
        torch.manual_seed(1)
        self.net = nn.Linear(3, 1, bias=False)
        self.averaged = self.net.weight.detach().clone()
        self.optimizer = torch.optim.Adam(self.net.parameters(), 0.1)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        data = torch.randn(10, 3, generator=torch.Generator().manual_seed(2))
        self.loader = BatchLoader(data, 4, generator=torch.Generator().manual_seed(3))
        self.step = 0

    @torch.no_grad()
    def fit(self):
        while self.step < STEPS:
            x = next(self.loader)
            noise = torch.randn(len(x), 1)
            error = self.net(x) - x.sum(1, keepdim=True) + noise
            self.net.weight.grad = 2 * error.T @ x / len(x)
            self.optimizer.step()
            self.schedule.step()
            self.averaged.lerp_(self.net.weight, 0.1)
            self.step += 1
            yield Info(self.step, error.square().mean(), noise[0])

    def parts(self):
        return [self.net, self.optimizer, self.schedule, self.loader]

    def state_dict(self):
        return {
            "parts": [part.state_dict() for part in self.parts()],
            "averaged": self.averaged,
            "step": self.step,
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state):
        for part, saved in zip(self.parts(), state["parts"], strict=True):
            part.load_state_dict(saved)
        self.averaged.copy_(state["averaged"])
        self.step = state["step"]
        torch.set_rng_state(state["random"])


def train(folder):
    """Train, or go on with what is in ``folder``; whether a signal ended it."""
    trainer = StandIn()
    checkpoints = Checkpoints(folder / "checkpoints", keep=2, metric="loss", larger_is_better=False)
    found = checkpoints.latest()
    if found is not None:
        trainer.load_state_dict(found.state)
    with (
        deferred_interrupt() as interrupted,
        MetricsLog(folder / "log.jsonl", flush_every=3) as log,
    ):
        log.truncate_after(trainer.step)
        for info in trainer.fit():
            log.write(info.step, {"loss": info.loss, "noise": info.noise})
            last = info.step == STEPS or interrupted()
            if last or info.step % EVERY == 0:
                log.flush()
                checkpoints.save(trainer.state_dict(), info.step, {"loss": float(info.loss)})
            if last:
                break
    return interrupted()


def flat(value):
    """A state as pairs (place, leaf), tensors as bytes: equal only if equal bit by bit."""
    if isinstance(value, Tensor):
        return [("", (value.dtype, tuple(value.shape), value.numpy().tobytes()))]
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    else:
        return [("", value)]
    return [(f"{key}/{place}", leaf) for key, part in entries for place, leaf in flat(part)]


@contextlib.contextmanager
def at_line(number, action, watched=WATCHED):
    """Call ``action`` when line ``number`` of the watched files is about to run, counted from 1."""
    seen, before = [0], sys.gettrace()

    def local(_, event, __):
        if event == "line":
            seen[0] += 1
            if seen[0] == number:
                action()
        return local

    def trace(frame, _, __):
        return local if frame.f_code.co_filename.startswith(watched) else None

    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)
