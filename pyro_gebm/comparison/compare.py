"""``compare``: kernels against the base, and each other, at equal gradient evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_count
from pyro_gebm.comparison.judge import Judge, Labeller, check_truth, judge_trail
from pyro_gebm.comparison.protocol import Task, protocol_of
from pyro_gebm.comparison.results import (
    BaseResult,
    Comparison,
    KernelResult,
    SeedRun,
    interval,
    summarise,
)
from pyro_gebm.comparison.walk import take_walk
from pyro_gebm.mcmc import GlobalMoves, Kernel, is_pyro_kernel
from pyro_gebm.metrics import EnergyDistanceScorer, FrechetScorer, Scorer
from pyro_gebm.model import GEBM
from pyro_gebm.sampling import kernel_name
from pyro_gebm.sampling.build import in_chunks, random_state
from pyro_gebm.sampling.settings import Settings, check_settings, choose_kernel
from pyro_gebm.sampling.start import draw_start
from pyro_gebm.sampling.target import gebm_target

Kernels: TypeAlias = Sequence[str | Kernel] | Mapping[str, str | Kernel]
Bar: TypeAlias = "tqdm[Any]"

SCORE_NAMES: dict[type, str] = {
    FrechetScorer: "Fréchet distance",
    EnergyDistanceScorer: "energy distance",
}
FLOOR_SEED = 0


def compare(
    gebm: GEBM,
    *,
    scorer: Scorer,
    kernels: Kernels = ("NUTS", "HMC", "Langevin", "ChEES"),
    budget: int = 20_000,
    num_chains: int = 256,
    warmup_steps: int | None = None,
    beta: float = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    num_points: int = 30,
    global_moves: str | GlobalMoves | None = None,
    target_accept_prob: float | None = None,
    labeller: Labeller | None = None,
    mode_truth: ArrayLike | Tensor | None = None,
    score_name: str | None = None,
    chunk_size: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Kernels against the base at equal gradient evaluations: the paper's figure, made honest.

    For every seed all kernels start from the same base samples, those that ``sample`` with this
    seed would start from, and target the same ν_β. Each is tuned as ``sample`` tunes it, by a
    warm-up from these starts; the chains are then put back to them and walk under the tuning
    found until the budget is spent. The gradients of the warm-up count: a curve begins where they
    end, at the base's score. (``sample`` goes on from where warm-up ended, and is that much ahead
    of the curve.) Scored is the set of all chains' positions at one moment, one sample a chain,
    so that every set has ``num_chains`` samples and the same finite-sample bias.

    Of the walk's second half, the long run, come the stationary value, R-hat, ESS and the modes'
    figures. Unadjusted kernels (Langevin, Kinetic) have a stationary law of their own, which
    R-hat does not tell from ν_β; the stationary score shows the difference.

    Intervals are over seeds, 95 % by Student's t; ratios to the base are paired by seed.

    Args:
        gebm: the model.
        scorer: scores x (N, ...), such as ``metrics.FrechetScorer``; lower is better.
        kernels: names or kernel objects, or a mapping from labels to them, as two kernels of one
            name need.
        budget: gradient evaluations per chain, warm-up included: of chains whose transitions
            differ in cost (NUTS) on average. Counted is what a chain's own trajectories use;
            ``batch_gradients`` says what the batch evaluated. IMH's evaluations of the potential
            count as gradients; proposals of global moves, which need none, do not count.
        num_chains: chains, and samples in each set that is scored: take a number at which the
            score means something.
        warmup_steps: as in ``sample``.
        beta: inverse temperature of the energy, the same for all.
        seeds: of starts and noise; one gives no intervals.
        num_points: checkpoints, in geometric progression from one gradient to the budget, of the
            walk. Recorded is the first draw at which the mean over chains has reached one (within
            some 2 % of it); those that fall on one draw count once.
        global_moves: as in ``sample``; by default none, kernels being compared by themselves.
        target_accept_prob: as in ``sample``.
        labeller: x (N, ...) -> the mode or class of each, integers (N,).
        mode_truth: the probability of each mode, (K,); needs a ``labeller``.
        score_name: what the score is called in words.
        chunk_size: as in ``sample``.
        progress: show progress bars on standard error.

    Returns:
        A ``Comparison``. A kernel that raises, accepts nothing or only diverges is there with its
        message, and the others go on.

    Raises:
        ValueError: an argument is out of range, the scorer or labeller fails on base samples, or
            no start of finite potential was found.
        KeyboardInterrupt: Ctrl-C; nothing is returned then.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Identity(), StandardNormal(1)), nn.Linear(1, 1))
        >>> found = compare(
        ...     gebm, scorer=EnergyDistanceScorer(torch.randn(500, 1)), kernels=["HMC"],
        ...     budget=1000, num_chains=16, warmup_steps=20, seeds=[0, 1], progress=False,
        ... )
        >>> found.kernels["HMC"].failure is None, found.base.score.count
        (True, 2)
    """
    _check_parts(gebm, scorer, labeller, mode_truth)
    task = Task(
        {
            label: _settings(kernel, num_chains, warmup_steps, beta, global_moves,
                             target_accept_prob, chunk_size, progress)
            for label, kernel in named_kernels(kernels).items()
        },
        _check_seeds(seeds),
        check_count("budget", budget),
        np.geomspace(1, budget, check_count("num_points", num_points, 2)),
    )  # fmt: skip
    target = in_chunks(gebm_target(gebm, float(beta)), chunk_size)
    judge = Judge(gebm, target, scorer, labeller, check_truth(mode_truth))
    floor = scorer.floor(generator=torch.Generator().manual_seed(FLOOR_SEED))
    with gebm.frozen():
        starts = [_draw_start(judge, num_chains, seed) for seed in task.seeds]
        base = _judge_base(judge, starts)
        total = len(task.kernels) * len(task.seeds)
        with tqdm(total=total, desc="compare", unit="run", disable=not progress) as bar:
            found = {
                label: _run_kernel(judge, task, label, starts, base, bar) for label in task.kernels
            }
    name = score_name or SCORE_NAMES.get(type(scorer), type(scorer).__name__)
    return Comparison(found, base, floor, protocol_of(name, task, gebm))


