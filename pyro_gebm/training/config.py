"""Training settings, checked when they are made."""

import math
from dataclasses import dataclass
from typing import final

from pyro_gebm._checks import check_choice, check_count, check_in_range

BASE_LOSSES = ("self_normalized", "amortized")
SCHEDULES = ("cosine", "constant")


@final
@dataclass(frozen=True)
class TrainConfig:
    """Settings of a KALE training: alternation, then a refit of the energy alone.

    The alternation leaves the energy nearly flat, because the base absorbs what the energy
    finds. The refit on the frozen base, with a smaller penalty, is where the gain is.

    Args:
        base_steps: steps of the base.
        energy_steps: steps of the energy and of c before each of them.
        num_latents: latents per base step and per estimate; energy steps draw as many as
            the batch has data.
        energy_lr: Adam's rate for the energy.
        base_lr: Adam's rate for the base.
        log_partition_lr: Adam's rate for c.
        momentum: Adam's β₁ during the alternation.
        schedule: "cosine" takes the rates to zero over each phase, "constant" does not.
        gradient_penalty: weight of the zero-centred penalty E|∇E(x̂)|² at the start.
        gradient_penalty_end: its weight at the end of the alternation; geometric between.
        penalty_every: energy steps per evaluation of the penalty, whose weight is
            multiplied by it.
        base_loss: "self_normalized" weights softmax(-E), or "amortized" exp(-(E + c))/B.
        linear_from: exponent from which exp goes on linearly in the bound (nats), so that
            gradients stay finite; inf for never.
        ema_decay: decay of the running average of the generator's weights, which takes the
            generator's place at the end; 0 for none.
        refit_steps: energy steps of the refit; 0 for none.
        refit_lr: Adam's rate for the energy in the refit.
        refit_gradient_penalty: weight of the penalty in the refit.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> TrainConfig(base_steps=100).refit_steps
        1500
        >>> TrainConfig(base_lr=-1.0)
        Traceback (most recent call last):
        ValueError: base_lr: expected a number in (0.0, inf]; got -1.0
    """

    base_steps: int = 3500
    energy_steps: int = 2
    num_latents: int = 128
    energy_lr: float = 5e-4
    base_lr: float = 2e-4
    log_partition_lr: float = 5e-3
    momentum: float = 0.5
    schedule: str = "cosine"
    gradient_penalty: float = 1.0
    gradient_penalty_end: float = 0.1
    penalty_every: int = 2
    base_loss: str = "self_normalized"
    linear_from: float = 6.0
    ema_decay: float = 0.998
    refit_steps: int = 1500
    refit_lr: float = 1e-4
    refit_gradient_penalty: float = 0.1

    def __post_init__(self) -> None:
        for name in ("base_steps", "refit_steps"):
            check_count(name, getattr(self, name), minimum=0)
        for name in ("energy_steps", "num_latents", "penalty_every"):
            check_count(name, getattr(self, name))
        for name in ("energy_lr", "base_lr", "log_partition_lr", "refit_lr"):
            check_in_range(name, getattr(self, name), 0.0, open_low=True)
        for name in ("gradient_penalty", "gradient_penalty_end"):
            check_in_range(name, getattr(self, name), 0.0, open_low=True)
        check_in_range("refit_gradient_penalty", self.refit_gradient_penalty, 0.0)
        for name in ("momentum", "ema_decay"):
            check_in_range(name, getattr(self, name), 0.0, 0.9999999)
        if self.linear_from != math.inf:
            check_in_range("linear_from", self.linear_from, 0.0)
        check_choice("base_loss", self.base_loss, BASE_LOSSES)
        check_choice("schedule", self.schedule, SCHEDULES)
