"""Fitting leapfrog's drift to the curvature of a potential, where that lets steps be longer."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.averaging import group_medians, spread_groups
from pyro_gebm.mcmc.gradients import uncompiled
from pyro_gebm.mcmc.integrators import leapfrog
from pyro_gebm.mcmc.kernel import Kernel, KernelState, acceptance, kinetic_energy, select
from pyro_gebm.mcmc.random import Generator, normal, uniform
from pyro_gebm.mcmc.tuning import Tuning, longest_steps

NUM_STEPS = 4
"""Of a trial trajectory."""

TRIALS = 128
"""Trajectories that the last fit rests on, in each group of chains; half of them will do."""

MOST_TRIALS = 16
"""Of one chain."""

MANY = 16
"""Chains of which one trial each tells enough for the next window."""

SHARE = 0.1
"""Of the gradients that warm-up has taken so far: what trials may cost."""

FAR = 3.0
"""Energy error (nats) of what is left out: it is rejected whatever its size, which grows by other
laws far out than where curvature is measured."""

LEAST_LONGER = 1.05
"""What steps must be over leapfrog's, within the limit: in few dimensions that may leave none."""

LEAST_SPREAD = 1e-6
"""Of a variance of curvature, over the squared mean: below that it is rounding."""


class Curvature(NamedTuple):
    """Of a potential in scaled coordinates, over the directions of its space, (G,) each."""

    mean: Tensor
    variance: Tensor


def fit_to_curvature(
    kernel: Kernel,
    potential_fn: PotentialFn,
    state: KernelState,
    tuning: Tuning,
    generator: Generator,
    spent: Tensor,
    is_last: bool,
) -> tuple[Tuning, int]:
    """The tuning with steps fitted to the curvature where chains are, if the kernel wants that.

    Args:
        kernel: what is tuned.
        potential_fn: the target.
        state: where chains are.
        tuning: so far.
        generator: of the trials.
        spent: gradients of each chain so far, (C,).
        is_last: of the last window of warm-up.

    Returns:
        It, and the gradient evaluations spent by each chain.
    """
    if kernel.integrator != "fitted" or not kernel.adapt_step_size:
        return tuning, 0
    chains = len(state.z) // kernel.num_levels
    trials = num_trials(chains, float(spent.double().mean()), is_last)
    if not trials:
        return tuning, 0
    own = kernel.level_potential(uncompiled(potential_fn))
    curvature = measure_curvature(own, state, tuning, trials, generator, kernel.num_levels)
    return fit_steps(curvature, tuning, kernel.least_growth), trials * NUM_STEPS


