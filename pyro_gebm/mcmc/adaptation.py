"""Warm-up: step sizes by dual averaging, masses and trajectory length from all chains' draws."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.averaging import (
    DualAveraging,
    Moments,
    average_step,
    estimate_variance,
    group_medians,
    no_moments,
    spread_groups,
    start_dual_averaging,
    update_dual_averaging,
    update_moments,
)
from pyro_gebm.mcmc.gradients import uncompiled
from pyro_gebm.mcmc.integrators import trajectory
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState
from pyro_gebm.mcmc.length import Length, learn_from, restart_length, start_length
from pyro_gebm.mcmc.random import Generator, normal
from pyro_gebm.mcmc.tuning import Tuning, longest_steps
from pyro_gebm.mcmc.walls import Walls, look_for_walls, no_walls

MAX_DOUBLINGS = 50
"""Limit of the step-size search: a flat potential accepts every step and would never end it."""


class Pending(NamedTuple):
    """Acceptance since the last update of the step size, by chain, (C,) each."""

    accept: Tensor
    """Sum over transitions of chains that have moved."""
    counted: Tensor
    """Transitions in that sum."""
    finished: Tensor
    """Transitions."""


class Adaptation(NamedTuple):
    """The state of warm-up between two steps."""

    dual: DualAveraging
    moments: Moments
    """Of the draws of a window."""
    gradients: Moments
    """Of the gradients there."""
    moved: Tensor
    """Chains that have had a positive acceptance probability, (C,) bool."""
    pending: Pending
    walls: Walls
    length: Length | None
    rounds: int
    """Transitions per chain so far, on average; where chains run freely they differ."""
    missing: int
    """Transitions without which the round cannot be over."""


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
    generator: Generator,
    groups: int = 1,
    target: float = 0.8,
) -> tuple[Tensor, int]:
    """Step sizes at which one leapfrog step has about the median acceptance ``target``.

    Doubles or halves in each group of chains until the acceptance crosses ``target``; one
    gradient each time. The median does not see a few chains that are stuck at bad starts.

    Returns:
        The step sizes, (C,), and the gradient evaluations spent.
    """
    step = group_medians(tuning.step_size, groups)
    direction = torch.zeros_like(step)
    searching, spent = torch.ones_like(step, dtype=torch.bool), 0
    while spent < MAX_DOUBLINGS and bool(searching.any()):
        spent += 1
        trial = tuning._replace(step_size=spread_groups(step, tuning.step_size))
        momentum = normal(state.z, generator)
        accept = trajectory(potential_fn, state, trial, 1, momentum).info.accept_prob
        wanted = torch.where(group_medians(accept, groups) > target, 1.0, -1.0)
        searching &= direction != -wanted
        direction = torch.where(searching, wanted, direction)
        step = torch.where(searching, step * 2.0**direction, step)
    return spread_groups(step, tuning.step_size), spent


def start_adaptation(
    kernel: Kernel,
    potential_fn: PotentialFn,
    state: KernelState,
    given: Tuning | None,
    generator: Generator,
    groups: int = 1,
) -> tuple[Adaptation, Tuning, int]:
    """The given tuning, or a unit mass matrix with the kernel's step size or one searched for.

    Returns:
        State, tuning, and the gradient evaluations that a search spent.
    """
    spent = 0
    ones = torch.ones_like(state.potential_energy)
    masses = torch.ones_like(state.z if groups > 1 else state.z[0])
    tuning = given or Tuning(ones * (kernel.step_size or 1.0), masses)
    tuning = tuning._replace(settled_values=None)  # it is about to change
    if kernel.integrator != "fitted":
        tuning = tuning._replace(curvature=None)
    if given is None and kernel.step_size is None and kernel.adapt_step_size:
        own = kernel.level_potential(uncompiled(potential_fn))
        step, spent = find_step_size(own, state, tuning, generator, groups)
        tuning = tuning._replace(step_size=step)
    length = None
    if (first := kernel.first_length(tuning.step_size)) is not None:
        first = first if tuning.trajectory_length is None else tuning.trajectory_length
        length = start_length(first, is_scaled=given is not None)
        tuning = tuning._replace(trajectory_length=first)
    adaptation = Adaptation(
        dual=start_dual_averaging(tuning.step_size),
        moments=no_moments(state.z, groups),
        gradients=no_moments(state.z, groups),
        moved=torch.zeros_like(ones, dtype=torch.bool),
        pending=Pending(0 * ones, 0 * ones, 0 * ones),
        walls=no_walls(ones, groups),
        length=length,
        rounds=0,
        missing=len(ones),
    )
    return adaptation, tuning, spent


def adapt(
    kernel: Kernel,
    adaptation: Adaptation,
    tuning: Tuning,
    rows: Tensor,
    state: KernelState,
    info: Info,
    target_accept_prob: float,
) -> tuple[Adaptation, Tuning]:
    """The next tuning from transitions of some chains; a divergence counts as acceptance 0.

    A chain that has never accepted, stuck at a bad start, has no say: with few chains its
    zeros would shrink the step of all others without end, and its place would pass for spread.

    Args:
        kernel: what is tuned.
        adaptation: the state so far.
        tuning: what the transition used.
        rows: the chains that have made a transition, (R,); one that has made two comes twice,
            but once where each has a step size of its own.
        state: where they were after it, R rows.
        info: of the transitions, (R,) each.
        target_accept_prob: what the step size is tuned to.
    """
    accepted = torch.zeros_like(adaptation.pending.accept).index_add_(0, rows, info.accept_prob)
    moved = adaptation.moved | (accepted > 0)
    awake = moved[rows]
    walls, info = look_for_walls(adaptation.walls, info, awake, target_accept_prob)
    adaptation = adaptation._replace(moved=moved, walls=walls)
    if (count := int(awake.sum())) and kernel.adapt_mass_matrix:
        keep = None if count == len(awake) else awake
        adaptation = adaptation._replace(
            moments=update_moments(adaptation.moments, state.z, keep),
            gradients=update_moments(adaptation.gradients, state.z_grad, keep),
        )
    pending = _add(adaptation.pending, rows, info.accept_prob, awake)
    adaptation = adaptation._replace(pending=pending)
    due = _missing(adaptation) <= 0
    if kernel.adapt_step_size and (due or kernel.step_size_per_chain):
        means = _own_acceptance if kernel.step_size_per_chain else _mean_acceptance
        accept, which = means(adaptation, rows, info.accept_prob)
        longest = None if tuning.curvature is None else longest_steps(tuning.curvature)
        dual = update_dual_averaging(adaptation.dual, accept, which, target_accept_prob, longest)
        adaptation = adaptation._replace(dual=dual)
        tuning = tuning._replace(step_size=dual.log_step.exp())
    if adaptation.length is not None and info.length_gradient is not None:  # all in step
        length = learn_from(adaptation.length, info.length_gradient[0], state.z)
        adaptation = adaptation._replace(length=length)
        tuning = tuning._replace(trajectory_length=length.value())
    if due:
        adaptation = _next_round(adaptation)
    return adaptation._replace(missing=_missing(adaptation)), tuning


def _add(pending: Pending, rows: Tensor, accept: Tensor, awake: Tensor) -> Pending:
    return Pending(
        pending.accept.index_add(0, rows, accept * awake),
        pending.counted.index_add(0, rows, awake.to(accept)),
        pending.finished.index_add(0, rows, torch.ones_like(accept)),
    )


def _missing(adaptation: Adaptation) -> int:
    """Every chain that moves must make a transition, on average; one that is stuck is quick."""
    pending, moving = adaptation.pending, int(adaptation.moved.sum())
    if moving:
        return moving - int(pending.counted.sum())
    return len(adaptation.moved) - int(pending.finished.sum())


def _next_round(adaptation: Adaptation) -> Adaptation:
    fresh = Pending(*(torch.zeros_like(field) for field in adaptation.pending))
    return adaptation._replace(pending=fresh, rounds=adaptation.rounds + 1)


def _mean_acceptance(
    adaptation: Adaptation, rows: Tensor, accept_prob: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean acceptance of its group since the last round, for every chain.

    Where a group has chains that move but none of them has finished, there is nothing to learn.
    """
    groups = len(adaptation.moments.mean)
    accept, counted, _ = (field.view(groups, -1).sum(1) for field in adaptation.pending)
    known = (counted > 0) | ~adaptation.moved.view(groups, -1).any(1)
    like = adaptation.moved
    return spread_groups(accept / counted.clamp(min=1), like), spread_groups(known, like)


