"""The walk: tuned chains from base samples to the end of a budget of gradients."""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm.inference_data import MOST_SUSPECTS
from pyro_gebm.mcmc import Draws, Info, Kernel, Moves, Position, Tuning, Warmed, draw
from pyro_gebm.sampling.engine import get_ready
from pyro_gebm.sampling.pilot import missing_mass
from pyro_gebm.sampling.ready import Ready
from pyro_gebm.sampling.settings import Settings
from pyro_gebm.sampling.target import Target

INITIAL = 1.0
"""The gradient at the start of warm-up, and once more at that of the walk."""

FINE_TRANSITIONS = 32
"""Of the first stretch, of which every transition is kept."""

STRETCH_DRAWS = 64
"""Kept of every other stretch before the long run: a checkpoint is missed by 1 % or so."""

LEAST_LONG_DRAWS, MOST_LONG_DRAWS = 8, 1000
LEAST_DIAGNOSED = 4
"""Draws that R-hat, which splits chains, needs."""

LONG_NUMBERS = 4_000_000
"""Numbers of the long run that R-hat and ESS look at: more take too long."""


class Trail(NamedTuple):
    """Where a walk went, on the CPU."""

    gradients: NDArray[np.float64]
    """Per chain at each checkpoint, warm-up included, (T,)."""
    points: list[Tensor]
    """Positions there, (C, D) each."""
    long_z: Tensor
    """Positions of the second half, (C, S, D)."""
    long_steps: Tensor
    """Gradients since the draw before, (C, S)."""
    thinning: int
    """Transitions per draw of the second half."""
    warmup_gradients: float
    walk_gradients: float
    batch_gradients: float
    transitions: int
    acceptance: float
    divergent_share: float
    seconds: float
    tuning: dict[str, float]
    problems: tuple[str, ...]


class _Stretch(NamedTuple):
    """Draws in a row."""

    spent: NDArray[np.float64]
    """Mean gradients of the walk after each, (S,)."""
    draws: Draws
    thinning: int
    is_long: bool
    """Of the second half."""


class _Course(NamedTuple):
    """What a walk is to do."""

    budget: float
    """Gradients of the walk."""
    long_draws: int
    seed: int
    progress: bool


def take_walk(
    kernel: Kernel,
    target: Target,
    start: Tensor,
    settings: Settings,
    budget: int,
    checkpoints: NDArray[np.float64],
) -> Trail:
    """Tune as ``sample`` does, go back to the starts, and walk until the budget is spent.

    Args:
        kernel: of the settings.
        target: what is sampled.
        start: unconstrained base samples (C, D').
        settings: of ``sample``.
        budget: gradients per chain, warm-up included.
        checkpoints: gradients of the walk at which positions are wanted, ascending; those beyond
            its end are left out, and the end is added.

    Raises:
        ValueError: warm-up leaves too little of the budget.
        RuntimeError: no proposal was accepted, or every transition diverged.
    """
    assert settings.seed is not None
    began = time.perf_counter()
    ready = get_ready(settings, kernel, target, start, settings.seed, None, True)
    moves = ready.moves(kernel, target)
    warmup = float(ready.warmed.spent.double().mean()) + INITIAL
    course = _Course(budget - warmup, _long_draws(start), settings.seed, settings.progress)
    _check_left(course.budget, warmup, ready.warmed.num_steps)
    stretches = _cut(list(_stretches(moves, ready.warmed, start, course)), course.budget)
    seconds = time.perf_counter() - began
    _check_alive(stretches)
    return _trail(stretches, ready, target, warmup, seconds, checkpoints)


def _stretches(moves: Moves, warmed: Warmed, start: Tensor, course: _Course) -> Iterator[_Stretch]:
    """Stretches that double in length; the last are the second half, evenly thinned."""
    none = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    position = Position(moves.kernel.init(moves.potential_fn, start), none, none)
    cost, spent = max(warmed.num_steps, 1.0), INITIAL
    half = course.budget / 2
    long_thinning = max(1, int(half / cost / course.long_draws))
    ends = _ends(course.budget, cost)
    while spent < course.budget:
        end = next(end for end in ends if end > spent)
        is_long = spent >= half
        wanted = max(1, math.ceil((end - spent) / cost))
        thinning = long_thinning if is_long else max(1, math.ceil(wanted / STRETCH_DRAWS))
        begin = Warmed(position, warmed.tuning, warmed.spent)
        draws = draw(
            moves,
            begin,
            math.ceil(wanted / thinning),
            thinning=thinning,
            seed=course.seed,
            progress=course.progress,
        )
        if draws.interrupted:
            raise KeyboardInterrupt  # part of a walk must not stand in a comparison
        each = draws.info.num_steps.double().mean(0).cumsum(0).numpy()
        yield _Stretch(spent + each, draws, thinning, is_long)
        position, spent = draws.last, spent + float(each[-1])
        cost = max(float(each[-1]) / (len(each) * thinning), 1.0)


