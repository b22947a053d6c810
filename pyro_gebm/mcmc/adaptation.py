"""Warm-up: dual averaging of the step size, a diagonal mass matrix from all chains' draws."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.integrators import trajectory
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, Tuning

MAX_DOUBLINGS = 50
"""Limit of the step-size search: a flat potential accepts every step and would never end it."""

MAX_LOG_STEP = 35.0
"""Limit of |log ε|, where MAX_DOUBLINGS ends too: a flat potential would drive ε to infinity."""


class DualAveraging(NamedTuple):
    """Nesterov's dual averaging of log ε (Hoffman and Gelman 2014, section 3.2)."""

    log_step: Tensor
    log_step_avg: Tensor
    error_sum: Tensor
    num: int
    centre: Tensor
    """log ε₀: where the search is drawn to."""


class Moments(NamedTuple):
    """Running count, mean and sum of squared deviations of the draws of all chains."""

    num: int
    mean: Tensor
    squares: Tensor


class Adaptation(NamedTuple):
    """The state of warm-up between two steps."""

    dual: DualAveraging
    moments: Moments
    moved: Tensor
    """Chains that have had a positive acceptance probability, (C,) bool."""


def start_dual_averaging(step_size: Tensor) -> DualAveraging:
    """Dual averaging started at ``step_size``, a scalar tensor."""
    log_step, zero = step_size.log(), torch.zeros_like(step_size)
    return DualAveraging(log_step, log_step, zero, 0, log_step)


def update_dual_averaging(
    dual: DualAveraging, accept_prob: Tensor, target_accept_prob: float
) -> DualAveraging:
    """One update from the mean acceptance of the batch.

    Stan's constants but for γ, which is 0.05 there and made for the noise of one chain: with
    the acceptance of many it drives ε into a two-cycle, whose average is too small (MALA
    tuned to 0.574 ended at 0.76).
    """
    gamma, t0, kappa = 0.2, 10.0, 0.75
    count = dual.num + 1
    weight = 1.0 / (count + t0)
    error_sum = (1 - weight) * dual.error_sum + weight * (target_accept_prob - accept_prob)
    log_step = dual.centre - error_sum * math.sqrt(count) / gamma
    log_step = log_step.clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
    share = count**-kappa
    log_step_avg = share * log_step + (1 - share) * dual.log_step_avg
    return DualAveraging(log_step, log_step_avg, error_sum, count, dual.centre)


def no_moments(z: Tensor) -> Moments:
    """Moments of no draws, for positions ``z`` (C, D)."""
    return Moments(0, torch.zeros_like(z[0]), torch.zeros_like(z[0]))


def update_moments(moments: Moments, z: Tensor) -> Moments:
    """Moments with one more draw of every chain, ``z`` (C, D) (Chan et al. 1979)."""
    chains, count = len(z), moments.num + len(z)
    batch_mean = z.mean(0)
    shift = batch_mean - moments.mean
    within = (z - batch_mean).square().sum(0)
    return Moments(
        count,
        moments.mean + shift * (chains / count),
        moments.squares + within + shift.square() * (moments.num * chains / count),
    )


def regularised_variance(moments: Moments) -> Tensor:
    """Variance (D,), shrunk towards 1e-3 with the weight of five draws, as Stan does."""
    count = moments.num
    variance = moments.squares / max(count - 1, 1)
    return variance * (count / (count + 5.0)) + 1e-3 * (5.0 / (count + 5.0))


