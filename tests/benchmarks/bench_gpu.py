"""Our samplers on a CUDA device: what a gradient costs inside them, and beside compiled JAX.

    python tests/benchmarks/bench_gpu.py --chains 64 1024 16384 --out gpu.json

First table: microseconds of one batched value and gradient, by autograd and replayed from a CUDA
graph (``CapturedPotential``), and of one gradient inside each kernel, all else included. Second
table: ESS a second, warm-up in, compilation (of ours: a first short run) apart; "+compiled" is what
``sample(compile=True)`` does, which records what it has compiled. All matrix products are float32
proper.
"""

import os

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # torch's default; JAX would take TF32

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import Job
from lineup import PREPARE
from measures import diagnose
from tables import tell, write
from targets import TARGETS, TORCH, Target
from torch import Tensor

from pyro_gebm.mcmc import KERNELS, CapturedPotential, CompiledPotential, Draws, Kernel, run
from pyro_gebm.mcmc.gradients import value_and_grad

SCORED = 64
"""Chains whose draws are scored; chains are independent, and ESS grows with their number."""

Potential = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=TARGETS, default="mlp")
    parser.add_argument("--chains", nargs="+", type=int, default=[64, 1024, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peers", nargs="*", default=["numpyro NUTS", "blackjax ChEES"])
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    target, results = TARGETS[given.target](), [machine(given.device)]
    for chains in given.chains:
        start = torch.from_numpy(target.start(chains, 0)).to(given.device)
        results.append(gradients(target, start, given.rounds))
        results += [inside(target, name, start) for name in ("ChEES", "HMC", "MALA", "NUTS")]
        for how in ("", "+compiled"):
            names = [kernel + how for kernel in ("ChEES", "HMC", "NUTS")]
            results += [ours(target, name, start, given.rounds) for name in names]
        results += [peer(target, name, chains, given.rounds) for name in given.peers]
        if given.out:
            write(given.out, results)


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return tell({"measure": "machine", "device": name, "torch": torch.__version__})


def potential_on(target: Target, device: torch.device) -> Potential:
    weights = {name: torch.from_numpy(value).to(device) for name, value in target.weights.items()}
    return lambda z: target.formula(TORCH, weights, z)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds of one call, the device's queue empty before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - started) / repeats


def gradients(target: Target, start: Tensor, rounds: int) -> dict[str, Any]:
    """Microseconds of a value and gradient by autograd, and by replay."""
    plain = potential_on(target, start.device)
    found: dict[str, list[float]] = {"autograd": [], "replay": []}
    both = {"autograd": plain, "replay": CapturedPotential(plain)}
    for _ in range(rounds + 1):
        for name, potential in both.items():
            work = lambda potential=potential: value_and_grad(potential, start)  # noqa: E731
            found[name].append(1e6 * seconds_of(work, start.device, 100))
    medians = {name: statistics.median(values[1:]) for name, values in found.items()}
    return tell({"measure": "gradient_us", "chains": len(start), **medians})


def inside(target: Target, name: str, start: Tensor) -> dict[str, Any]:
    """Microseconds of a gradient inside a kernel: the slope between two lengths of run."""
    found = {}
    for how in ("autograd", "replay"):
        plain = potential_on(target, start.device)
        potential = plain if how == "autograd" else CapturedPotential(plain)
        kernel = KERNELS[name](step_size=0.2)
        draws = 120 if name == "MALA" else 12
        sample(potential, kernel, start, 0, 3)  # recorded, and libraries loaded
        short, long = (sample(potential, kernel, start, 0, n) for n in (2, 2 + draws))
        steps = long["steps"] - short["steps"]
        found[how] = 1e6 * (long["seconds"] - short["seconds"]) / steps
    return tell({"measure": "inside_us", "chains": len(start), "kernel": name, **found})


def sample(
    potential: Potential, kernel: Kernel, start: Tensor, warmup: int, draws: int, seed: int = 0
) -> dict[str, Any]:
    """A run without the diagnosis after it: draws, seconds, gradients of the batch."""

    def work() -> None:
        found.append(
            run(kernel, potential, start, num_samples=draws, warmup_steps=warmup, seed=seed)
        )

    found: list[Draws] = []
    seconds = seconds_of(work, start.device)
    return {"z": found[0].z.numpy(), "seconds": seconds, "steps": found[0].batch_steps}


def ours(target: Target, name: str, start: Tensor, rounds: int) -> dict[str, Any]:
    kernel, compiled = name.removesuffix("+compiled"), name.endswith("+compiled")
    plain = potential_on(target, start.device)
    potential = CapturedPotential(CompiledPotential(plain) if compiled else plain)
    once = sample(potential, KERNELS[kernel](), start, 5, 5)["seconds"] if compiled else 0.0
    sample(potential, KERNELS[kernel](), start, 5, 5)
    runs = [sample(potential, KERNELS[kernel](), start, 100, 100, seed) for seed in range(rounds)]
    return rates(f"ours {name}", len(start), [(r["z"], r["seconds"]) for r in runs], once)


def peer(target: Target, name: str, chains: int, rounds: int) -> dict[str, Any]:
    library, kernel = name.split()
    job = Job(library, kernel, target.name, chains, 100, 100)
    try:
        prepared = PREPARE[library](target, job)
        prepared.runner(99)
        runs = [prepared.runner(seed) for seed in range(rounds)]
    except Exception as error:  # a benchmark reports a failure and goes on
        failed = f"{type(error).__name__}: {str(error)[:200]}"
        return tell({"measure": "ess", "chains": chains, "sampler": name, "failed": failed})
    return rates(name, chains, [(r.z, r.seconds) for r in runs], prepared.compile_seconds)


def rates(name: str, chains: int, runs: list[Any], compiling: float) -> dict[str, Any]:
    """The least bulk ESS over z and z² a second, the median over rounds and the range."""
    found, rhats = [], []
    for z, seconds in runs:
        some = np.asarray(z[:SCORED], float)
        both = np.concatenate([some, some**2], -1)
        found.append(float(diagnose("ess", both).min()) * chains / len(some) / seconds)
        rhats.append(float(diagnose("rhat", both).max()))
    return tell(
        {
            "measure": "ess",
            **{"chains": chains, "sampler": name},
            "ess_per_second": statistics.median(found),
            "range": [min(found), max(found)],
            "seconds": statistics.median(seconds for _, seconds in runs),
            "compile_seconds": compiling,
            "rhat": max(rhats),
        }
    )


if __name__ == "__main__":
    main()
