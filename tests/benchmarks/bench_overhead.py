"""What our kernels add to the gradients they need, and what a batch of chains wastes.

    python tests/benchmarks/bench_overhead.py --quick

Three tables: the cost of a gradient inside each kernel over that of a bare one; how many of the
gradients that NUTS computes for the batch its chains needed; what a short warm-up of many chains
gives up. Rounds are interleaved, figures are medians over them.
"""

import argparse
import statistics
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jobs import use_one_core, watch

use_one_core()

from measures import diagnose  # noqa: E402
from tables import tell, write  # noqa: E402
from targets import TARGETS, Counted, Target  # noqa: E402
from torch import Tensor  # noqa: E402

import pyro_gebm as pg  # noqa: E402

KERNELS = ["NUTS", "HMC", "ChEES", "MALA", "Kinetic"]
STEP_SIZE = 0.2


class Timed(NamedTuple):
    """One run of ``pg.sample``."""

    idata: Any
    seconds: float
    potential_fn: Counted


def main() -> None:
    """Run the three, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["mlp", "modes8"])
    parser.add_argument("--chains", nargs="+", type=int, default=[1, 4, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gradients", type=int, default=300, help="per kernel and round")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--quick", action="store_true", help="64 chains, 3 rounds, 100 gradients")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.chains, arguments.rounds, arguments.gradients = [64], 3, 100
    results: list[dict[str, Any]] = []
    for target in (TARGETS[name]() for name in arguments.targets):
        for chains in arguments.chains:
            results += overhead(target, chains, arguments.rounds, arguments.gradients)
            results.append(waste(target, chains))
    if not arguments.quick:
        results += economy(TARGETS["mlp"](), arguments.rounds)
    if arguments.out:
        write(arguments.out, results)


def overhead(target: Target, chains: int, rounds: int, gradients: int) -> list[dict[str, Any]]:
    """Seconds of a gradient inside each kernel over those of a bare one."""
    start = torch.from_numpy(target.start(chains, 0, "base" if target.modes is None else "exact"))
    bare, found = [], {name: [] for name in KERNELS}
    for round_ in range(rounds):
        bare.append(bare_gradient(target, start, gradients))
        for name in KERNELS:
            found[name].append(kernel_gradient(name, target, start, gradients, seed=round_))
    results = []
    for name, seconds in found.items():
        ratios = [inside / alone for inside, alone in zip(seconds, bare, strict=True)]
        result = {
            "measure": "overhead",
            **{"target": target.name, "chains": chains, "kernel": name},
            "bare_microseconds": 1e6 * statistics.median(bare),
            "kernel_microseconds": 1e6 * statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
        results.append(tell(result))
    return results


def bare_gradient(target: Target, start: Tensor, repeats: int) -> float:
    """Seconds of one batched value and gradient, by torch alone."""
    potential_fn = target.torch_potential()
    with watch() as spent:
        for _ in range(repeats):
            z = start.detach().requires_grad_(True)
            torch.autograd.grad(potential_fn(z).sum(), z)
    return spent.wall / repeats


def kernel_gradient(name: str, target: Target, start: Tensor, gradients: int, seed: int) -> float:
    """Seconds of one batched gradient within a run, found as the slope of two lengths."""
    try:
        kernel = getattr(pg, name)(step_size=STEP_SIZE)
        per_draw = sample(kernel, target, start, 0, 10, seed).potential_fn.calls / 10
        short = sample(kernel, target, start, 0, 2, seed)
        long = sample(kernel, target, start, 0, 2 + max(8, round(gradients / per_draw)), seed)
    except (AttributeError, ValueError):  # ChEES wants several chains
        return float("nan")
    return (long.seconds - short.seconds) / (long.potential_fn.calls - short.potential_fn.calls)


def waste(target: Target, chains: int) -> dict[str, Any]:
    """Gradients that NUTS computed for the batch, over those its chains needed."""
    start = torch.from_numpy(target.start(chains, 0, "base" if target.modes is None else "exact"))
    short, long = (sample(pg.NUTS(), target, start, 100, draws, 0) for draws in (1, 51))
    computed = long.potential_fn.positions - short.potential_fn.positions
    needed = int(long.idata["sample_stats"]["n_steps"].values[:, 1:].sum())
    return tell(
        {
            "measure": "waste",
            **{"target": target.name, "chains": chains, "kernel": "NUTS"},
            "computed_over_needed": computed / needed,
        }
    )


def economy(target: Target, rounds: int) -> list[dict[str, Any]]:
    """ESS a second of the sampling phase after 40 and after 400 transitions of warm-up."""
    start = torch.from_numpy(target.start(256, 0))
    results = []
    for kernel in ("HMC", "ChEES"):
        for warmup in (40, 400):
            rates = [sampling_rate(kernel, target, start, warmup, seed) for seed in range(rounds)]
            result = {
                "measure": "economy",
                **{"target": target.name, "chains": 256, "kernel": kernel, "warmup": warmup},
                "ess_per_sampling_second": statistics.median(rates),
                "range": [min(rates), max(rates)],
            }
            results.append(tell(result))
    return results


def sampling_rate(kernel: str, target: Target, start: Tensor, warmup: int, seed: int) -> float:
    """ESS of z and z², the lesser, a second of 50 draws; the warm-up is taken away."""
    short, long = (sample(kernel, target, start, warmup, draws, seed) for draws in (1, 51))
    z = long.idata["posterior"]["z"].values.astype(float)
    least = min(diagnose("ess", z).min(), diagnose("ess", z**2).min())
    return float(least / (long.seconds - short.seconds))


def sample(kernel: Any, target: Target, start: Tensor, warmup: int, draws: int, seed: int) -> Timed:
    """``pg.sample`` of a counted potential. The same seed has the same warm-up at any length."""
    potential_fn = Counted(target.torch_potential())
    with watch() as spent, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        idata = pg.sample(
            potential_fn,
            kernel=kernel,
            num_samples=draws,
            warmup_steps=warmup,
            num_chains=len(start),
            initial_params=start,
            global_moves=None,
            seed=seed,
            progress=False,
        )
    # Diagnostics come after the run and are no part of it.
    return Timed(idata, float(idata.attrs.get("sampling_time", spent.wall)), potential_fn)


if __name__ == "__main__":
    main()
