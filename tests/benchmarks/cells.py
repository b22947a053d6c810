"""A cell of the table: a job, its runs, and what went wrong."""

import gc
import signal
import statistics
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jobs import Job, Prepared, Run
from lineup import PREPARE
from measures import Scores, score, verdict
from targets import TARGETS


class TimeLimitError(Exception):
    """A run took longer than it may."""


@dataclass
class Cell:
    """A job and what its runs gave so far."""

    job: Job
    prepared: Prepared | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    traceback: str = ""

    @property
    def status(self) -> str:
        verdicts = sorted({run["verdict"] for run in self.runs} - {"ok"})
        return self.error or ", ".join(verdicts) or "ok"

    def median(self, name: str) -> float:
        return statistics.median(run[name] for run in self.runs) if self.runs else float("nan")


def attempt(cell: Cell, seed: int, limit: float) -> None:
    """One run of a cell, scored; what goes wrong is noted and ends the cell."""
    job = cell.job
    target = TARGETS[job.target]()
    try:
        with time_limit(limit):
            if cell.prepared is None:
                cell.prepared = PREPARE[job.library](target, job)
            run = cell.prepared.runner(seed)
        scores = score(target, run)
    except Exception as error:  # a benchmark reports a failure and goes on
        cell.traceback = traceback.format_exc()
        cell.error = f"failed: {type(error).__name__}: {str(error)[:80]}"
        return
    cell.runs.append(
        {
            "seed": seed,
            **{name: value for name, value in run._asdict().items() if name != "z"},
            **scores._asdict(),
            **rates(run, scores),
            "verdict": verdict(scores, job.chains),
        }
    )
    gc.collect()


def rates(run: Run, scores: Scores) -> dict[str, float]:
    """What a second and a thousand gradients give; the lesser ESS of z and z² counts."""
    least = min(scores.ess, scores.ess_square)
    return {
        "ess_per_second": least / run.seconds,
        "ess_per_cpu_second": least / run.cpu_seconds,
        "ess_per_kgradient": 1000 * least / run.gradients,
        "mode_ess_per_kgradient": 1000 * scores.mode_ess / run.gradients,
        "within_ess_per_second": scores.within_ess / run.seconds,
    }


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeLimitError`` in the block after so many seconds of the processor.

    Not of the clock, so that a busy machine fails nobody; compiled code is let finish first.
    """

    def stop(*_: object) -> None:
        raise TimeLimitError(f"over {seconds:.0f} s of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
