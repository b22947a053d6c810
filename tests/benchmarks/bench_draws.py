"""Draws alone, without warm-up and checks: our ChEES compiled beside BlackJAX's.

    python tests/benchmarks/bench_draws.py --digits runs/benchmark

Theirs is one compiled program: what it takes for many draws, less what it takes for one. Seeds in
turn, the ratios are of the same seed; least bulk ESS of z and z², seconds of the processor.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import Job, use_one_core, watch

use_one_core()  # before jax is imported

from digits import make_target  # noqa: E402
from measures import least_ess  # noqa: E402
from peers import prepare_blackjax  # noqa: E402
from tables import tell, write  # noqa: E402

from pyro_gebm.mcmc import ChEES, CompiledPotential, Moves, warm_up  # noqa: E402
from pyro_gebm.mcmc.run import draw  # noqa: E402

LENGTHS = {64: 1000, 256: 400}
WARMUP = 100


def main() -> None:
    """Run both on every target, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", default=["mlp"])
    text = "where run.py has put the digits' model, which is then a target, too"
    parser.add_argument("--digits", type=Path, help=text)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    names = [*arguments.targets, *(["digits"] if arguments.digits else [])]
    results = [
        tell(compare(name, chains, arguments.seeds, arguments.digits or Path()))
        for name in names
        for chains in LENGTHS
    ]
    if arguments.out:
        write(arguments.out, results)


def compare(name: str, chains: int, seeds: int, folder: Path) -> dict[str, Any]:
    """ESS a second and per gradient, and seconds of a gradient, ours and theirs."""
    target, draws = make_target(name, folder), LENGTHS[chains]
    job = Job("blackjax", "ChEES", name, chains, draws, WARMUP)
    many, one = (prepare_blackjax(target, job._replace(draws=n)).runner for n in (draws, 1))
    moves, found = Moves(ChEES(), CompiledPotential(target.torch_potential())), []
    for seed in range(seeds + 1):
        start = warm_up(moves, torch.from_numpy(target.start(chains, seed)), WARMUP, seed=seed)
        with watch() as spent:
            ours = draw(moves, start, draws, seed=seed)
        theirs, first = many(seed), one(seed)
        seconds, gradients = spent.cpu, int(ours.info.num_steps[0].sum())
        other, steps = theirs.cpu_seconds - first.cpu_seconds, theirs.sampling_gradients / chains
        ess, their_ess = least_ess(ours.z.numpy()), least_ess(theirs.z)
        rate, their_rate = ess / seconds, their_ess / other
        row = [rate, their_rate, ess / gradients, their_ess / steps]
        found.append([*row, 1000 * seconds / gradients, 1000 * other / steps, rate / their_rate])
    rows = np.array(found[1:])  # the first of a process compiles and warms caches
    keys = ["ours", "theirs", "ours_per_gradient", "theirs_per_gradient", "ours_ms", "theirs_ms"]
    low, high = rows[:, -1].min(), rows[:, -1].max()
    medians = dict(zip([*keys, "ratio"], np.median(rows, 0).tolist(), strict=True))
    return {"target": name, "chains": chains, **medians, "ratio_range": f"[{low:.2f}, {high:.2f}]"}


if __name__ == "__main__":
    main()
