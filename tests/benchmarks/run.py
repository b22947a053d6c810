"""The benchmark: samplers of several libraries on targets whose truth is known, and training.

    pip install numpyro blackjax torchebm ebmkit       # beside this package; what lacks is told of
    python tests/benchmarks/run.py --out runs/benchmark --quick
    python tests/benchmarks/run.py --out runs/benchmark

Writes results.json, page.html and page.md to the folder, anew after each target. What results.json
holds is not run again: a later call goes on, and may ask for more. Every run has a process of
its own on one core; the rounds of what stands side by side are interleaved. A library that is not
installed, a run that fails or takes too long, and one that did not converge, are shown as such.
"""

import argparse
import multiprocessing
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from jobs import Job, use_one_core

use_one_core()  # before jax is imported

import torch  # noqa: E402
from bench_training import LOOPS, compare  # noqa: E402
from bench_training import TARGETS as NETWORKS  # noqa: E402
from digits import FULL, SHORT, train  # noqa: E402
from lineup import KERNELS, jobs  # noqa: E402
from page import write_page  # noqa: E402
from results import Results, status  # noqa: E402
from tables import say  # noqa: E402
from targets import TARGETS  # noqa: E402
from worker import Worker  # noqa: E402

QUICK_KERNELS = ["NUTS", "ChEES", "ChEES+global", "HMC"]


def main() -> None:
    """Run what the command line asks for and the results lack."""
    arguments = parse()
    results = Results(arguments.out / "results.json")
    arguments.ends = time.monotonic() + 60 * arguments.minutes
    with suppress(KeyboardInterrupt):  # what is done by then is kept
        for chains, target in product(arguments.chains, arguments.targets):
            run_group(results, target, chains, arguments)
            write_page(arguments.out, results.data)
        if arguments.training:
            train_beside(results, arguments)
    write_page(arguments.out, results.data)
    say(f"Wrote results.json, page.html and page.md to {arguments.out}.")
    if time.monotonic() > arguments.ends:
        say("The time was up: the same command goes on from here.")


def run_group(results: Results, target: str, chains: int, arguments: argparse.Namespace) -> None:
    """Every library and kernel on one target with so many chains, round by round."""
    asked = jobs(
        arguments.libraries,
        [target],
        [chains],
        kernels=arguments.kernels,
        quick=arguments.quick,
    )
    missing = [job for job in asked if rounds_left(results, job, arguments)]
    if not missing or time.monotonic() > arguments.ends:
        return
    if target in (FULL, SHORT) and not (arguments.out / f"{target}.npz").exists():
        apart(train, arguments.out / f"{target}.npz", short=target == SHORT)
    workers = [worker for job in missing if (worker := start(results, job, arguments))]
    try:
        # Round by round, a slow spell of the machine hits all alike.
        for _, worker in product(range(arguments.rounds), workers):
            if rounds_left(results, worker.job, arguments) and time.monotonic() < arguments.ends:
                run_once(results, worker)
    finally:
        for worker in workers:
            worker.close()


def rounds_left(results: Results, job: Job, arguments: argparse.Namespace) -> bool:
    """Whether a job wants another run. Slow ones run once, what failed is not tried again."""
    cell = results.cell(job)
    if cell["error"] and arguments.retry and not cell["runs"]:
        cell.update(error="", traceback="")
    slow = any(run["cpu_seconds"] > arguments.once_above for run in cell["runs"])
    return not cell["error"] and not slow and len(cell["runs"]) < arguments.rounds


def start(results: Results, job: Job, arguments: argparse.Namespace) -> Worker | None:
    """A process that is ready to run a job, or nothing if it could not be made ready."""
    worker = Worker(job, arguments.out, arguments.limit)
    if results.prepared(job, worker.ready()):
        return worker
    say(f"{' '.join(map(str, job))}: {status(results.cell(job))}")
    worker.close()
    return None


def run_once(results: Results, worker: Worker) -> None:
    """One run more. The seed tells the round."""
    cell = results.cell(worker.job)
    seed = len(cell["runs"]) + 1
    results.add(worker.job, worker.run(seed))
    say(f"round {seed}: {' '.join(map(str, worker.job))}: {status(cell)}")


def train_beside(results: Results, arguments: argparse.Namespace) -> None:
    """Our training step beside a bare loop and the authors' recipe."""
    done = {(found["networks"], found["beside"]) for found in results.data["training"]}
    for name, beside in product(NETWORKS, LOOPS):
        if (name, beside) in done or time.monotonic() > arguments.ends:
            continue
        found = apart(compare, name, beside, arguments.training, torch.device("cpu"))
        results.data["training"].append({**found, "session": len(results.data["sessions"]) - 1})
        results.write()
        say(f"training, {name}, beside {beside}: {found['ratio']:.2f}")


def apart(work: Any, *given: Any, **named: Any) -> Any:
    """Do something in a process of its own, so that the one that forks stays untouched."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(work, given, named)


def parse() -> argparse.Namespace:
    """The command line; ``--quick`` changes the defaults of what is not given."""
    targets = [*TARGETS, FULL, SHORT]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results and page")
    parser.add_argument("--quick", action="store_true", help="two targets, one round, minutes")
    parser.add_argument("--targets", nargs="+", choices=targets, help="default: six")
    parser.add_argument("--libraries", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--kernels", nargs="+", help="only these, such as NUTS+global")
    parser.add_argument("--chains", nargs="+", type=int, help="default: 64 4 256 1 1024")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--training", type=int, help="rounds of it, 0 for none; default: 10")
    parser.add_argument("--limit", type=float, help="CPU seconds a run may take; default: 90")
    parser.add_argument("--once-above", type=float, default=20.0, help="slower ones run once")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing after them")
    parser.add_argument("--retry", action="store_true", help="try anew what has failed")
    arguments = parser.parse_args()
    quick = arguments.quick
    full = [FULL, "mlp", "gauss100", "funnel", "modes8", "modes25"]
    defaults = {
        "targets": [SHORT, "modes8"] if quick else full,
        "kernels": QUICK_KERNELS if quick else (),
        "chains": [64] if quick else [64, 4, 256, 1, 1024],
        "rounds": 1 if quick else 3,
        "training": 0 if quick else 10,
        "limit": 20.0 if quick else 90.0,
    }
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


if __name__ == "__main__":
    main()