def window_ends(warmup_steps: int) -> list[int]:
    """Warm-up steps after which the mass matrix is renewed, counted from 1.

    The first 5 % let the chains leave their starts, the last 15 % settle the step size;
    between them windows double, the first being a fifteenth of the rest, so that a rough
    scale is known early and a good one at the end. The mass matrix is estimated from the
    draws of a window only.

    Example:
        >>> window_ends(200)
        [20, 40, 80, 170]
    """
    start, end = round(0.05 * warmup_steps), warmup_steps - round(0.15 * warmup_steps)
    size = max(1, (end - start) // 15)
    ends = []
    while start < end:
        # A window that would leave less than the next, doubled one takes all that is left.
        stop = start + size if start + 3 * size <= end else end
        ends.append(stop)
        start, size = stop, 2 * size
    return ends


def find_step_size(
    potential_fn: PotentialFn,
    state: KernelState,
    tuning: Tuning,
    generator: torch.Generator,
    target: float = 0.8,
) -> tuple[Tensor, int]:
    """A step size at which one leapfrog step has about the median acceptance ``target``.

    Doubles or halves until the acceptance crosses ``target``; one gradient each time. The
    median does not see a few chains that are stuck at bad starts.

    Returns:
        The step size, a scalar tensor, and the gradient evaluations spent.
    """
    step = tuning.step_size.median()
    direction, spent = 0, 0
    while spent < MAX_DOUBLINGS:
        spent += 1
        trial = tuning._replace(step_size=step.expand_as(tuning.step_size))
        _, info = trajectory(potential_fn, state, trial, 1, generator)
        wanted = 1 if info.accept_prob.median() > target else -1
        if direction == -wanted:
            break
        direction = wanted
        step = step * 2.0**direction
    return step, spent


def start_adaptation(
    kernel: Kernel,
    potential_fn: PotentialFn,
    state: KernelState,
    given: Tuning | None,
    generator: torch.Generator,
) -> tuple[Adaptation, Tuning, int]:
    """The given tuning, or a unit mass matrix with the kernel's step size or one searched for.

    Returns:
        State, tuning, and the gradient evaluations that a search spent.
    """
    spent = 0
    ones = torch.ones_like(state.potential_energy)
    tuning = given or Tuning(ones * (kernel.step_size or 1.0), torch.ones_like(state.z[0]))
    if given is None and kernel.step_size is None:
        step, spent = find_step_size(potential_fn, state, tuning, generator)
        tuning = tuning._replace(step_size=ones * step)
    dual = start_dual_averaging(tuning.step_size[0])
    moved = torch.zeros_like(ones, dtype=torch.bool)
    return Adaptation(dual, no_moments(state.z), moved), tuning, spent


def adapt(
    kernel: Kernel,
    adaptation: Adaptation,
    tuning: Tuning,
    state: KernelState,
    info: Info,
    target_accept_prob: float,
) -> tuple[Adaptation, Tuning]:
    """The next tuning from one warm-up transition; a non-finite proposal counts as acceptance 0.

    A chain that has never accepted, stuck at a bad start, has no say: with few chains its
    zeros would shrink the step of all others without end, and its place would pass for spread.
    """
    dual, moments, moved = adaptation
    moved = moved | (info.accept_prob > 0)
    if kernel.adapt_step_size:
        accept_prob = (info.accept_prob * moved).sum() / moved.sum().clamp(min=1)
        dual = update_dual_averaging(dual, accept_prob, target_accept_prob)
        tuning = tuning._replace(step_size=torch.ones_like(tuning.step_size) * dual.log_step.exp())
    if moved.any():
        moments = update_moments(moments, state.z[moved])
    return Adaptation(dual, moments, moved), tuning


def close_window(
    kernel: Kernel, adaptation: Adaptation, tuning: Tuning, state: KernelState
) -> tuple[Adaptation, Tuning]:
    """The mass matrix of the window that ends, and dual averaging started afresh."""
    if kernel.adapt_mass_matrix and adaptation.moments.num:
        variance = regularised_variance(adaptation.moments)
        variance = torch.where(variance.isfinite(), variance, tuning.inverse_mass_matrix)
        # The new scale changes what a step means: keep ε in units of the narrowest direction.
        ratio = (tuning.inverse_mass_matrix / variance).max().sqrt()
        step_size = tuning.step_size * (ratio if kernel.adapt_step_size else 1.0)
        tuning = Tuning(step_size, variance)
    dual = start_dual_averaging(tuning.step_size[0])
    return Adaptation(dual, no_moments(state.z), adaptation.moved), tuning


def final_tuning(kernel: Kernel, adaptation: Adaptation, tuning: Tuning) -> Tuning:
    """The tuning that sampling keeps: the averaged step size."""
    if not kernel.adapt_step_size or adaptation.dual.num == 0:
        return tuning
    step = torch.ones_like(tuning.step_size) * adaptation.dual.log_step_avg.exp()
    return tuning._replace(step_size=step)
