"""A round: energy steps and a base step, or what its phase leaves of them."""

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm.training.infos import EnergyInfo, Seconds, StepInfo
from pyro_gebm.training.monitor import HeldOut
from pyro_gebm.training.plan import Plan
from pyro_gebm.training.steps import Steps, Taken


class Round(NamedTuple):
    """Figures of a round; NaN where there was no such step."""

    energy: EnergyInfo
    base_loss: Tensor
    base_grad_norm: float
    seconds: Seconds


@final
class Stopwatch:
    """Wall-clock seconds, by what they were spent on."""

    def __init__(self) -> None:
        self._spent = {"data": 0.0, "energy": 0.0, "base": 0.0}
        self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        """The time since the last lap was spent on ``what``."""
        now = time.perf_counter()
        self._spent[what] += now - self._last
        self._last = now

    def seconds(self) -> Seconds:
        """What it has added up to."""
        return Seconds(**self._spent)


def run_round(steps: Steps, plan: Plan, step: int, batches: Iterator[Tensor]) -> Round:
    """The round after ``step`` others.

    Raises:
        DivergenceError: one of its steps could not be taken.
    """
    watch, weight = Stopwatch(), plan.penalty_weight(step)
    taken: Taken | None = None
    loss: Tensor | None = None
    norm = math.nan
    joint = plan.trains_base and plan.config.update == "joint"
    left = plan.energy_steps(step) - joint
    while left > 0:
        xs = _next(batches, left, steps)
        watch.lap("data")
        for x, fake in zip(xs, steps.negatives.draw(xs), strict=True):
            taken = steps.energy_step(x, fake, weight=weight)
        left -= len(xs)
        watch.lap("energy")
    if joint:
        x = next(batches)
        watch.lap("data")
        taken, loss, norm = steps.joint_step(x, weight)
    # Of the last alone, which is told: the figures cost something.
    energy = None if taken is None else steps.figures(taken)
    watch.lap("energy")
    if plan.trains_base and not joint:
        loss, norm = steps.base_step()
        watch.lap("base")
    if energy is None or loss is None:
        unknown = torch.full_like(steps.gebm.log_partition.detach(), torch.nan)
        energy = energy or EnergyInfo(unknown, unknown, unknown, unknown, unknown, math.nan)
        loss = unknown if loss is None else loss
    return Round(energy, loss, norm, watch.seconds())


def _next(batches: Iterator[Tensor], left: int, steps: Steps) -> list[Tensor]:
    """The batches whose base samples are made together, at most ``left``."""
    first = next(batches)
    return [first, *islice(batches, min(left, steps.negatives.at_once(first)) - 1)]


def step_info(
    figures: Round,
    plan: Plan,
    step: int,
    steps: Steps,
    rollbacks: int,
    held_out: HeldOut | None,
) -> StepInfo:
    """What the training yields of a round."""
    energy = figures.energy
    return StepInfo(
        phase=plan.phase,
        step=step,
        total=plan.total,
        bound=energy.bound,
        importance_ess=energy.importance_ess,
        log_partition=steps.gebm.log_partition.detach().clone(),
        base_loss=figures.base_loss,
        penalty=energy.penalty,
        batch_log_z=energy.batch_log_z,
        energy_gap=energy.energy_gap,
        energy_grad_norm=energy.grad_norm,
        base_grad_norm=figures.base_grad_norm,
        gradients=steps.gradients,
        rollbacks=rollbacks,
        seconds=figures.seconds,
        held_out=held_out,
    )