def _own_acceptance(
    adaptation: Adaptation, rows: Tensor, accept_prob: Tensor
) -> tuple[Tensor, Tensor]:
    """The acceptance of the chains that have just finished, and which they are."""
    zeros = torch.zeros_like(adaptation.pending.accept)
    which = torch.zeros_like(adaptation.moved).index_fill(0, rows, True)
    return zeros.index_put((rows,), accept_prob), which


def close_window(
    kernel: Kernel, adaptation: Adaptation, tuning: Tuning
) -> tuple[Adaptation, Tuning]:
    """The mass matrix of the window that ends, and dual averaging started afresh."""
    moments = adaptation.moments
    old = tuning.inverse_mass_matrix
    if kernel.adapt_mass_matrix and moments.num:
        groups = len(moments.mean)
        before = old[None] if old.ndim == 1 else old[:: len(old) // groups]
        variance = estimate_variance(moments, adaptation.gradients, before)
        variance = variance[0] if old.ndim == 1 else spread_groups(variance, old)
        # Zero or not a number where all chains still stand at one start.
        variance = torch.where(variance.isfinite() & (variance > 0), variance, old)
        # The new scale changes what a step means: keep ε in units of the narrowest direction.
        ratio = (old / variance).amax(-1).sqrt()
        step_size = tuning.step_size * (ratio if kernel.adapt_step_size else 1.0)
        tuning = tuning._replace(step_size=step_size, inverse_mass_matrix=variance)
        if adaptation.length is not None:
            # Keep the trajectory in units of the widest direction, which decides its length.
            shrink, limit = (variance / old).amax().sqrt(), kernel.first_length(step_size)
            assert limit is not None
            moved = adaptation.moved
            length = restart_length(adaptation.length, shrink, limit, moments.mean, moved)
            adaptation = adaptation._replace(length=length)
            tuning = tuning._replace(trajectory_length=length.value())
    none = Moments(0, torch.zeros_like(moments.mean), torch.zeros_like(moments.squares))
    adaptation = restart_steps(adaptation, tuning)
    return adaptation._replace(moments=none, gradients=none), tuning


def restart_steps(adaptation: Adaptation, tuning: Tuning) -> Adaptation:
    """Dual averaging started afresh, from the steps of ``tuning``."""
    return adaptation._replace(dual=start_dual_averaging(tuning.step_size))


def final_tuning(kernel: Kernel, adaptation: Adaptation, tuning: Tuning) -> Tuning:
    """The tuning that sampling keeps: the averaged step size and trajectory length."""
    if kernel.adapt_step_size:
        tuning = tuning._replace(step_size=average_step(adaptation.dual))
    if adaptation.length is not None:
        tuning = tuning._replace(trajectory_length=adaptation.length.average())
    return tuning
