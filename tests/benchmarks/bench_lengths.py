"""What ChEES learns, and how well it samples with it, beside what the paper has.

    python tests/benchmarks/bench_lengths.py --digits runs/benchmark

Ours takes lengths of (τ/5, τ), divides the criterion by τ^0.05, cuts τ back to where it started
when the first mass matrix is there, and stretches it at the end where values are slower than
squares. The paper's lengths are of (0, τ), its criterion is not divided, and τ is carried over and
not stretched. Steps are leapfrog's. 64 chains, the same seeds for all; figures are medians
over them.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from jobs import use_one_core

use_one_core()

from digits import make_target  # noqa: E402
from measures import least_ess  # noqa: E402
from tables import tell, write  # noqa: E402
from targets import TARGETS, Target  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import softplus  # noqa: E402

from pyro_gebm.mcmc import ChEES, CompiledPotential, adaptation, chees, mixing  # noqa: E402
from pyro_gebm.mcmc.run import run  # noqa: E402

CHAINS, DRAWS = 64, 200


class Case(NamedTuple):
    """A potential, and where its chains start."""

    potential_fn: Callable[[Tensor], Tensor]
    start: Callable[[int], Tensor]


def main() -> None:
    """Run all on every case, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--warmup", nargs="+", type=int, default=[40, 200, 1000])
    parser.add_argument("--seeds", type=int, default=8)
    text = "where run.py has put the digits' model, which is then a case, too"
    parser.add_argument("--digits", type=Path, help=text)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()
    cases = {name: CASES[name]() for name in arguments.cases}
    if arguments.digits:
        cases["digits"] = of_target(make_target("digits", arguments.digits))
    results = [
        tell(compare(name, case, warmup, arguments.seeds))
        for name, case in cases.items()
        for warmup in arguments.warmup
    ]
    if arguments.out:
        write(arguments.out, results)


def compare(name: str, case: Case, warmup: int, seeds: int) -> dict[str, Any]:
    """Lengths, and effective draws per gradient: the paper's, ours, and ours not stretched."""

    def found() -> Any:
        return np.array([one(case, warmup, seed) for seed in range(seeds)])

    with as_in_the_paper():
        theirs = found()
    with NOT_STRETCHED:
        short = found()
    ours = found()
    return {
        "case": name,
        "warmup": warmup,
        "paper_length": spread(theirs[:, 0]),
        "length": spread(ours[:, 0]),
        "paper_ess_per_kgradient": spread(theirs[:, 1]),
        "ess_per_kgradient": spread(ours[:, 1]),
        "ratio": spread(ours[:, 1] / theirs[:, 1]),
        "stretch": spread(ours[:, 0] / short[:, 0]),
        "ratio_of_stretch": spread(ours[:, 1] / short[:, 1]),
    }


def one(case: Case, warmup: int, seed: int) -> tuple[float, float]:
    """τ, and the least bulk ESS of z and z² per 1,000 gradients of a chain, without warm-up."""
    draws = run(
        ChEES(integrator="leapfrog"),
        case.potential_fn,
        case.start(seed),
        num_samples=DRAWS,
        warmup_steps=warmup,
        seed=seed,
    )
    ess = least_ess(draws.z.numpy())
    assert draws.tuning.trajectory_length is not None
    return float(draws.tuning.trajectory_length), 1000 * ess / int(draws.info.num_steps.sum())


def spread(values: Any) -> str:
    """Median, and the range."""
    low, middle, high = (f"{v:.3g}" for v in np.quantile(values, [0, 0.5, 1]))
    return f"{middle} [{low}, {high}]"


NOT_STRETCHED = mock.patch.object(mixing, "MOST", 1.0)


@contextmanager
def as_in_the_paper() -> Iterator[None]:
    """ChEES with the paper's lengths and criterion, and τ carried over."""
    start = adaptation.start_adaptation

    def carrying_on(*arguments: Any) -> Any:
        state, *rest = start(*arguments)
        return state._replace(length=state.length._replace(is_scaled=True)), *rest

    with (
        mock.patch.multiple(chees, SHORTEST=0.0, THRIFT=0.0, FIRST_LENGTH=2.25),
        NOT_STRETCHED,
        mock.patch("pyro_gebm.mcmc.warmup.start_adaptation", carrying_on),
    ):
        yield


def rotated(scales: Any) -> Case:
    """A normal of these scales, along directions that are no axes."""
    scales = torch.as_tensor(scales, dtype=torch.float32)
    noise = torch.randn(len(scales), len(scales), generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(noise).Q / scales  # columns
    return Case(lambda z: 0.5 * (z @ turn).square().sum(-1), around_zero(len(scales)))


def around_zero(dim: int) -> Callable[[int], Tensor]:
    """Standard normal starts, by seed."""
    return lambda seed: torch.randn(CHAINS, dim, generator=torch.Generator().manual_seed(seed))


def regression() -> Case:
    """Logistic, of ten weights N(0, 1) and a hundred points."""
    generator = torch.Generator().manual_seed(1)
    x, truth = torch.randn(100, 10, generator=generator), torch.randn(10, generator=generator)
    y = (torch.rand(100, generator=generator) < (x @ truth).sigmoid()).float()
    return Case(
        lambda w: softplus(w @ x.T).sum(-1) - w @ (y @ x) + 0.5 * w.square().sum(-1),
        around_zero(10),
    )


def schools() -> Case:
    """The eight schools, not centred: mu ~ N(0, 5), tau ~ half-Cauchy(5)."""
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    error = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])

    def potential_fn(z: Tensor) -> Tensor:
        mean, log_tau, shifts = 5 * z[:, :1], z[:, 1], z[:, 2:]
        effects = mean + log_tau.exp()[:, None] * shifts
        misfit = ((y - effects) / error).square().sum(-1)
        prior = z[:, 0].square() + shifts.square().sum(-1)
        return 0.5 * (misfit + prior) + (log_tau.exp() / 5).square().log1p() - log_tau

    return Case(potential_fn, around_zero(10))


def of_target(target: Target) -> Case:
    """One of the other benchmarks."""
    potential_fn = CompiledPotential(target.torch_potential())
    return Case(potential_fn, lambda seed: torch.from_numpy(target.start(CHAINS, seed)))


CASES: dict[str, Callable[[], Case]] = {
    "standard normal, 10": lambda: rotated([1.0] * 10),
    "one of scale 1, nine of 0.5": lambda: rotated([1.0] + [0.5] * 9),
    "scales 0.2 to 1, 10": lambda: rotated(np.linspace(0.2, 1, 10)),
    "scales 0.1 to 1, 20": lambda: rotated(np.geomspace(0.1, 1, 20)),
    "logistic regression": regression,
    "eight schools": schools,
    "latent MLP": lambda: of_target(TARGETS["mlp"]()),
}


if __name__ == "__main__":
    main()
