"""Running estimates of warm-up: dual averaging of the step size, moments of the draws."""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_LOG_STEP = 35.0
"""Limit of |log ε|, where the search for a first step ends, too: a flat potential would drive
ε to infinity."""


class DualAveraging(NamedTuple):
    """Nesterov's dual averaging of log ε (Hoffman and Gelman 2014, section 3.2), (C,) each."""

    log_step: Tensor
    log_step_avg: Tensor
    error_sum: Tensor
    num: Tensor
    centre: Tensor
    """log ε₀: where the search is drawn to."""


class Moments(NamedTuple):
    """Running count, mean and sum of squared deviations of the draws of each group of chains."""

    num: int
    """Draws per group."""
    mean: Tensor
    """(G, D)."""
    squares: Tensor
    """(G, D)."""


def group_medians(values: Tensor, groups: int) -> Tensor:
    """The median of each group of chains, (C,) -> (G,)."""
    return values.view(groups, -1).median(1).values


def spread_groups(by_group: Tensor, like: Tensor) -> Tensor:
    """What a group has, for each of its chains: (G, ...) -> (C, ...), C the length of ``like``."""
    return by_group.repeat_interleave(len(like) // len(by_group), 0)


def start_dual_averaging(step_size: Tensor) -> DualAveraging:
    """Dual averaging started at ``step_size``."""
    log_step, zero = step_size.log(), torch.zeros_like(step_size)
    return DualAveraging(log_step, log_step, zero, zero, log_step)


def update_dual_averaging(
    dual: DualAveraging,
    accept_prob: Tensor,
    due: Tensor,
    target_accept_prob: float,
    longest: Tensor | None = None,
) -> DualAveraging:
    """One update from acceptance probabilities, where ``due``; ε is at most ``longest``, (C,).

    Stan's constants but for γ, which is 0.05 there and made for the noise of one chain: with
    the acceptance of many it drives ε into a two-cycle, whose average is too small (MALA
    tuned to 0.574 ended at 0.76).
    """
    gamma, t0, kappa = 0.2, 10.0, 0.75
    num = dual.num + 1
    weight = 1.0 / (num + t0)
    error_sum = (1 - weight) * dual.error_sum + weight * (target_accept_prob - accept_prob)
    log_step = dual.centre - error_sum * num.sqrt() / gamma
    log_step = log_step.clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
    if longest is not None:
        log_step = torch.minimum(log_step, longest.log())
    share = num**-kappa
    log_step_avg = share * log_step + (1 - share) * dual.log_step_avg
    new = DualAveraging(log_step, log_step_avg, error_sum, num, dual.centre)
    return DualAveraging(*(torch.where(due, a, b) for a, b in zip(new, dual, strict=True)))


def average_step(dual: DualAveraging) -> Tensor:
    """The step size that dual averaging ends with."""
    return dual.log_step_avg.exp()


def no_moments(z: Tensor, groups: int = 1) -> Moments:
    """Moments of no draws, for positions ``z`` (C, D)."""
    zeros = z.new_zeros(groups, z.shape[1])
    return Moments(0, zeros, zeros)


def update_moments(moments: Moments, z: Tensor, keep: Tensor | None = None) -> Moments:
    """Moments with one more draw of some chains, ``z`` (R, D) (Chan et al. 1979).

    Args:
        moments: so far.
        z: positions; with several groups those of all chains, group after group.
        keep: which of them count, (R,) bool; read where there is one group only.
    """
    groups = len(moments.mean)
    if groups == 1 and keep is not None:
        z = z[keep]
    z = z.view(groups, -1, z.shape[1])
    draws, count = z.shape[1], moments.num + z.shape[1]
    batch_mean = z.mean(1)
    shift = batch_mean - moments.mean
    within = (z - batch_mean[:, None]).square().sum(1)
    return Moments(
        count,
        moments.mean + shift * (draws / count),
        moments.squares + within + shift.square() * (moments.num * draws / count),
    )


def estimate_variance(draws: Moments, gradients: Moments, before: Tensor) -> Tensor:
    """Diagonal of M⁻¹ by group, (G, D): √(Var z / Var ∇U), kept near ``before`` by few draws.

    The diagonal scaling that makes draws and gradients of the potential equally spread
    minimises the Fisher divergence to a standard normal (Seyboldt, Carlson and Carpenter 2025,
    "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence"). Of a normal it
    is the variance. Between separated modes, whose distance is part of Var z, it is nearer to
    a mode's own scale. The prior counts as five draws, in logarithms.
    """
    estimate = (draws.squares / gradients.squares).sqrt()
    weight = draws.num / (draws.num + 5.0)
    return estimate**weight * before ** (1 - weight)
