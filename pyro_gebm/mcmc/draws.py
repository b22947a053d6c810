"""What a run returns, and the buffers that it fills."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from pyro_gebm.mcmc.kernel import Info, KernelState
from pyro_gebm.mcmc.tuning import Tuning
from pyro_gebm.mcmc.writer import Writer

FLUSH = 64
"""Transitions, or draws of all chains, that wait to be written together: fewer, larger copies."""

FLUSH_BYTES = 2**25
"""Of positions that wait, and of what is held with them, about."""

WINDOW = 256
"""Draws of a chain that runs freely which are handed to a sink together."""

Sink: TypeAlias = Callable[[slice, int, dict[str, Tensor]], None]
"""Takes draws for good: of which chains, the first one's number, fields (chain, draw, ...)."""


class Position(NamedTuple):
    """Where the chains stand, and how far into their noise: all that a run needs to go on."""

    state: KernelState
    step: Tensor
    """Steps of the batch that each chain has used since warm-up, (C,) int64."""
    transitions: Tensor
    """What each chain has made since then, (C,) int64; of kernels in step that is the same."""


class Draws(NamedTuple):
    """What a run returns, chains first everywhere."""

    z: Tensor
    """Positions, (C, S, D), on the CPU; a view, in memory draw by draw."""
    potential_energy: Tensor
    """U at each, (C, S)."""
    info: Info
    """Of the transitions since the draw before, (C, S) each."""
    tuning: Tuning
    """What sampling used."""
    last: Position
    """Where the chains stand."""
    num_warmup_steps: Tensor
    """Gradient evaluations of warm-up, (C,) int64."""
    interrupted: bool
    """Ctrl-C ended the run before all draws were there."""
    batch_steps: int = 0
    """Gradients of the whole batch that the draws took: at least what the slowest chain needed."""
    warmup: "tuple[Tensor, Tensor, Info] | None" = None
    """z, U and Info of warm-up, if they were kept: as many draws as the slowest chain made."""


class _InStep(NamedTuple):
    """Draws of chains that go in step."""

    written: int
    waiting: list[tuple[KernelState, Info]]


class _Loose(NamedTuple):
    """Draws of some chains that run freely, and where they will be written, on the CPU."""

    rows: Tensor
    places: Tensor
    fields: dict[str, Tensor]


