"""A process for each job: prepares it once, runs it round by round when it is told to.

A process of its own makes its memory its own, and its crash nobody else's. It is forked, so that
what all share is imported once; jax is imported in the processes that need it.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import memory
import torch
from digits import make_target
from jobs import Job, Run, watch
from lineup import PREPARE
from measures import Scores, score, verdict
from targets import Target

PATIENCE = 8  # times the limit, of the clock: a busy machine fails nobody
BARE_SECONDS = 0.15


class TimeLimitError(Exception):
    """A run took longer than it may."""


class Worker:
    """The process of a job, seen from outside."""

    def __init__(self, job: Job, folder: Path, limit: float) -> None:
        self.job, self.limit = job, limit
        context = multiprocessing.get_context("fork")
        self.connection, inner = context.Pipe()
        self.process = context.Process(target=serve, args=(inner, job, folder, limit), daemon=True)
        self.process.start()
        inner.close()

    def ready(self) -> dict[str, Any]:
        """Wait until it is prepared: the seconds that are paid once, or its error."""
        return self._answer()

    def run(self, seed: int) -> dict[str, Any]:
        """One run, scored, or its error."""
        self.connection.send(seed)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()

    def _answer(self) -> dict[str, Any]:
        try:
            if self.connection.poll(PATIENCE * self.limit):
                return self.connection.recv()
        except EOFError:
            self.process.join()
            return {"error": f"failed: its process died ({self.process.exitcode})"}
        return {"error": f"failed: no answer in {PATIENCE * self.limit:.0f} s"}


def serve(connection: Connection, job: Job, folder: Path, limit: float) -> None:
    """The process: one answer when prepared, one for each seed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    target = make_target(job.target, folder)

    def prepare() -> dict[str, Any]:
        nonlocal runner, gradient
        prepared = PREPARE[job.library](target, job)
        runner, gradient = prepared.runner, bare_gradient(target, job)
        return {"once_seconds": prepared.compile_seconds or short_run(target, job)}

    runner: Callable[[int], Run]
    gradient: Callable[[], Any]
    connection.send(answer(prepare, limit))
    while True:
        try:
            seed = connection.recv()
        except EOFError:
            return
        found = answer(lambda seed=seed: measure(target, job, runner, gradient, seed), limit)
        connection.send(found)


def short_run(target: Target, job: Job) -> float:
    """Seconds of a first run of a library that compiles nothing: imports and caches are paid once.

    It may be too short for what a library wants to learn; the real one will say so.
    """
    with watch() as spent, suppress(Exception):
        PREPARE[job.library](target, job._replace(draws=10, warmup=10)).runner(0)
    return spent.wall


def answer(work: Callable[[], dict[str, Any]], limit: float) -> dict[str, Any]:
    """What ``work`` gives, or what went wrong: a benchmark reports a failure and goes on."""
    try:
        with time_limit(limit):
            return work()
    except Exception as error:
        short = f"failed: {type(error).__name__}: {str(error)[:80]}"
        return {"error": short, "traceback": traceback.format_exc()}


def measure(
    target: Target, job: Job, runner: Callable[[int], Run], gradient: Callable[[], Any], seed: int
) -> dict[str, Any]:
    """One run: what it took, and how good it was."""
    bare = seconds_of(gradient)
    before = memory.settle()
    run = runner(seed)
    most = memory.peak() - before
    with time_limit(0):  # scoring is no part of a run
        scores = score(target, run)
    return {
        "seed": seed,
        "load": os.getloadavg()[0],
        **{name: value for name, value in run._asdict().items() if name != "z"},
        **scores._asdict(),
        **rates(run, scores),
        "bare_milliseconds": 1000 * bare,
        "overhead": run.cpu_seconds / (bare * run.gradients / job.batch),
        "memory_mib": most,
        "verdict": verdict(scores, job.chains),
    }


def rates(run: Run, scores: Scores) -> dict[str, float]:
    """What a second of the processor and a thousand gradients give.

    The lesser bulk ESS of z and z² counts.
    """
    bulk, tail = min(scores.ess, scores.ess_square), scores.ess_tail
    return {
        "bulk_per_second": bulk / run.cpu_seconds,
        "tail_per_second": tail / run.cpu_seconds,
        "bulk_per_wall_second": bulk / run.seconds,
        "bulk_per_kgradient": 1000 * bulk / run.gradients,
        "tail_per_kgradient": 1000 * tail / run.gradients,
        "mode_ess_per_second": scores.mode_ess / run.cpu_seconds,
    }


def bare_gradient(target: Target, job: Job) -> Callable[[], Any]:
    """One value and gradient of the batch that the library hands over, in its own language."""
    start = target.start(job.batch, 0)
    if job.is_jax:
        import jax

        function = jax.jit(jax.vmap(jax.value_and_grad(target.jax_potential())))
        start = jax.numpy.asarray(start)
        return lambda: jax.block_until_ready(function(start))
    potential_fn = target.torch_potential()

    def by_torch() -> Any:
        z = torch.from_numpy(start).requires_grad_(True)
        return torch.autograd.grad(potential_fn(z).sum(), z)

    return by_torch


def seconds_of(gradient: Callable[[], Any]) -> float:
    """Processor seconds of a call, over many."""
    gradient()  # the first compiles
    calls, seconds = 0, 0.0
    while seconds < BARE_SECONDS:
        with watch() as spent:
            for _ in range(max(1, calls)):
                gradient()
        calls, seconds = calls + max(1, calls), seconds + spent.cpu
    return seconds / calls


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeLimitError`` in the block after so many seconds of the processor; 0: never.

    Not of the clock, so that a busy machine fails nobody; compiled code is let finish first.
    """

    def stop(*_: object) -> None:
        raise TimeLimitError(f"over {seconds:.0f} s of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    left, _ = signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, left)
        signal.signal(signal.SIGPROF, before)
