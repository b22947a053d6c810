"""``metrics.jsonl``: a line of strict JSON per step, which a resumed training continues."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, final

from pyro_gebm._checks import check_count
from pyro_gebm.report.writer import Figure, plain_figure


@final
class MetricsLog:
    """Appends ``{"step": 7, "bound": 0.3}`` to a file, a line per step, some lines at a time.

    Figures that are not finite become ``null``: JSON has no other word for them. An existing
    file is continued; a last line that a killed writer left torn is dropped. To resume a training
    from a checkpoint, call ``truncate_after`` with its step; then the file ends up as that of a
    training that was never stopped. For that, ``flush`` before each checkpoint is written.

    Args:
        path: the file.
        flush_every: lines held back before they are written.

    Raises:
        ValueError: ``flush_every`` is not a whole number >= 1, or the file is no such log.
        OSError: the file cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "metrics.jsonl"
        ...     with MetricsLog(path) as log:
        ...         for step in range(1, 5):
        ...             log.write(step, {"bound": 0.5 * step, "penalty": math.nan})
        ...     with MetricsLog(path) as log:  # resumed from a checkpoint of step 1
        ...         log.truncate_after(1)
        ...         log.write(2, {"bound": 1.0})
        ...     print(path.read_text(), end="")
        {"step": 1, "bound": 0.5, "penalty": null}
        {"step": 2, "bound": 1.0}
    """

    def __init__(self, path: str | Path, *, flush_every: int = 100) -> None:
        self.path = Path(path)
        self._flush_every = check_count("flush_every", flush_every)
        self._lines: list[bytes] = []
        self._last_step = 0
        self._file = self.path.open("a+b")
        try:
            self._keep_while(lambda _: True)
        except BaseException:
            self._file.close()
            raise

    def write(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Add the line of one step.

        Args:
            step: steps done by the whole training, not before that of the last line.
            figures: numbers, tensors of one number, text or ``None``, by name.

        Raises:
            ValueError: the step is before the last one, or a figure is none.
            OSError: the disk is full.
        """
        check_count("step", step, 0)
        if step < self._last_step:
            raise ValueError(
                f"step: expected {self._last_step}, the last in {self.path}, or later; got {step}; "
                "when resuming call truncate_after with the step of the checkpoint"
            )
        if "step" in figures:
            raise ValueError("figures: expected other names than 'step', which each line has")
        record = {"step": int(step), **{n: _strict(n, value) for n, value in figures.items()}}
        self._lines.append(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._last_step = int(step)
        if len(self._lines) >= self._flush_every:
            self._write_out()

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps.

        Raises:
            ValueError: a line before them is not one of this log.
        """
        check_count("step", step, 0)
        self._write_out()
        self._keep_while(lambda found: found <= step)

    def flush(self) -> None:
        """See all lines to the disk; to be called before a checkpoint is written."""
        self._write_out()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write the lines held back, and close the file."""
        with self._file:
            self._write_out()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_out(self) -> None:
        # In one piece: whoever follows the file sees whole lines.
        self._file.write(b"".join(self._lines))
        self._lines.clear()
        self._file.flush()

    def _keep_while(self, wanted: Callable[[int], bool]) -> None:
        """Cut the file at the first line that is torn or whose step is not wanted."""
        self._file.seek(0)
        end = self._last_step = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            step = self._step_of(line, number)
            if not wanted(step):
                break
            end, self._last_step = end + len(line), step
        self._file.truncate(end)

    def _step_of(self, line: bytes, number: int) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{self.path}: line {number} is not a JSON record with a step; remove it, or log "
                "into another file"
            ) from error


def _strict(name: str, value: Figure) -> float | str | None:
    plain = plain_figure(name, value)
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
