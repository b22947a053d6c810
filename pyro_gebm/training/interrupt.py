"""Ctrl-C between steps, never within one: what was computed can then be written down."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers send before they kill."""


@final
class Interrupted:
    """What ``deferred_interrupt`` yields: call it to ask whether a signal has come."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that came; a process that ends because of it returns 128 + signal."""
        self._leaving = False

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def _arrived(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT and not self._leaving:
            # Not so a second SIGTERM: schedulers send it to a process and to its group.
            raise KeyboardInterrupt

    def _leave(self) -> None:
        self._leaving = True


@contextmanager
def deferred_interrupt() -> Iterator[Interrupted]:
    """Within the block, the first SIGINT or SIGTERM is only noted; a second Ctrl-C raises.

    Samplers stop at once on Ctrl-C, because a draw is either there or not. A training step
    changes parameters, optimisers and random streams one after another, so it is ended first:
    ask after every step, then write the checkpoint inside the block. A signal may also come
    after the last step: ask once more after the block.

    Handlers are put back at the end; a signal that was ignored before stays so. Outside the
    main thread, where Python allows no handlers, nothing is changed and the answer is ``False``.

    Yields:
        What tells whether a signal has come.

    Raises:
        KeyboardInterrupt: SIGINT came after an earlier signal.

    Example:
        >>> with deferred_interrupt() as interrupted:
        ...     for step in range(100):
        ...         if step == 3:
        ...             signal.raise_signal(signal.SIGINT)  # Ctrl-C
        ...         if interrupted():
        ...             break
        >>> step, interrupted.signal
        (3, <Signals.SIGINT: 2>)
    """
    interrupted = Interrupted()
    before = {number: signal.getsignal(number) for number in _ours()}
    try:
        try:
            for number in before:
                signal.signal(number, interrupted._arrived)
            yield interrupted
        finally:
            interrupted._leave()
    finally:
        # SIGINT last, and patient until then: an exception here would leave a handler in place.
        for number, handler in reversed(before.items()):
            signal.signal(number, handler)


def _ours() -> list[signal.Signals]:
    """The signals to take over: none that is ignored, as under nohup, or not Python's."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [n for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
