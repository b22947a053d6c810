"""What a run is asked for and what it gives back, in the same words for every library."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


class Job(NamedTuple):
    """One cell of the table."""

    library: str
    kernel: str
    target: str
    chains: int
    draws: int
    warmup: int
    starts: str = "base"

    @property
    def is_jax(self) -> bool:
        """The library is on jax, not torch."""
        return self.library in ("numpyro", "blackjax")

    @property
    def batch(self) -> int:
        """Chains that advance in one call of the potential; Pyro takes them one by one."""
        return 1 if self.library == "pyro" else self.chains

    @property
    def key(self) -> str:
        """What tells it from every other job, and its lengths."""
        return " ".join(map(str, self))


class Run(NamedTuple):
    """What one run of a job gave."""

    z: NDArray[Any]  # (C, S, D)
    seconds: float  # wall clock, warm-up included, compilation not
    cpu_seconds: float
    gradients: int  # of all chains, warm-up included
    sampling_gradients: int  # of all chains, without warm-up
    divergences: int  # transitions of sampling
    batch_steps: int | None = None  # gradients of the whole batch, if the sampler says


Runner = Callable[[int], Run]
"""Seed -> one run; whatever is compiled or loaded once is so already."""


class Prepared(NamedTuple):
    """A runner, and what it cost to get it ready."""

    runner: Runner
    compile_seconds: float  # 0 where nothing is


@dataclass
class Watch:
    """Wall-clock and processor seconds of a block."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def watch() -> Iterator[Watch]:
    """Time a block: ``with watch() as spent: ...``, then ``spent.wall``."""
    spent = Watch()
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent.wall, spent.cpu = time.perf_counter() - wall, time.process_time() - cpu


def use_one_core() -> None:
    """One thread and one processor for every library: call it before jax is imported."""
    import torch

    os.environ.update(ONE_THREAD)
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # XLA keeps a pool of threads whatever the flags say; the affinity binds them all.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
