"""Kernels against the base at equal gradient evaluations: the computation, without printing."""

import statistics
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_gebm import GEBM, inference_data, sample
from pyro_gebm._checks import check_count
from pyro_gebm.cli.judges import Judge, class_truth, occupancy, share_near_modes
from pyro_gebm.cli.problems import Problem
from pyro_gebm.data.images import scaled
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.mcmc import KERNELS, Draws, Tuning, run
from pyro_gebm.metrics import (
    MeanSpread,
    RelativeScore,
    occupancy_distance,
    relative_score,
)
from pyro_gebm.metrics.protocol import mean_spread
from pyro_gebm.model import check_beta
from pyro_gebm.plots import Curve, Shift
from pyro_gebm.sampling import push_forward
from pyro_gebm.sampling.target import gebm_target

NUM_SETS = 5
"""Sample sets a kernel's draws are dealt into; the spread is over them."""

PILOT_DRAWS = 20
CURVE_CHAINS = 2000
IMAGE_CURVE_CHAINS = 500
"""Chains of the curve on images, whose networks cost more."""
CURVE_GRADIENTS = 50


class Settings(NamedTuple):
    """How much is sampled."""

    num_chains: int
    num_samples: int
    """Draws scored per chain."""
    warmup_steps: int
    beta: float
    seed: int


class KernelRun(NamedTuple):
    """A kernel's draws and what they cost."""

    kernel: str
    idata: InferenceData
    gradients: float
    """Gradient evaluations per chain, warm-up included."""


class BaseScore(NamedTuple):
    """The base's samples, the same way."""

    score: MeanSpread
    floor: MeanSpread
    floor_note: str
    occupancy_error: float | None
    near_modes: float | None
    num_test: int


class Verdict(NamedTuple):
    """A line of the table."""

    kernel: str
    score: RelativeScore
    occupancy_error: float | None
    """Total variation between class (or mode) frequencies of samples and of test data."""
    near_modes: float | None
    rhat: float
    ess: float
    """Smallest bulk ESS over latents."""
    divergences: int
    gradients: float
    seconds: float


def check_settings(settings: Settings) -> Settings:
    """Return settings that give sets one can score, else raise ``ValueError``."""
    check_beta(settings.beta)
    check_count("--seed", settings.seed, minimum=0)
    if settings.num_samples < NUM_SETS or settings.num_chains < 2:
        raise ValueError(
            f"--num-samples, --num-chains: expected at least {NUM_SETS} draws of 2 chains, for "
            f"{NUM_SETS} sets to score; got {settings.num_samples} of {settings.num_chains}"
        )
    return settings


def run_kernels(gebm: GEBM, kernels: Sequence[str], settings: Settings) -> list[KernelRun]:
    """Run each kernel on ν_β; the first one's cost is the budget of all the others.

    A pilot with the same seed, which is not counted, tells what a draw of the others costs;
    they spend the budget on more draws, thinned to as many as the first one keeps.
    """
    runs: list[KernelRun] = []
    for kernel in kernels:
        draws, thinning = settings.num_samples, 1
        if runs:
            pilot = _sample(gebm, kernel, settings._replace(num_samples=PILOT_DRAWS), 1, False)
            left = runs[0].gradients - _warmup_cost(pilot)
            affordable = left / float(_stat(pilot, "n_steps").mean())
            thinning = max(1, int(affordable / draws))
            draws = max(PILOT_DRAWS, round(affordable / thinning))
        idata = _sample(gebm, kernel, settings._replace(num_samples=draws), thinning, True)
        runs.append(KernelRun(kernel, idata, _cost(idata)))
    return runs


def judge_base(problem: Problem, judge: Judge, base_sets: Sequence[Tensor], seed: int) -> BaseScore:
    """Score of the base, and the floor that real data set."""
    scores = [judge.scorer.score(x) for x in base_sets]
    generator = torch.Generator().manual_seed(seed)
    return BaseScore(
        score=mean_spread(scores),
        floor=judge.scorer.floor(generator=generator),
        floor_note=judge.floor_note,
        occupancy_error=occupancy_error(problem, judge, base_sets),
        near_modes=share_near_modes(judge, base_sets),
        num_test=len(problem.test),
    )


def judge_run(
    gebm: GEBM, problem: Problem, judge: Judge, done: KernelRun, base_sets: Sequence[Tensor]
) -> Verdict:
    """Scores and diagnostics of one kernel's draws against as many base samples."""
    sets = deal(gebm, done.idata, len(base_sets[0]))
    return Verdict(
        kernel=done.kernel,
        score=relative_score(judge.scorer, sets, base_sets),
        occupancy_error=occupancy_error(problem, judge, sets),
        near_modes=share_near_modes(judge, sets),
        rhat=inference_data.worst_rhat(done.idata),
        ess=inference_data.least_ess(done.idata),
        divergences=int(_stat(done.idata, "diverging").sum()),
        gradients=done.gradients,
        seconds=float(done.idata.attrs["sampling_time"]),
    )