def _run_kernel(
    judge: Judge, task: Task, label: str, starts: list[Tensor], base: BaseResult, bar: Bar
) -> KernelResult:
    """All seeds of a kernel, or those before the one with which it failed."""
    settings, runs = task.kernels[label], list[SeedRun]()
    for seed, start, score in zip(task.seeds, starts, base.scores.tolist(), strict=True):
        bar.set_postfix_str(f"{label}, seed {seed}")
        try:
            runs.append(_run_seed(judge, task, settings, start, seed, score))
        except Exception as error:  # one kernel's failure is a finding, not the end
            bar.update(len(task.seeds) - len(runs))
            failure = f"seed {seed}: {type(error).__name__}: {error}"
            return KernelResult(label, repr(settings.kernel), tuple(runs), None, failure)
        bar.update()
    summary = summarise(runs, base.scores.tolist())
    return KernelResult(label, repr(settings.kernel), tuple(runs), summary, None)


def _run_seed(
    judge: Judge, task: Task, settings: Settings, start: Tensor, seed: int, base_score: float
) -> SeedRun:
    assert isinstance(settings.kernel, Kernel)
    with random_state(seed, start.device):
        trail = take_walk(
            settings.kernel,
            judge.target,
            start,
            settings._replace(seed=seed),
            task.budget,
            task.checkpoints,
        )
    return judge_trail(judge, trail, seed, base_score)


def _draw_start(judge: Judge, num_chains: int, seed: int) -> Tensor:
    """Those that ``sample`` with this seed starts from, unconstrained, (C, D')."""
    with random_state(seed, judge.gebm.base.latent_prior.like.device):
        return draw_start(judge.target, num_chains)


def _judge_base(judge: Judge, starts: list[Tensor]) -> BaseResult:
    samples = [judge.push(start) for start in starts]
    if judge.labeller is not None:
        judge.labels(samples[0])  # refuse a bad one before the kernels run
    scores = [judge.score(x) for x in samples]
    errors = [error for x in samples if (error := judge.occupancy_error(x)) is not None]
    return BaseResult(np.array(scores), interval(scores), interval(errors) if errors else None)


def named_kernels(kernels: Kernels) -> dict[str, str | Kernel]:
    """Kernels by label: their own names, unless labels are given.

    Example:
        >>> named_kernels(["nuts", "HMC"])
        {'NUTS': 'nuts', 'HMC': 'HMC'}
    """
    if isinstance(kernels, Mapping):
        named = dict(kernels)
    elif isinstance(kernels, str) or not isinstance(kernels, Sequence):
        raise ValueError(
            f'kernels: expected a sequence such as ("NUTS", "HMC"), or a mapping; got {kernels!r}'
        )
    else:
        # The number of chains matters for "auto" alone, which is refused below.
        labels = [kernel_name(choose_kernel(kernel, 1)) for kernel in kernels]
        if len(set(labels)) < len(labels):
            raise ValueError(
                f"kernels: expected kernels of different names; got {', '.join(labels)}; give a "
                "mapping from labels to kernels"
            )
        named = dict(zip(labels, kernels, strict=True))
    if not named or any(not isinstance(label, str) for label in named):
        raise ValueError(f"kernels: expected at least one, labelled by text; got {kernels!r}")
    for kernel in named.values():
        if is_pyro_kernel(kernel) or (isinstance(kernel, str) and kernel.lower() == "auto"):
            raise ValueError(
                f"kernels: expected kernels of ours, each by its own name; got {kernel!r}"
            )
    return named


def _settings(
    kernel: str | Kernel,
    num_chains: int,
    warmup_steps: int | None,
    beta: float,
    global_moves: str | GlobalMoves | None,
    target_accept_prob: float | None,
    chunk_size: int | None,
    progress: bool,
) -> Settings:
    """Those of ``sample``, which refuses what is wrong."""
    check_count("num_chains", num_chains, 2)
    return check_settings(
        kernel=kernel,
        num_samples=1,
        warmup_steps=warmup_steps,
        num_chains=num_chains,
        beta=beta,
        thinning=1,
        target_accept_prob=target_accept_prob,
        global_moves=global_moves,
        tempering=None,
        seed=0,
        progress=progress,
        include_x=False,
        include_warmup=False,
        include_prior=False,
        chunk_size=chunk_size,
        storage_dtype=None,
        store=None,
        distributed=False,
        compile=False,
    )


def _check_parts(gebm: object, scorer: object, labeller: object, mode_truth: object) -> None:
    if not isinstance(gebm, GEBM):
        raise ValueError(f"gebm: expected a GEBM; got {type(gebm).__name__}")
    if not all(callable(getattr(scorer, name, None)) for name in ("score", "floor")):
        raise ValueError(
            "scorer: expected an object with score(x) and floor(generator=...), such as "
            f"metrics.FrechetScorer; got {type(scorer).__name__}"
        )
    if labeller is not None and not callable(labeller):
        raise ValueError(f"labeller: expected a function of x; got {type(labeller).__name__}")
    if mode_truth is not None and labeller is None:
        raise ValueError("labeller: expected a function of x with mode_truth; got None")


def _check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    listed = tuple(seeds)
    for seed in listed:
        check_count("seeds", seed, 0)
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"seeds: expected one or more different numbers; got {listed}")
    return listed
