"""What it is worth to fit leapfrog's drift to the curvature of the potential.

    python tests/benchmarks/bench_fitted.py --digits runs/benchmark

Each kernel with both integrators, side by side: 64 chains, the same seeds for both, figures are
medians over them with the range.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_lengths import CASES, DRAWS, Case, of_target, spread
from digits import make_target
from measures import least_ess
from tables import tell, write
from targets import TARGETS

from pyro_gebm.mcmc import HMC, NUTS, ChEES, Kernel
from pyro_gebm.mcmc.run import run

KERNELS: dict[str, type[Kernel]] = {"ChEES": ChEES, "HMC": HMC, "NUTS": NUTS}
# Chains of these stay in the modes they start in: their steps tell, their ESS does not.
MODES = {
    "8 modes in the plane": "modes8",
    "8 modes in 16 dimensions": "modes16d",
    "3 modes in 64 dimensions": "overlap64",
}


def main() -> None:
    """Run all, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    text = "where run.py has put the digits' model, which is then a case, too"
    parser.add_argument("--digits", type=Path, help=text)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    results = [
        tell(compare(name, case, kernel, arguments.warmup, arguments.seeds))
        for name, case in cases(arguments.digits)
        for kernel in arguments.kernels
    ]
    if arguments.out:
        write(arguments.out, results)


def cases(digits: Path | None) -> Iterator[tuple[str, Case]]:
    """Names and cases."""
    yield from ((name, make()) for name, make in CASES.items())
    if digits:
        yield "digits", of_target(make_target("digits", digits))
    yield from ((name, of_target(TARGETS[key]())) for name, key in MODES.items())


def compare(name: str, case: Case, kernel: str, warmup: int, seeds: int) -> dict[str, Any]:
    """Steps, and effective draws per gradient, by leapfrog and fitted."""
    plain, fitted = (
        np.array([one(case, KERNELS[kernel](integrator=by), warmup, seed) for seed in range(seeds)])
        for by in ("leapfrog", "fitted")
    )
    columns = "step_size", "steps_per_draw", "accept", "ess_per_kgradient", "curvature"
    told = {"case": name, "kernel": kernel}
    for column, left, right in zip(columns, plain.T, fitted.T, strict=True):
        told |= {f"{column}_leapfrog": spread(left), f"{column}_fitted": spread(right)}
    return told | {"ratio": "" if name in MODES else spread(fitted[:, 3] / plain[:, 3])}


def one(case: Case, kernel: Kernel, warmup: int, seed: int) -> tuple[float, ...]:
    """ε, gradients a draw, acceptance, least ESS per 1,000 gradients of a chain, and curvature."""
    start = case.start(seed)
    draws = run(kernel, case.potential_fn, start, num_samples=DRAWS, warmup_steps=warmup, seed=seed)
    spent = float(draws.info.num_steps.double().sum(1).mean())
    return (
        float(draws.tuning.step_size.median()),
        spent / DRAWS,
        float(draws.info.accept_prob.mean()),
        1000 * least_ess(draws.z.numpy()) / (spent * len(start)),
        float(draws.tuning.curvatures().median()),
    )


if __name__ == "__main__":
    main()