def _ends(budget: float, cost: float) -> list[float]:
    """Where stretches end: ..., a quarter, half and all of the budget."""
    ends = [budget]
    while len(ends) < 2 or ends[0] > FINE_TRANSITIONS * cost:
        ends.insert(0, ends[0] / 2)
    return ends


def _cut(stretches: list[_Stretch], budget: float) -> list[_Stretch]:
    """The same up to the first draw that the budget is spent at."""
    last = stretches[-1]
    kept = int(np.searchsorted(last.spent, budget)) + 1
    fields = last.draws.info._asdict().items()
    info = Info(**{name: field[:, :kept] for name, field in fields if field is not None})
    cut = last.draws._replace(
        z=last.draws.z[:, :kept], potential_energy=last.draws.potential_energy[:, :kept], info=info
    )
    return [*stretches[:-1], last._replace(spent=last.spent[:kept], draws=cut)]


def _trail(
    stretches: list[_Stretch],
    ready: Ready,
    target: Target,
    warmup: float,
    seconds: float,
    checkpoints: NDArray[np.float64],
) -> Trail:
    spent = np.concatenate([stretch.spent for stretch in stretches])
    wanted = [*checkpoints[checkpoints < spent[-1]], spent[-1]]
    # The first draw at or after each; early ones may fall on the same.
    places = np.unique(np.searchsorted(spent, wanted))
    long = [stretch for stretch in stretches if stretch.is_long]
    z = torch.cat([stretch.draws.z for stretch in long], 1)
    energy = torch.cat([stretch.draws.potential_energy for stretch in long], 1)
    counts = [len(stretch.spent) for stretch in stretches]
    weights = np.repeat([stretch.thinning for stretch in stretches], counts)
    told = [stretch.draws.info for stretch in stretches]
    accept = torch.cat([info.accept_prob for info in told], 1).double().mean(0).numpy()
    return Trail(
        gradients=warmup + spent[places],
        points=[_position(stretches, int(place)) for place in places],
        long_z=z,
        long_steps=torch.cat([stretch.draws.info.num_steps for stretch in long], 1),
        thinning=long[0].thinning,
        warmup_gradients=warmup,
        walk_gradients=float(spent[-1]),
        batch_gradients=INITIAL + sum(stretch.draws.batch_steps for stretch in stretches),
        transitions=int(weights.sum()),
        acceptance=float(np.average(accept, weights=weights)),
        divergent_share=_divergent_share(told),
        seconds=seconds,
        tuning=_told(ready.warmed.tuning, ready),
        problems=(*ready.problems, *missing_mass(ready.pilot, z, energy, target)),
    )


def _position(stretches: list[_Stretch], place: int) -> Tensor:
    for stretch in stretches:
        if place < len(stretch.spent):
            return stretch.draws.z[:, place]
        place -= len(stretch.spent)
    raise IndexError(place)


def _told(tuning: Tuning, ready: Ready) -> dict[str, float]:
    told = {"step_size": float(tuning.step_size.mean())}
    if tuning.trajectory_length is not None:
        told["trajectory_length"] = float(tuning.trajectory_length)
    if tuning.curvature is not None:
        told["curvature"] = float(tuning.curvature.mean())
    if ready.global_moves is not None:
        told["num_proposals"] = ready.global_moves.num_proposals
        told["global_moves_every"] = ready.global_moves.every
    return told


def _long_draws(start: Tensor) -> int:
    judged = len(start) * min(start.shape[1], MOST_SUSPECTS)
    return min(MOST_LONG_DRAWS, max(LEAST_LONG_DRAWS, LONG_NUMBERS // judged))


def _check_left(left: float, warmup: float, cost: float) -> None:
    wanted = 2 * LEAST_LONG_DRAWS * max(cost, 1.0)
    if left < wanted:
        raise ValueError(
            f"budget: expected at least {warmup + wanted:,.0f} gradients a chain, {warmup:,.0f} of "
            f"them for warm-up; got {warmup + left:,.0f}; raise it, or lower warmup_steps"
        )


def _check_alive(stretches: list[_Stretch]) -> None:
    told = [stretch.draws.info for stretch in stretches]
    share = _divergent_share(told)
    if share == 1:
        raise RuntimeError("every transition diverged; the step is too large, or the energy broken")
    if not any(bool((info.accept_prob > 0).any()) for info in told):
        raise RuntimeError(
            f"no proposal was accepted ({share:.0%} of the draws diverged): the chains never left "
            "the base samples; the step is too large, or the energy broken"
        )
    draws = sum(len(stretch.spent) for stretch in stretches if stretch.is_long)
    if draws < LEAST_DIAGNOSED:
        raise RuntimeError(
            f"the second half of the walk has {draws} draws, too few for R-hat: transitions cost "
            "more than in warm-up; raise the budget"
        )


def _divergent_share(told: list[Info]) -> float:
    """Of draws, those with a divergence."""
    return float(torch.cat([info.diverging for info in told], 1).double().mean())
