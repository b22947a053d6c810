"""Learning the trajectory length of ChEES: Adam on log τ, and an average of its path."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm.mcmc.mixing import Mixing, no_mixing, stretch, update_mixing

RATE = 0.05
DECAY = 0.95
MAX_STEP = 0.35
"""Largest change of log τ in one update."""


class Length(NamedTuple):
    """The state of the ascent; its tensors are scalars."""

    log_length: Tensor
    log_average: Tensor
    second_moment: Tensor
    num: int
    factor: Tensor
    """What the average is multiplied by in the end."""
    mixing: Mixing
    """Of the draws since the start."""
    is_scaled: bool
    """Masses had been learned before the start: τ has a unit."""

    def value(self) -> Tensor:
        """τ now."""
        return self.log_length.exp()

    def average(self) -> Tensor:
        """τ averaged over the last part of the path, times the factor."""
        return self.log_average.exp() * self.factor


def start_length(length: Tensor, centre: Tensor, num_chains: int, is_scaled: bool) -> Length:
    """The ascent started at ``length``, with chains in groups about ``centre`` (G, D)."""
    log_length, zero, one = length.log(), torch.zeros_like(length), torch.ones_like(length)
    mixing = no_mixing(centre, num_chains)
    return Length(log_length, log_length, zero, 0, one, mixing, is_scaled)


def restart_length(state: Length, shrink: Tensor, limit: Tensor, centre: Tensor) -> Length:
    """The ascent started afresh where new masses make trajectories ``shrink`` times shorter.

    A length without unit, which has had little time to find what it should be, is cut to
    ``limit``, and the mixing so far is not judged.
    """
    value, factor = state.value() / shrink, state.factor
    if state.is_scaled:
        factor = stretch(state.mixing)
    else:
        value = torch.minimum(value, limit)
    new = start_length(value, centre, len(state.mixing.sums), is_scaled=True)
    return new._replace(factor=factor)


def learn_from(state: Length, gradient: Tensor, z: Tensor) -> Length:
    """The ascent a step farther, after transitions of all chains to ``z`` (C, D)."""
    return update_length(state._replace(mixing=update_mixing(state.mixing, z)), gradient)


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
    return state._replace(log_length=log_length, log_average=average, second_moment=second, num=num)
