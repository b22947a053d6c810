"""A run: warm-up, then draws into preallocated buffers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.collect import Collector
from pyro_gebm.mcmc.draws import Buffers, Draws, Position
from pyro_gebm.mcmc.free_jumps import moves_tried
from pyro_gebm.mcmc.global_moves import GlobalMoves
from pyro_gebm.mcmc.gradients import uncompiled
from pyro_gebm.mcmc.kernel import Kernel, evaluate
from pyro_gebm.mcmc.random import Streams
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.mcmc.transitions import Moves, Transitions, transitions
from pyro_gebm.mcmc.tuning import Tuning
from pyro_gebm.mcmc.warmup import Bar, Warmed, progress_bar, warm_up

PHASE = 1
"""Warm-up and draws have random streams of their own."""


def run(
    kernel: Kernel,
    potential_fn: PotentialFn,
    z: Tensor,
    *,
    num_samples: int,
    warmup_steps: int,
    thinning: int = 1,
    target_accept_prob: float | None = None,
    tuning: Tuning | None = None,
    seed: int = 0,
    progress: bool = False,
    reference: Reference | None = None,
    global_moves: GlobalMoves | None = None,
) -> Draws:
    """Warm up and draw, all chains in one batch.

    Args:
        kernel: what moves the chains.
        potential_fn: U, (C, D) -> (C,).
        z: where the chains start, (C, D), of finite potential. A kernel of several levels wants
            starts for each, (levels · C, D), and keeps the draws of the last.
        num_samples: draws kept per chain.
        warmup_steps: transitions of warm-up before them, per chain.
        thinning: transitions per draw; the numbers of steps of a draw are summed.
        target_accept_prob: what the step size is tuned to; ``None``: the kernel's own.
        tuning: start from this tuning instead of searching for one (with
            ``warmup_steps=0``: keep it).
        seed: of all noise. Draws from the reference come from torch's global generator, which
            is seeded in passing: fork it where that matters.
        progress: show a progress bar on standard error.
        reference: where global moves propose from.
        global_moves: jumps beside the kernel, also during warm-up.

    Returns:
        The draws; after Ctrl-C those that were whole, all chains of equal length.

    Raises:
        ValueError: global moves without reference.
        KeyboardInterrupt: Ctrl-C came before the first draw.
    """
    moves = Moves(kernel, potential_fn, reference, global_moves)
    warmed = warm_up(
        moves,
        z,
        warmup_steps,
        target_accept_prob=target_accept_prob,
        tuning=tuning,
        seed=seed,
        progress=progress,
    )
    return draw(moves, warmed, num_samples, thinning=thinning, seed=seed, progress=progress)


def draw(
    moves: Moves,
    start: Warmed,
    num_samples: int,
    *,
    thinning: int = 1,
    seed: int = 0,
    progress: bool = False,
    dtype: torch.dtype | None = None,
) -> Draws:
    """Draws from where warm-up, or an earlier call, has ended.

    With the position, tuning and seed of an earlier call they are, bit for bit, those that it
    would have made next.

    Args:
        moves: what moves the chains.
        start: where they stand.
        num_samples: draws kept per chain.
        thinning: transitions per draw.
        seed: of all noise.
        progress: show a progress bar on standard error.
        dtype: what positions are stored in; ``None`` keeps theirs.

    Returns:
        The draws; after Ctrl-C those that were whole, all chains of equal length.

    Raises:
        KeyboardInterrupt: Ctrl-C came before the first draw.
    """
    chains = len(start.position.step) // moves.kernel.num_levels
    buffers = Buffers(chains, num_samples, dtype)
    ended = fill(buffers, moves, start, thinning=thinning, seed=seed, progress=progress)
    z, energy, info = buffers.read()
    last = ended.position
    if ended.interrupted and ended.is_free:
        made = z.shape[1] * thinning
        last = position_at(moves, start.position, z[:, -1], info.num_steps.sum(1), made)
    if ended.is_free:  # moves add their gradients to those of steps
        tried = moves_tried(moves.global_moves, start.position.transitions, last.transitions)
        batch_steps = ended.batch_steps + int(tried.max())
    else:  # all wait for the chain that needs most
        batch_steps = int(info.num_steps.amax(0).sum())
    return Draws(
        z=z,
        potential_energy=energy,
        info=info,
        tuning=start.tuning,
        last=last,
        num_warmup_steps=start.spent,
        interrupted=ended.interrupted,
        batch_steps=batch_steps,
        warmup=start.draws,
    )


class Ended(NamedTuple):
    """How a run that filled its buffers has ended."""

    position: Position
    """Where a later run goes on; after Ctrl-C, of chains that run freely: not there yet."""
    interrupted: bool
    """Ctrl-C came before all draws were there."""
    is_free: bool
    """The chains ran freely."""
    batch_steps: int
    """Steps of the batch; of chains in step, transitions."""


@torch.no_grad()
def fill(
    buffers: Buffers,
    moves: Moves,
    start: Warmed,
    *,
    thinning: int = 1,
    seed: int = 0,
    progress: bool = False,
    blocks: Sequence[int] | None = None,
) -> Ended:
    """What ``draw`` does, into buffers that the caller reads, or that hand their draws on.

    Args:
        buffers: for the chains of ``start``.
        moves: as in ``draw``.
        start: as in ``draw``.
        thinning: as in ``draw``.
        seed: as in ``draw``.
        progress: as in ``draw``.
        blocks: the numbers of the chains' blocks of 64, where they are part of a larger batch.

    Raises:
        KeyboardInterrupt: Ctrl-C came before the first draw.
    """
    position, z = start.position, start.position.state.z
    collector = Collector(buffers, position, thinning)
    streams = Streams(seed, len(z), z.device, PHASE, blocks)
    total = buffers.num_samples * thinning
    with progress_bar(moves.kernel, len(buffers.count), total, progress) as bar:
        stream = transitions(moves, position, start.tuning, streams)
        interrupted = _collect(collector, stream, bar)
    return Ended(collector.position, interrupted, collector.is_free, collector.batch_steps)


def _collect(collector: Collector, stream: Transitions, bar: Bar) -> bool:
    """Fill the buffers; whether Ctrl-C ended that."""
    try:
        for event in stream:
            collector.take(event)
            if not bar.disable:  # a mean over chains at every step, for nobody
                bar.update(collector.transitions - bar.n)
            if collector.buffers.full():
                return False
    except KeyboardInterrupt:
        if not collector.buffers.whole():
            raise
    return True


def position_at(
    moves: Moves, start: Position, z: Tensor, gradients: Tensor, transitions: int
) -> Position:
    """Where freely running chains stood when they made their last common draw ``z`` (C, D).

    Args:
        moves: what moved them.
        start: where they stood before.
        z: (C, D).
        gradients: that each chain has used since then, (C,).
        transitions: that it has made.
    """
    state = evaluate(uncompiled(moves.potential_fn), z.to(start.state.z))
    made = start.transitions + transitions
    # The gradients of moves are no steps of the batch.
    tried = moves_tried(moves.global_moves, start.transitions, made)
    return Position(state, start.step + gradients.to(tried) - tried, made)
