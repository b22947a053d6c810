"""Warm-up: the chains leave their starts while their kernel is tuned."""

from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm.mcmc.adaptation import (
    adapt,
    close_window,
    final_tuning,
    restart_steps,
    start_adaptation,
    window_ends,
)
from pyro_gebm.mcmc.collect import Collector
from pyro_gebm.mcmc.draws import Buffers, Position
from pyro_gebm.mcmc.fitting import fit_to_curvature
from pyro_gebm.mcmc.free_jumps import moves_tried
from pyro_gebm.mcmc.gradients import uncompiled
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, join_rows, put_rows_, take_rows
from pyro_gebm.mcmc.random import Streams
from pyro_gebm.mcmc.transitions import Finished, Moves, check_moves, transitions
from pyro_gebm.mcmc.tuning import Tuning

PHASE = 0
"""Warm-up and draws have random streams of their own."""

Bar: TypeAlias = "tqdm[Any]"


class Warmed(NamedTuple):
    """What warm-up ends with: all that the draws start from."""

    position: Position
    tuning: Tuning
    spent: Tensor
    """Gradient evaluations, (C,) int64."""
    draws: tuple[Tensor, Tensor, Info] | None = None
    """z, U and Info of warm-up, if they were kept."""
    num_steps: float = 1.0
    """Gradient evaluations of a transition, on average over the last half of warm-up."""


def progress_bar(kernel: Kernel, chains: int, total: int, progress: bool) -> Bar:
    """A bar over transitions on standard error, shown if ``progress``."""
    return tqdm(
        total=total,
        desc=f"{kernel.name} x {chains} chains",
        disable=not progress,
        mininterval=0.3,
        leave=False,
    )


def no_steps(z: Tensor) -> Tensor:
    """A count of zero for every chain of ``z`` (C, D)."""
    return torch.zeros(len(z), dtype=torch.int64, device=z.device)


@torch.no_grad()
def warm_up(
    moves: Moves,
    z: Tensor,
    warmup_steps: int,
    *,
    target_accept_prob: float | None = None,
    tuning: Tuning | None = None,
    seed: int = 0,
    progress: bool = False,
    keep: bool = False,
    dtype: torch.dtype | None = None,
) -> Warmed:
    """Tune a kernel while its chains leave their starts.

    Args:
        moves: what moves the chains.
        z: where they start, as in ``run``.
        warmup_steps: transitions per chain; of chains that run freely, on average.
        target_accept_prob: what the step size is tuned to; ``None``: the kernel's own.
        tuning: to start from; ``None`` searches for one.
        seed: of all noise.
        progress: show a progress bar on standard error.
        keep: return the draws of warm-up, too.
        dtype: what these are stored in.

    Raises:
        ValueError: global moves without reference.
    """
    check_moves(moves)
    state = moves.kernel.init(uncompiled(moves.potential_fn), z)
    position = Position(state, no_steps(z), no_steps(z))
    if tuning is not None and not warmup_steps:
        return Warmed(position, tuning, no_steps(z))
    chains = len(z) // moves.kernel.num_levels
    kept = Buffers(chains, warmup_steps, dtype) if keep and warmup_steps else None
    streams = Streams(seed, len(z), z.device, PHASE)
    with progress_bar(moves.kernel, chains, warmup_steps, progress) as bar:
        target = target_accept_prob or moves.kernel.target_accept_prob
        return _adapted(moves, position, tuning, warmup_steps, target, streams, kept, bar)


def _adapted(
    moves: Moves,
    position: Position,
    given: Tuning | None,
    warmup_steps: int,
    target: float,
    streams: Streams,
    kept: Buffers | None,
    bar: Bar,
) -> Warmed:
    kernel, waiting = moves.kernel.for_warmup(), _Waiting(position)
    state = take_rows(position.state, waiting.every)  # a copy
    adaptation, tuning, searched = start_adaptation(
        kernel, moves.potential_fn, state, given, streams, kernel.num_levels
    )
    stream = transitions(moves._replace(kernel=kernel), position, tuning, streams)
    none, made = no_steps(state.z), no_steps(state.z)
    spent = first = none + searched
    collector = None if kept is None else Collector(kept, position)
    ends, sent, steps = window_ends(warmup_steps), None, []
    while adaptation.rounds < warmup_steps:
        event = stream.send(sent)
        # A batch that runs freely works all the time, whoever has finished.
        if event.rows is None:
            state, spent = event.state, spent + event.info.num_steps
        else:
            put_rows_(state, event.rows, event.state)
            made.index_add_(0, event.rows, torch.ones_like(event.rows))
            spent = first + event.step
        steps.append(event.info.num_steps)
        waiting.add(event)
        if kernel.step_size_per_chain or waiting.count >= adaptation.missing:
            before = adaptation.rounds
            adaptation, tuning = adapt(kernel, adaptation, tuning, *waiting.take(), target)
            if adaptation.rounds > before:
                bar.update()
                if adaptation.rounds in ends:
                    adaptation, tuning = close_window(kernel, adaptation, tuning)
                    if adaptation.rounds in ends[-2:]:
                        is_last = adaptation.rounds == ends[-1]
                        tuning, cost = fit_to_curvature(
                            kernel, moves.potential_fn, state, tuning, streams, spent, is_last
                        )
                        first, spent = first + cost, spent + cost
                        adaptation = restart_steps(adaptation, tuning)
        if collector is not None:
            collector.take(event)
        sent = tuning
    spent = spent + moves_tried(moves.global_moves, none, made)  # in step, they are in already
    tuning = final_tuning(kernel, adaptation, tuning)
    mean_steps = float(torch.cat(steps[len(steps) // 2 :]).double().mean()) if steps else 1.0
    draws = None if kept is None else kept.read()
    position = Position(state, no_steps(state.z), no_steps(state.z))
    return Warmed(position, tuning, spent, draws, mean_steps)


@final
class _Waiting:
    """Transitions that nothing has been learned from yet."""

    def __init__(self, position: Position) -> None:
        self.every = torch.arange(len(position.step), device=position.step.device)
        """All chains."""
        self._parts: list[tuple[Tensor, KernelState, Info]] = []
        self.count = 0

    def add(self, event: Finished) -> None:
        rows = self.every if event.rows is None else event.rows
        self._parts.append((rows, event.state, event.info))
        self.count += len(rows)

    def take(self) -> tuple[Tensor, KernelState, Info]:
        rows, states, infos = zip(*self._parts, strict=True)
        self._parts, self.count = [], 0
        return torch.cat(rows), join_rows(states), join_rows(infos)
