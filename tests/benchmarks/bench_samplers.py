"""Our samplers beside those of other libraries, on targets whose truth is known, on one core.

    python tests/benchmarks/bench_samplers.py --quick
    python tests/benchmarks/bench_samplers.py --targets mlp --chains 4 64 256 --out results.json

A library that is not installed, a run that fails, one that takes too long and one that did not
converge are told of in the last column, ours like the others.
"""

import argparse
from contextlib import suppress
from pathlib import Path

from jobs import use_one_core

use_one_core()  # before jax is imported

from cells import Cell, attempt  # noqa: E402
from lineup import KERNELS, jobs  # noqa: E402
from tables import print_table, record, say, write  # noqa: E402
from targets import TARGETS  # noqa: E402


def main() -> None:
    """Run what the command line asks for, print the table, write the JSON."""
    arguments = parse()
    cells = [
        Cell(job)
        for job in jobs(
            arguments.libraries,
            arguments.targets,
            arguments.chains,
            kernels=arguments.kernels,
            starts=arguments.starts,
            quick=arguments.quick,
        )
    ]
    with suppress(KeyboardInterrupt):  # what is done by then is told of
        for seed in range(1, arguments.rounds + 1):
            run_round(cells, seed, arguments)
    print_table(cells)


def run_round(cells: list[Cell], seed: int, arguments: argparse.Namespace) -> None:
    """Every cell once: round by round, a slow spell of the machine hits all alike."""
    for cell in cells:
        if cell.error or cell.median("seconds") > arguments.once_above:
            continue
        attempt(cell, seed, arguments.limit)
        say(f"round {seed}: {' '.join(map(str, cell.job))}: {cell.status}")
        if arguments.out:
            write(arguments.out, [record(done) for done in cells if done.runs or done.error])


def parse() -> argparse.Namespace:
    """The command line; ``--quick`` changes the defaults of what is not given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, help="default: the first four")
    parser.add_argument("--libraries", nargs="+", choices=KERNELS, default=list(KERNELS)[:4])
    parser.add_argument("--kernels", nargs="+", default=(), help="only these, such as NUTS+global")
    parser.add_argument("--chains", nargs="+", type=int, help="default: 4 64")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--starts", choices=["base", "exact"], default="base")
    parser.add_argument("--limit", type=float, default=90.0, help="CPU seconds a run may take")
    parser.add_argument("--once-above", type=float, default=20.0, help="slower ones run once")
    parser.add_argument("--out", type=Path, help="where to write results.json")
    parser.add_argument("--quick", action="store_true", help="mlp and modes8, short, one round")
    arguments = parser.parse_args()
    arguments.targets = arguments.targets or list(TARGETS)[: 2 if arguments.quick else 4]
    arguments.chains = arguments.chains or ([64] if arguments.quick else [4, 64])
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    return arguments


if __name__ == "__main__":
    main()
