"""Learning the trajectory length of ChEES: Adam on log τ, and an average of its path."""

from typing import NamedTuple

import torch
from torch import Tensor

RATE = 0.05
DECAY = 0.95
MAX_STEP = 0.35
"""Largest change of log τ in one update."""


class Length(NamedTuple):
    """The state of the ascent; scalars."""

    log_length: Tensor
    log_average: Tensor
    second_moment: Tensor
    num: int

    def value(self) -> Tensor:
        """τ now."""
        return self.log_length.exp()

    def average(self) -> Tensor:
        """τ averaged over the last part of the path."""
        return self.log_average.exp()


def start_length(length: Tensor) -> Length:
    """The ascent started at ``length``."""
    log_length = length.log()
    return Length(log_length, log_length, torch.zeros_like(length), 0)


def update_length(state: Length, gradient: Tensor) -> Length:
    """One step of Adam without momentum (β₁ = 0), as in the paper.

    A gradient without a finite square is skipped.
    """
    square = gradient.square()
    if not bool(torch.isfinite(square)):
        return state
    num = state.num + 1
    second = DECAY * state.second_moment + (1 - DECAY) * square
    size = (second / (1 - DECAY**num)).sqrt()
    move = RATE * gradient / (size + 1e-20)
    log_length = state.log_length + move.clamp(-MAX_STEP, MAX_STEP)
    share = num**-0.6
    average = share * log_length + (1 - share) * state.log_average
    return Length(log_length, average, second, num)