@final
class Buffers:
    """Room for the draws of C chains on the CPU; each chain fills its own from the front.

    Args:
        num_chains: C.
        num_samples: S.
        dtype: what positions are stored in; ``None`` keeps theirs.
        sink: where draws go; there is then room for some of them only, and chains hand them on
            when it is full. Handing on is interrupted and repeated as a whole after Ctrl-C.
    """

    def __init__(
        self,
        num_chains: int,
        num_samples: int,
        dtype: torch.dtype | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.count = torch.zeros(num_chains, dtype=torch.int64, device="cpu")
        """Draws of each chain, where they run freely."""
        self._dtypes = {} if dtype is None else {"z": dtype}
        self._sink = sink
        self._room = num_samples if sink is None else min(num_samples, WINDOW)
        self._sent = torch.zeros_like(self.count)
        self._rooms: dict[str, Tensor] = {}
        """Draws first: all chains' next ones are then written side by side."""
        self._in_step = _InStep(0, [])
        self._loose: list[_Loose] = []
        self._loose_bytes = 0
        self._writer = Writer()
        self._num_full = 0

    def has_room(self, rows: Tensor) -> Tensor | None:
        """Which of the chains ``rows`` (R,) can store another draw, (R,) bool; ``None``: all."""
        if not self._num_full:
            return None
        wanted = self.count[rows.cpu()] < self.num_samples
        return None if bool(wanted.all()) else wanted.to(rows.device)

    def put(self, rows: Tensor, state: KernelState, info: Info) -> Tensor:
        """One more draw of some chains: ``rows`` (R,), with R rows in every field.

        Returns:
            Which of them have all their draws now, (R,) bool.
        """
        rows = rows.cpu()
        count = self.count[rows]
        self._loose.append(_Loose(rows, count % self._room, _fields(state, info)))
        # A view holds all that it is a view of.
        self._loose_bytes += state.z.untyped_storage().nbytes()
        # Last, and at once: Ctrl-C may come anywhere, and a draw counts once it is whole.
        self.count.index_copy_(0, rows, count.add_(1))
        if len(self._loose) >= FLUSH or self._loose_bytes >= FLUSH_BYTES:
            self._write_loose()
        if self._sink is not None:
            self._hand_on(self._sink, rows[count - self._sent[rows] == self._room])
        full = count == self.num_samples
        self._num_full += int(full.sum())
        return full

    def _write_loose(self) -> None:
        if self._loose:
            rows, places, fields = zip(*self._loose, strict=True)
            where = torch.cat(places), torch.cat(rows)
            for name, column in _columns(fields):
                values = torch.cat(column)
                self._writer.write(values, self._room_of(name, values), where)
            self._loose, self._loose_bytes = [], 0

    def put_all(self, state: KernelState, info: Info) -> None:
        """One more draw of all chains, which have as many; written a few at a time."""
        waiting = self._in_step.waiting
        waiting.append((state, info))
        if len(waiting) >= FLUSH or len(waiting) * state.z.nbytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all draws that wait, or hand them to the sink."""
        self._write_loose()
        done, waiting = self._in_step
        if waiting:
            columns, end = _columns([_fields(*draw) for draw in waiting]), done + len(waiting)
            if self._sink is None:
                for name, column in columns:
                    self._write_stacked(column, self._room_of(name, column[0])[done:end])
            else:
                stacked = {name: torch.stack(column, 1) for name, column in columns}
                stored = {n: f.to("cpu", self._dtypes.get(n)) for n, f in stacked.items()}
                self._sink(slice(0, len(self.count)), done, stored)
            # One assignment: Ctrl-C must not find draws counted twice, or not at all.
            self._in_step = _InStep(end, [])
        elif self._sink is not None:
            self._hand_on(self._sink, (self.count > self._sent).nonzero()[:, 0])

    def _hand_on(self, sink: Sink, rows: Tensor) -> None:
        """What some chains have in their rooms, which begin with the draw after the last sent."""
        if len(rows):
            self._write_loose()
            self._writer.wait()
        for row in rows.tolist():
            chain, first = slice(row, row + 1), int(self._sent[row])
            end = int(self.count[row])
            own = {n: room[: end - first, chain].transpose(0, 1) for n, room in self._rooms.items()}
            sink(chain, first, own)
            self._sent[row] = end

    def _write_stacked(self, values: list[Tensor], room: Tensor) -> None:
        if values[0].is_cpu and values[0].dtype == room.dtype:
            torch.stack(values, out=room)
        else:
            self._writer.write(torch.stack(values), room)

    def _room_of(self, name: str, like: Tensor) -> Tensor:
        """(S, C, ...) for a field of which ``like`` has some rows."""
        if name not in self._rooms:
            shape = self._room, len(self.count), *like.shape[1:]
            dtype = self._dtypes.get(name) or like.dtype
            self._rooms[name] = torch.empty(shape, dtype=dtype, device="cpu")
        return self._rooms[name]

    def whole(self) -> int:
        """Draws that every chain has."""
        written, waiting = self._in_step
        return written + len(waiting) or int(self.count.min())

    def full(self) -> bool:
        """Whether every chain has all its draws."""
        return self._num_full == len(self.count) or self.whole() == self.num_samples

    def read(self) -> tuple[Tensor, Tensor, Info]:
        """z, U and Info of the draws that every chain has, where there is no sink."""
        self.flush()
        self._writer.wait()
        done = self.whole()
        fields = {name: room[:done].transpose(0, 1) for name, room in self._rooms.items()}
        z, energy = fields.pop("z"), fields.pop("potential_energy")
        return z, energy, Info(**fields)


def _columns(draws: Sequence[dict[str, Tensor]]) -> list[tuple[str, list[Tensor]]]:
    """By field: its values of each draw."""
    return [(name, [draw[name] for draw in draws]) for name in draws[0]]


def _fields(state: KernelState, info: Info) -> dict[str, Tensor]:
    """What is stored of a draw."""
    told = {name: f for name, f in zip(Info._fields, info, strict=True) if f is not None}
    return {"z": state.z, "potential_energy": state.potential_energy, **told}


def merge(total: Info, info: Info, count: int | Tensor) -> Info:
    """What ``count`` transitions tell together, from what the first count - 1 told and the last.

    Steps are summed, acceptance is averaged, divergence and reached limits of any are told, and
    the deepest tree and the largest error are kept; the rest is that of the last, and of global
    moves and exchanges that of the last tried.
    """
    merged = info._replace(
        num_steps=total.num_steps + info.num_steps,
        diverging=total.diverging | info.diverging,
        accept_prob=total.accept_prob + (info.accept_prob - total.accept_prob) / count,
    )
    if total.tree_depth is not None and info.tree_depth is not None:
        merged = merged._replace(tree_depth=torch.maximum(total.tree_depth, info.tree_depth))
    if total.reached_max_treedepth is not None and info.reached_max_treedepth is not None:
        reached = total.reached_max_treedepth | info.reached_max_treedepth
        merged = merged._replace(reached_max_treedepth=reached)
    if total.max_energy_error is not None and info.max_energy_error is not None:
        larger = total.max_energy_error.abs() > info.max_energy_error.abs()
        error = torch.where(larger, total.max_energy_error, info.max_energy_error)
        merged = merged._replace(max_energy_error=error)
    return merged._replace(
        global_accept_prob=_last_tried(total.global_accept_prob, info.global_accept_prob),
        swap_accept_prob=_last_tried(total.swap_accept_prob, info.swap_accept_prob),
    )


def _last_tried(before: Tensor | None, now: Tensor | None) -> Tensor | None:
    """NaN is where none was tried."""
    return now if before is None or now is None else torch.where(now.isnan(), before, now)
