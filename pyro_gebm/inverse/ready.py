"""What the draws of many problems start from: warm-up, replicas, or an earlier run."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm.inverse.problems import Problems, by_level, start_all, tuned_by_problem
from pyro_gebm.mcmc import GlobalMoves, Kernel, Moves, warm_up
from pyro_gebm.mcmc.random import Streams
from pyro_gebm.mcmc.tempering import temper
from pyro_gebm.mcmc.transitions import transitions
from pyro_gebm.sampling.ladder import MAX_LEVELS, TemperingChoice, place
from pyro_gebm.sampling.ready import Ready
from pyro_gebm.sampling.resume import check_same_run, read_state, restore

PILOT_CHAINS, PILOT_WARMUP, PILOT_STEPS, PILOT_ROUNDS = 4, 30, 40, 3
FIRST_LEVELS = 10
PHASE = 2


class Plan(NamedTuple):
    """How the chains of all problems move."""

    problems: Problems
    kernel: Kernel
    num_chains: int
    warmup_steps: int
    num_samples: int
    thinning: int
    target_accept_prob: float | None
    global_moves: GlobalMoves | None
    tempering: TemperingChoice
    progress: bool

    def moves(self, ladder: tuple[float, ...] | None, global_moves: GlobalMoves | None) -> Moves:
        """What moves them: replicas along a ladder, or the kernel and global moves."""
        problems = self.problems
        if ladder is None:
            return Moves(self.kernel, problems.potential_fn, problems.reference, global_moves)
        replicas = temper(self.kernel, ladder, problems.reference)
        return Moves(replicas, by_level(problems, self.num_chains))


def warmed_up(plan: Plan, start: Tensor, seed: int) -> Ready:
    """The chains of every problem after warm-up, each problem tuned by itself.

    Args:
        plan: what was asked for.
        start: of the coldest replicas, (P·C, D').
        seed: of all noise.
    """
    ladder = choose_ladder(plan, seed)
    moves = plan.moves(ladder, plan.global_moves)
    if ladder is not None:
        hotter = [start_all(plan.problems, plan.num_chains) for _ in ladder[1:]]
        start = torch.cat([*hotter, start])
    warmed = warm_up(
        moves._replace(kernel=tuned_by_problem(moves.kernel, plan.problems.num_problems)),
        start,
        plan.warmup_steps,
        target_accept_prob=plan.target_accept_prob,
        seed=seed,
        progress=plan.progress,
    )
    return Ready(warmed, seed, plan.global_moves, ladder)


# --- temperatures ------------------------------------------


def choose_ladder(plan: Plan, seed: int) -> tuple[float, ...] | None:
    """One ladder for all problems, as ``sample`` chooses it for one; ``None`` without tempering.

    Levels stand at equal shares of the mean rejection between neighbours; "auto" takes as many
    as the problem wants that has the largest barrier.
    """
    if plan.tempering is None or isinstance(plan.tempering, tuple):
        return plan.tempering
    ladder = tuple(2.0 ** (k - FIRST_LEVELS + 1) for k in range(FIRST_LEVELS))
    for pilot in range(PILOT_ROUNDS):
        rejections = _pilot(plan, ladder, seed + pilot)
        levels = min(MAX_LEVELS, math.ceil(2 * float(rejections.sum(0).max()) + 1))
        if isinstance(plan.tempering, int):
            levels = plan.tempering - 1
        ladder = place(ladder, rejections.mean(1), max(1, levels))
    return ladder


def _pilot(plan: Plan, ladder: tuple[float, ...], seed: int) -> NDArray[np.float64]:
    """Rejection rates between neighbours, (K, P)."""
    short = plan._replace(num_chains=PILOT_CHAINS, warmup_steps=PILOT_WARMUP, progress=False)
    start = start_all(plan.problems, PILOT_CHAINS)
    ready = warmed_up(short._replace(tempering=ladder), start, seed)
    moves, warmed = short.moves(ladder, None), ready.warmed
    streams = Streams(seed, len(warmed.position.step), start.device, PHASE)
    stream = transitions(moves, warmed.position, warmed.tuning, streams)
    told = [next(stream).info.swap_accept_prob for _ in range(PILOT_STEPS)]
    accept = torch.stack([t for t in told if t is not None])
    by_problem = accept.view(PILOT_STEPS, len(ladder), plan.problems.num_problems, -1)
    rates: NDArray[np.float64] = 1 - by_problem.double().nanmean((0, 3)).cpu().numpy()
    return rates


# --- an earlier run ------------------------------------------


def resumed(plan: Plan, resume: Any, seed: int | None, device: torch.device) -> Ready:
    """Where an earlier run of ``sample_many`` has ended.

    Args:
        plan: what was asked for.
        resume: the result of that run.
        seed: what was asked for; that run's, or ``None``.
        device: of the observations.

    Raises:
        ValueError: it holds no state, or one of other settings, another model or other data.
    """
    state = read_state(resume)
    about = resume.attrs
    was = str(about["kernel"]), int(about["num_chains"]), int(about.get("num_problems", 0))
    now = plan.kernel.name, plan.num_chains, plan.problems.num_problems
    if was != now:
        raise ValueError(
            "resume: expected a run of {} with {} chains for each of {} problems; got one of {} "
            "with {} chains for each of {}; give the settings of that run".format(*now, *was)
        )
    ready = restore(state, device, int(about["seed"]))
    choices = seed, plan.kernel, plan.thinning, plan.tempering, plan.global_moves
    check_same_run(resume, ready, *choices)
    _check_potential(plan.problems, ready, plan.num_chains)
    return ready


def _check_potential(problems: Problems, ready: Ready, num_chains: int) -> None:
    """Whether U is what it was where the chains stand; not so of other data or another model."""
    state, rows = ready.warmed.position.state, problems.num_problems * num_chains
    with torch.no_grad():
        now = problems.potential_fn(state.z[-rows:])
    then = state.potential_energy[-rows:]
    if not torch.allclose(now, then, rtol=1e-4, atol=1e-4 * float(then.abs().max())):
        raise ValueError(
            "resume: expected the model and the observations of that run; got a potential that "
            "differs where its chains stand"
        )
