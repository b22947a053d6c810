"""Collecting finished transitions into draws: thinning, counting, and where each chain stopped."""

from typing import final

import torch
from torch import Tensor

from pyro_gebm.mcmc.draws import Buffers, Position, merge
from pyro_gebm.mcmc.kernel import (
    Info,
    KernelState,
    last_rows,
    put_rows,
    select,
    take_rows,
    zero_rows,
)
from pyro_gebm.mcmc.transitions import Finished


@final
class Collector:
    """Puts transitions into buffers, and knows where each chain stopped.

    Args:
        buffers: what is filled.
        start: where the chains are before the first transition.
        thinning: transitions per draw.
    """

    def __init__(self, buffers: Buffers, start: Position, thinning: int = 1) -> None:
        self.buffers, self.thinning = buffers, thinning
        self.is_free = False
        """Chains finish at steps of their own."""
        self._position = start
        self._chains = len(buffers.count)
        self._first_step = self._last_step = int(start.step.min())
        self._latest = self._drawn = start.state, self._first_step
        self._told: Info | None = None
        self._in_step = 0
        """Transitions that ``_told`` tells of, of kernels whose chains go in step."""
        self._parts = torch.zeros_like(start.step)
        """The same by chain, where they run freely."""
        self._goal = start.transitions + buffers.num_samples * thinning
        """Transitions that each chain will have made when it has all its draws."""

    @property
    def batch_steps(self) -> int:
        """Steps of the batch so far; of kernels in step, transitions."""
        return self._last_step - self._first_step

    @property
    def transitions(self) -> int:
        """Transitions of a chain so far, on average over chains that run freely."""
        if self.is_free:
            return int(self.buffers.count.double().mean() * self.thinning)
        return self.batch_steps

    @property
    def position(self) -> Position:
        """Where a later run goes on: after the last whole draw."""
        if self.is_free:
            return self._position
        done = self._first_step + self.buffers.whole() * self.thinning
        # Ctrl-C may have come between a draw and the note of where it was made.
        state = next(state for state, step in (self._latest, self._drawn) if step == done)
        step = torch.full_like(self._position.step, done)
        return Position(state, step, step)

    def take(self, event: Finished) -> None:
        """Note what has finished; chains whose buffer is full are left out."""
        self._last_step = event.step
        if event.rows is None:
            self._take_all(event)
            return
        self.is_free = True
        rows, state, info = event.rows, event.state, event.info
        wanted = self.buffers.has_room(rows)
        if wanted is not None:
            rows, state, info = rows[wanted], take_rows(state, wanted), take_rows(info, wanted)
        if len(rows):
            self._take_some(rows, state, info, event.step)

    def _take_all(self, event: Finished) -> None:
        state, info = event.state, event.info
        if len(state.z) > self._chains:  # of a kernel of several levels, the last one's chains
            state, info = last_rows(state, self._chains), last_rows(info, self._chains)
        self._in_step += 1
        if self._told is not None and self._in_step > 1:
            info = merge(self._told, info, self._in_step)
        self._told = info
        if self._in_step == self.thinning:
            self._in_step = 0
            self._latest = event.state, event.step
            self.buffers.put_all(state, info)
            self._drawn = self._latest

    def _take_some(self, rows: Tensor, state: KernelState, info: Info, step: int) -> None:
        if self.thinning > 1:
            rows, state, info = self._thin(rows, state, info)
        if not len(rows):
            return
        ended = self.buffers.put(rows, state, info)
        if bool(ended.any()):
            ended = ended.to(rows.device)
            last, where = self._position, rows[ended]
            stopped = put_rows(last.state, where, take_rows(state, ended))
            self._position = Position(
                stopped,
                last.step.index_fill(0, where, step),
                last.transitions.index_copy(0, where, self._goal[where]),
            )

    def _thin(
        self, rows: Tensor, state: KernelState, info: Info
    ) -> tuple[Tensor, KernelState, Info]:
        """The chains that have made ``thinning`` transitions, and what these tell together."""
        count = self._parts[rows] + 1
        if self._told is None:
            self._told = zero_rows(info, self._chains)
        before = take_rows(self._told, rows)
        told = select(count == 1, info, merge(before, info, count))
        self._told = put_rows(self._told, rows, told)
        self._parts[rows] = count % self.thinning
        out = count == self.thinning
        return rows[out], take_rows(state, out), take_rows(told, out)
