"""Learning the trajectory length of ChEES: Adam on log τ, and an average of its path."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm.mcmc.mixing import Mixing, length_factor, no_mixing, update_mixing

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
    mixing: Mixing | None
    """Of the draws since the start; ``None``: nothing is learned from them."""
    is_scaled: bool
    """Masses had been learned before the start: τ has a unit."""

    def value(self) -> Tensor:
        """τ now."""
        return self.log_length.exp()

    def average(self) -> Tensor:
        """τ averaged over the last part of the path, times the factor."""
        return self.log_average.exp() * self.factor


def start_length(length: Tensor, is_scaled: bool) -> Length:
    """The ascent started at ``length``."""
    log_length, zero, one = length.log(), torch.zeros_like(length), torch.ones_like(length)
    return Length(log_length, log_length, zero, 0, one, None, is_scaled)


def restart_length(
    state: Length, shrink: Tensor, limit: Tensor, centre: Tensor, moved: Tensor
) -> Length:
    """The ascent started afresh where new masses make trajectories ``shrink`` times shorter.

    A length without unit, which has had little time to find what it should be, is cut to
    ``limit``, and mixing is watched from here on. One that was given with masses may have its
    factor in already: there it is not. Draws tell nothing where some chains have never moved.

    Args:
        state: so far.
        shrink: a scalar.
        limit: a scalar.
        centre: mean of the draws so far by group of chains, (G, D).
        moved: chains that have moved, (C,) bool.
    """
    value, factor, mixing = state.value() / shrink, state.factor, state.mixing
    if not state.is_scaled:
        value = torch.minimum(value, limit)
    elif mixing is not None and bool(moved.all()):
        factor = length_factor(mixing)
    if mixing is not None or not state.is_scaled:
        mixing = no_mixing(centre, len(moved))
    return start_length(value, is_scaled=True)._replace(factor=factor, mixing=mixing)


def learn_from(state: Length, gradient: Tensor, z: Tensor) -> Length:
    """The ascent a step farther, after transitions of all chains to ``z`` (C, D)."""
    if state.mixing is not None:
        state = state._replace(mixing=update_mixing(state.mixing, z))
    return update_length(state, gradient)


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