def num_trials(chains: int, spent: float, is_last: bool) -> int:
    """Trials of each chain at the end of a window; none if enough of them would cost too much.

    Args:
        chains: of a group.
        spent: gradients of each chain so far.
        is_last: of the last window; only many chains tell enough by one trial each before.

    Example:
        >>> [num_trials(chains, 2000.0, is_last=True) for chains in (1, 4, 64, 256)]
        [16, 16, 2, 1]
        >>> num_trials(4, 200.0, is_last=True)
        0
    """
    wanted = min(MOST_TRIALS, -(-TRIALS // chains)) if is_last else int(chains >= MANY)
    trials = min(wanted, int(SHARE * spent / NUM_STEPS))
    return trials if 2 * trials >= wanted else 0


def measure_curvature(
    potential_fn: PotentialFn,
    state: KernelState,
    tuning: Tuning,
    trials: int,
    generator: Generator,
    groups: int = 1,
) -> Curvature:
    """Mean and variance of curvature by the energy errors of short trajectories.

    In a direction of curvature c, steps with a drift of ε / (1 + w ε²/4) conserve K + r V with
    r = 1 + (w - c) ε²/4, where K and V are kinetic and potential energy: H = K + V changes by
    1 - 1/r of what K changes by. Over all directions the slope of the one on the other tells
    the mean of c, and what is left the variance, with directions weighted by what they
    contribute to the changes of K: in few steps curved ones contribute more.

    Args:
        potential_fn: (C, D) -> (C,).
        state: where chains are, (C, D); each trial goes on from where the one before led.
        tuning: steps and masses.
        trials: of each chain.
        generator: of their momenta, and of whether they are accepted.
        groups: G, of chains that have a curvature each.
    """
    quarter = tuning.step_size.square() / 4
    typical, errors, changes = group_medians(quarter, groups), [], []
    for _ in range(trials):
        momentum, noise = normal(state.z, generator), uniform(state.potential_energy, generator)
        end, error, change = _trial(potential_fn, state, tuning, momentum)
        state = select(noise < acceptance(error[:, -1], end.z)[0], end, state)
        errors.append(error)
        changes.append(change * quarter[:, None])
    error, change = (torch.stack(parts, 1).view(groups, -1) for parts in (errors, changes))
    change = change / typical[:, None]
    keep = error.abs() <= FAR
    error, change = error.masked_fill(~keep, 0.0), change.masked_fill(~keep, 0.0)
    size = change.square().sum(1)
    slope = (error * change).sum(1) / size
    rest = (error - slope[:, None] * change).square().sum(1) / size
    # A slope of 1 and more is none of a curvature; nothing comes of what is not a number.
    ratio = 1 / (1 - slope.masked_fill(slope >= 1, torch.nan))
    mean = group_medians(tuning.curvatures(), groups) + (1 - ratio) / typical
    return Curvature(mean, rest / typical.square())


def _trial(
    potential_fn: PotentialFn, state: KernelState, tuning: Tuning, momentum: Tensor
) -> tuple[KernelState, Tensor, Tensor]:
    """The end of a trajectory; energy error and change of K after each of its steps, (C, K)."""
    drift, kick, _ = tuning.strides()
    kinetic = kinetic_energy(momentum)
    start, errors, changes = state.potential_energy + kinetic, [], []
    for _ in range(NUM_STEPS):
        state, momentum = leapfrog(potential_fn, state, momentum, drift, kick)
        now = kinetic_energy(momentum)
        errors.append(state.potential_energy + now - start)
        changes.append(now - kinetic)
    return state, torch.stack(errors, 1), torch.stack(changes, 1)


def fit_steps(curvature: Curvature, tuning: Tuning, least_growth: float) -> Tuning:
    """Drifts fitted to the mean curvature m where that pays, and steps of the same acceptance.

    The energy error of a trajectory is as ε² √((w - m)² + v) with v the variance of curvature:
    with w = m steps can be ((m² + v)/v)^(1/4) times as long as leapfrog's, of which the shorter
    drift takes a part away again. The more curvature varies, the less is gained, and directions
    of little curvature, along which chains are slow, lose by shorter drifts: there steps are
    left to leapfrog.

    Where groups of chains differ, most must gain: trajectories of HMC and ChEES have as many
    steps in all, and few long ones among them would be too long.

    Args:
        curvature: measured with ``tuning``.
        tuning: its steps have the acceptance that is wanted, or nearly so.
        least_growth: what drifts must gain by.
    """
    mean, variance = curvature
    variance = torch.maximum(variance, LEAST_SPREAD * mean.square())
    groups = len(mean)
    typical = group_medians(tuning.step_size, groups)
    before = group_medians(tuning.curvatures(), groups)
    whole = mean.square() + variance
    leapfrog_step = typical * (((before - mean).square() + variance) / whole) ** 0.25
    growth = (whole / variance) ** 0.25
    step = torch.minimum(leapfrog_step * growth, longest_steps(mean.clamp(min=0)))
    pays = (mean > 0) & (growth > least_growth * (1 + mean * step.square() / 4))
    pays &= step > LEAST_LONGER * leapfrog_step
    pays &= 2 * pays.sum() > groups
    ratio = torch.where(pays, step, leapfrog_step) / typical
    # Not a number where no trial told anything.
    ratio = torch.where(ratio.isfinite(), ratio, 1.0)
    fitted = torch.where(pays, mean, 0.0)
    return tuning._replace(
        step_size=tuning.step_size * spread_groups(ratio, tuning.step_size),
        curvature=spread_groups(fitted, tuning.step_size) if bool(pays.any()) else None,
    )
