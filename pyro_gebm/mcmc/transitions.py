"""Streams of finished transitions: of all chains in step, or of each chain when it is ready."""

from collections.abc import Generator as Iterating
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.draws import Position
from pyro_gebm.mcmc.free_jumps import FreeJumps
from pyro_gebm.mcmc.global_moves import GlobalMoves, jump_all
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, take_rows
from pyro_gebm.mcmc.masked_nuts import Advancer
from pyro_gebm.mcmc.nuts import NUTS, plant_, tree_noise
from pyro_gebm.mcmc.random import Streams, normal, shared_uniform
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.mcmc.tree import new_trees, told
from pyro_gebm.mcmc.tuning import Tuning


class Moves(NamedTuple):
    """What moves the chains."""

    kernel: Kernel
    potential_fn: PotentialFn
    reference: Reference | None = None
    global_moves: GlobalMoves | None = None


class Finished(NamedTuple):
    """Transitions that ended with a step of the batch."""

    rows: Tensor | None
    """The chains, (R,); ``None`` for all."""
    state: KernelState
    """Where they are, R rows."""
    info: Info
    step: int
    """Steps of the batch so far: a chain that stops here goes on from there."""


Transitions: TypeAlias = Iterating[Finished, Tuning | None, None]
"""Send it a tuning, and the next transitions use it."""


def check_moves(moves: Moves) -> None:
    """Raise if there are global moves, and nothing to propose from."""
    if moves.global_moves is not None and moves.reference is None:
        raise ValueError("global_moves: expected a reference to propose from; got None")


def transitions(moves: Moves, position: Position, tuning: Tuning, streams: Streams) -> Transitions:
    """Transitions without end, from ``position``: NUTS runs freely, all others in step.

    Raises:
        ValueError: global moves without reference.
    """
    check_moves(moves)
    if isinstance(moves.kernel, NUTS):
        return _freely(moves, moves.kernel, position, tuning, streams)
    return _in_step(moves, position, tuning, streams)


def _in_step(moves: Moves, position: Position, tuning: Tuning, streams: Streams) -> Transitions:
    state, step = position.state, int(position.step[0])
    tuning = tuning.settled()
    while True:
        generator = streams.at(step)
        state, info = moves.kernel.step(moves.potential_fn, state, tuning, generator=generator)
        if moves.global_moves is not None:
            state, info = _jump_in_step(moves, state, info, streams)
        step += 1
        if (sent := (yield Finished(None, state, info, step))) is not None:
            tuning = sent.settled()


def _jump_in_step(
    moves: Moves, state: KernelState, info: Info, streams: Streams
) -> tuple[KernelState, Info]:
    assert moves.global_moves is not None and moves.reference is not None
    if shared_uniform(streams) * moves.global_moves.every >= 1:
        none = torch.full_like(info.accept_prob, torch.nan)
        return state, info._replace(global_accept_prob=none)
    state, accept_prob = jump_all(
        moves.global_moves, moves.potential_fn, moves.reference, state, streams
    )
    return state, info._replace(global_accept_prob=accept_prob, num_steps=info.num_steps + 1)


def _freely(
    moves: Moves, kernel: NUTS, position: Position, tuning: Tuning, streams: Streams
) -> Transitions:
    """Every step of the batch is one leapfrog step of every chain.

    A chain joins when the batch has come to the step where it stopped; until then a trajectory
    of no consequence runs in its place.
    """
    state, joins = position.state, position.step
    step, last_join = int(joins.min()) - 1, int(joins.max())
    tree = new_trees(state, kernel.max_tree_depth)
    noise, momentum = _noise(state, streams.at(step))
    plant_(tree, tree.every, state, tuning, momentum, noise[:, 3])
    jumps, made = _free_jumps(moves, state), position.transitions.clone()
    advance = Advancer(moves.potential_fn, tree)
    while True:
        step += 1
        noise, momentum = _noise(state, streams.at(step))
        rows, ended = advance(tuning, noise, momentum)
        if step < last_join and ended is not None:
            keep = joins[rows] <= step
            rows, ended = rows[keep], take_rows(ended, keep)
        if ended is not None and len(rows):
            there, info = told(ended)
            if jumps is not None:
                there, info, moved = jumps.apply(rows, made, there, info, streams)
                made[rows] += 1
                if len(where := rows[moved]):
                    some = take_rows(there, moved)
                    plant_(tree, where, some, tuning, momentum[where], noise[where, 3])
            tuning = (yield Finished(rows, there, info, step + 1)) or tuning
        if step < last_join:
            joining = (joins == step + 1).nonzero()[:, 0]
            start = take_rows(state, joining)
            plant_(tree, joining, start, tuning, momentum[joining], noise[joining, 3])


def _free_jumps(moves: Moves, state: KernelState) -> FreeJumps | None:
    if moves.global_moves is None:
        return None
    assert moves.reference is not None
    return FreeJumps(moves.potential_fn, moves.reference, moves.global_moves, state.z)


def _noise(state: KernelState, streams: Streams) -> tuple[Tensor, Tensor]:
    return tree_noise(state.potential_energy, streams), normal(state.z, streams)
