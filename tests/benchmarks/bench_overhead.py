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

from measures import least_ess  # noqa: E402
from tables import tell, write  # noqa: E402
from targets import TARGETS, Counted, Target  # noqa: E402
from torch import Tensor  # noqa: E402

import pyro_gebm as pg  # noqa: E402
from pyro_gebm._types import PotentialFn  # noqa: E402
from pyro_gebm.mcmc import CompiledPotential  # noqa: E402
from pyro_gebm.mcmc.gradients import value_and_grad  # noqa: E402

KERNELS = ["NUTS", "HMC", "ChEES", "MALA", "Kinetic"]
STEP_SIZE = 0.2


class Timed(NamedTuple):
    """One run of ``pg.sample``."""

    idata: Any
    seconds: float
    gradients: int
    """Of the batch, in draws."""


def main() -> None:
    """Run the three, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["mlp", "modes8"])
    parser.add_argument("--chains", nargs="+", type=int, default=[1, 4, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gradients", type=int, default=300, help="per kernel and round")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    text = "a compiled potential, inside and alone; the table of overheads only"
    parser.add_argument("--compiled", action="store_true", help=text)
    parser.add_argument("--quick", action="store_true", help="64 chains, 3 rounds, 100 gradients")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.chains, arguments.rounds, arguments.gradients = [64], 3, 100
    results: list[dict[str, Any]] = []
    for target in (TARGETS[name]() for name in arguments.targets):
        for chains in arguments.chains:
            how = arguments.rounds, arguments.gradients, arguments.compiled
            results += overhead(target, chains, *how)
            if not arguments.compiled:
                results.append(waste(target, chains))
    if not (arguments.quick or arguments.compiled):
        results += economy(TARGETS["mlp"](), arguments.rounds)
    if arguments.out:
        write(arguments.out, results)


def overhead(
    target: Target, chains: int, rounds: int, gradients: int, compiled: bool
) -> list[dict[str, Any]]:
    """Seconds of a gradient inside each kernel over those of a bare one."""
    plain = target.torch_potential()
    potential_fn = CompiledPotential(plain) if compiled else plain
    start = torch.from_numpy(target.start(chains, 0, "base" if target.modes is None else "exact"))
    bare, uncompiled, found = [], [], {name: [] for name in KERNELS}
    for round_ in range(rounds):
        bare.append(bare_gradient(potential_fn, start, gradients))
        uncompiled.append(bare_gradient(plain, start, gradients) if compiled else bare[-1])
        for name in KERNELS:
            found[name].append(kernel_gradient(name, potential_fn, start, gradients, seed=round_))
    results = []
    for name, seconds in found.items():
        ratios = [inside / alone for inside, alone in zip(seconds, bare, strict=True)]
        over_plain = [inside / alone for inside, alone in zip(seconds, uncompiled, strict=True)]
        result = {
            "measure": "overhead",
            **{"target": target.name, "chains": chains, "kernel": name},
            "bare_microseconds": 1e6 * statistics.median(bare),
            "kernel_microseconds": 1e6 * statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "ratio_to_uncompiled": statistics.median(over_plain),
        }
        results.append(tell(result))
    return results


def bare_gradient(potential_fn: PotentialFn, start: Tensor, repeats: int) -> float:
    """Seconds of one batched value and gradient."""
    value_and_grad(potential_fn, start)  # compiled
    with watch() as spent:
        for _ in range(repeats):
            value_and_grad(potential_fn, start)
    return spent.wall / repeats


def kernel_gradient(
    name: str, potential_fn: PotentialFn, start: Tensor, gradients: int, seed: int
) -> float:
    """Seconds of one batched gradient within a run, found as the slope of two lengths."""
    try:
        kernel = getattr(pg, name)(step_size=STEP_SIZE)
        per_draw = sample(kernel, potential_fn, start, 0, 10, seed).gradients / 10
        short = sample(kernel, potential_fn, start, 0, 2, seed)
        draws = 2 + max(8, round(gradients / per_draw))
        long = sample(kernel, potential_fn, start, 0, draws, seed)
    except (AttributeError, ValueError):  # ChEES wants several chains
        return float("nan")
    return (long.seconds - short.seconds) / (long.gradients - short.gradients)


def waste(target: Target, chains: int) -> dict[str, Any]:
    """Gradients that NUTS computed for the batch, over those its chains needed."""
    start = torch.from_numpy(target.start(chains, 0, "base" if target.modes is None else "exact"))
    counted = [Counted(target.torch_potential()) for _ in range(2)]
    sample(pg.NUTS(), counted[0], start, 100, 1, 0)
    long = sample(pg.NUTS(), counted[1], start, 100, 51, 0)
    computed = counted[1].positions - counted[0].positions
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
    potential_fn = target.torch_potential()
    short, long = (sample(kernel, potential_fn, start, warmup, draws, seed) for draws in (1, 51))
    return least_ess(long.idata["posterior"]["z"].values) / (long.seconds - short.seconds)


def sample(
    kernel: Any, potential_fn: PotentialFn, start: Tensor, warmup: int, draws: int, seed: int
) -> Timed:
    """``pg.sample``. The same seed has the same warm-up at any length."""
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
    seconds = float(idata.attrs.get("sampling_time", spent.wall))
    return Timed(idata, seconds, int(idata.attrs["batch_steps"]))


if __name__ == "__main__":
    main()