def set_size(runs: Sequence[KernelRun]) -> int:
    """Samples in each set, as many as the shortest run gives."""
    shapes = [inference_data.values(done.idata, "z").shape for done in runs]
    return int(min(chains * (draws // NUM_SETS) for chains, draws, _ in shapes))


def deal(gebm: GEBM, idata: InferenceData, size: int | None = None) -> list[Tensor]:
    """x = G(z) of the draws, dealt like cards into sets, so that each spans the whole run."""
    device = gebm.log_partition.device
    z = torch.as_tensor(inference_data.values(idata, "z"), device=device).transpose(0, 1)
    hands = [z[start::NUM_SETS].reshape(-1, z.shape[-1]) for start in range(NUM_SETS)]
    size = size or min(map(len, hands))
    with gebm.frozen():
        return [push_forward(gebm, _spread_out(hand, size)) for hand in hands]


def _spread_out(rows: Tensor, size: int) -> Tensor:
    """``size`` rows, from the first to the last at even distances."""
    return rows[torch.linspace(0, len(rows) - 1, size).round().long().to(rows.device)]


def occupancy_error(problem: Problem, judge: Judge, sets: Sequence[Tensor]) -> float | None:
    """Total variation between the class or mode frequencies of samples and of the truth."""
    found, truth = occupancy(judge, sets), class_truth(problem, judge)
    if found is None or truth is None:
        return None
    return occupancy_distance(found, truth)


def short_run(
    gebm: GEBM, problem: Problem, judge: Judge, done: KernelRun, settings: Settings
) -> tuple[Curve, Shift]:
    """Chains from base samples under a long run's tuning: the score on the way, and the ends."""
    torch.manual_seed(settings.seed)
    chains = CURVE_CHAINS if problem.images is None else min(CURVE_CHAINS, IMAGE_CURVE_CHAINS)
    start = gebm.base.latent_prior.sample(chains)
    with gebm.frozen():
        result = _run_again(gebm, done, settings, start)
        before, after = push_forward(gebm, start), push_forward(gebm, result.z[:, -1])
        # Draw by draw, for all of them together would take room.
        later = [judge.scorer.score(push_forward(gebm, z)) for z in result.z.unbind(1)]
    energies = energies_of(gebm, before), energies_of(gebm, after)
    spent = result.info.num_steps.double().mean(0).cumsum(0)
    scores = [judge.scorer.score(before), *later]
    # Sets as large as the batch of chains, so that the level carries the same sampling noise.
    level = [judge.scorer.score(x) for x in deal(gebm, done.idata, chains)]
    curve = Curve([0.0, *spent.tolist()], scores, statistics.fmean(level))
    return curve, Shift(before, after, *energies)


def energies_of(gebm: GEBM, x: Tensor) -> Tensor:
    """E of data (N, ...), scaled or as bytes, some at a time, (N,) on the CPU."""
    with gebm.frozen(), torch.no_grad():
        parts = [scaled(part).to(gebm.log_partition) for part in torch.split(x, 1024)]
        return torch.cat([gebm.evaluate_energy(part).cpu() for part in parts])


def _run_again(gebm: GEBM, done: KernelRun, settings: Settings, start: Tensor) -> Draws:
    """About ``CURVE_GRADIENTS`` of a kernel from latents ``start`` (C, D), without warm-up."""
    target = gebm_target(gebm, settings.beta)
    per_step = float(_stat(done.idata, "n_steps").mean()) / int(done.idata.attrs["thinning"])
    draws = max(2, min(20, round(CURVE_GRADIENTS / per_step)))
    position = target.from_sites({"z": start})
    result = run(
        KERNELS[done.kernel]().bind(target.reference),
        target.potential_fn,
        position,
        num_samples=draws,
        warmup_steps=0,
        thinning=max(1, round(CURVE_GRADIENTS / per_step / draws)),
        tuning=_tuning_of(done.idata, position),
        seed=settings.seed,
        progress=True,
    )
    return result._replace(z=target.to_sites(result.z.to(position))["z"])


def _tuning_of(idata: InferenceData, like: Tensor) -> Tuning:
    """What a run was tuned to, for chains at positions ``like`` (C, D)."""
    step_size = like.new_full((len(like),), float(_stat(idata, "step_size")[0, 0]))
    mass = torch.as_tensor(np.asarray(idata.attrs["inverse_mass_matrix"])).to(like)
    length, curvature = (idata.attrs.get(name) for name in ("trajectory_length", "curvature"))
    return Tuning(
        step_size,
        mass,
        trajectory_length=None if length is None else like.new_tensor(float(length)),
        curvature=None if curvature is None else torch.full_like(step_size, float(curvature)),
    )


def _sample(
    gebm: GEBM, kernel: str, settings: Settings, thinning: int, progress: bool
) -> InferenceData:
    with warnings.catch_warnings():
        # The table shows what the warnings would say.
        warnings.simplefilter("ignore", UserWarning)
        idata = sample(
            gebm,
            kernel=kernel,
            num_samples=settings.num_samples,
            warmup_steps=settings.warmup_steps,
            num_chains=settings.num_chains,
            thinning=thinning,
            beta=settings.beta,
            # Kernels are compared by themselves, at equal gradients.
            global_moves=None,
            seed=settings.seed,
            progress=progress,
        )
    if idata.attrs["interrupted"]:
        raise KeyboardInterrupt  # part of a run must not stand in a comparison
    return idata


def _stat(idata: InferenceData, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return inference_data.values(idata, name, "sample_stats")


def _warmup_cost(idata: InferenceData) -> float:
    return float(idata.attrs["warmup_gradient_evaluations"])


def _cost(idata: InferenceData) -> float:
    return _warmup_cost(idata) + float(_stat(idata, "n_steps").sum(axis=1).mean())
