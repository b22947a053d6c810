"""Copies from a device into the CPU's memory, beside whatever goes on."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import torch
from torch import Tensor

MOST_PENDING = 32
"""Copies that wait for the thread, each in pinned memory of its own; a draw has some ten fields."""


@final
class Writer:
    """Writes tensors into rooms in the CPU's memory, in the order that they come.

    What comes from a CUDA device is copied while the device and Python go on: by the device into
    pinned memory, and from there by a thread, since touching new memory takes its time.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def write(self, values: Tensor, room: Tensor, where: tuple[Tensor, ...] | None = None) -> None:
        """``room[where] = values``; of all of the room without ``where``, (R,) each, on the CPU.

        Neither must change before ``wait``.
        """
        values = values.to(room.dtype)
        if not values.is_cuda:
            _put(values, room, where)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
        while len(self._pending) >= MOST_PENDING:
            self._pending.popleft().result()
        staged = torch.empty(values.shape, dtype=room.dtype, device="cpu", pin_memory=True)
        staged.copy_(values, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(torch.cuda.current_stream(values.device))
        self._pending.append(self._thread.submit(_put, staged, room, where, ready))

    def wait(self) -> None:
        """Until all is written."""
        while self._pending:
            self._pending.popleft().result()


def _put(
    values: Tensor,
    room: Tensor,
    where: tuple[Tensor, ...] | None,
    ready: torch.cuda.Event | None = None,
) -> None:
    if ready is not None:
        ready.synchronize()
    if where is None:
        room.copy_(values)
    else:
        room.index_put_(where, values)
