"""What a comparison returns."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_gebm.metrics import MeanSpread, ModeSummary
from pyro_gebm.metrics.protocol import score_ratios

_NORMAL = 1.959964
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""The 97.5 % points of Student's t with 1 to 10 degrees of freedom."""


class Interval(NamedTuple):
    """A mean over seeds with its 95 % interval by Student's t: mean ± t sd/√count."""

    mean: float
    low: float
    """NaN for a single seed, which says nothing of the spread."""
    high: float
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    """Seeds."""

    @property
    def half_width(self) -> float:
        """What stands after ±; NaN for a single seed."""
        return (self.high - self.low) / 2


class SeedRun(NamedTuple):
    """One kernel from one seed's base samples; gradients are mean numbers per chain.

    T checkpoints, K sets of the long run, which is the second half of the walk.
    """

    seed: int
    gradients: NDArray[np.float64]
    """All spent so far, warm-up included, (T + 1,); the first stands at the base samples."""
    scores: NDArray[np.float64]
    """Of the chains' positions as a set, (T + 1,)."""
    stationary_scores: NDArray[np.float64]
    """Of as many positions at K moments of the long run, (K,)."""
    warmup_gradients: float
    """Spent on tuning, ``gradients[0]``."""
    walk_gradients: float
    """Spent after it, from the base samples to the end of the budget."""
    batch_gradients: float
    """What the batch evaluated in the walk, a row a chain: more than ``walk_gradients`` where
    chains wait for each other (NUTS), and by draws beyond the end, which are dropped."""
    seconds: float
    """Of warm-up and walk, scoring left out."""
    transitions: int
    """Of the walk, per chain."""
    thinning: int
    """Transitions per draw of the long run that R-hat, ESS and modes look at."""
    rhat: float
    """Largest of a latent in the long run."""
    ess: float
    """Smallest bulk ESS of a latent in the long run, all chains; of the draws kept."""
    ess_per_1000_gradients: float
    """Per 1,000 evaluations of all chains together, of the long run."""
    acceptance: float
    """Mean acceptance probability of the walk; of unadjusted kernels what it would have been."""
    divergent_share: float
    """Of the walk's draws: those with a divergence since the draw before."""
    modes: ModeSummary | None
    """Of the long run, if labels are given."""
    tuning: dict[str, float]
    """What the kernel was tuned to."""
    problems: tuple[str, ...]
    """What ``sample`` would have warned of beyond R-hat and divergences."""


class Summary(NamedTuple):
    """A kernel over its seeds."""

    end: Interval
    """Score at the end of the budget."""
    end_ratio: Interval
    """The same over the base's from the same starts, seed by seed; below 1 is better."""
    stationary: Interval
    """Score of the long run."""
    stationary_ratio: Interval
    """The same over the base's from the same starts."""
    rhat: float
    """Largest over seeds, latents and, with labels, modes."""
    ess: float
    """Smallest over seeds."""
    ess_per_1000_gradients: float
    """Mean over seeds."""
    acceptance: float
    divergent_share: float
    warmup_gradients: float
    gradients: float
    """All, per chain, mean over seeds."""
    seconds: float
    """All seeds."""
    occupancy_error: Interval | None
    """Total variation between mode frequencies of the long run and the truth."""
    mode_rhat: float | None
    """Largest R-hat of a mode's indicator over seeds."""
    mode_ess: float | None
    """Smallest ESS of a mode's indicator over seeds."""
    switches_per_1000_gradients: float | None
    """Changes of mode, mean over seeds."""


class KernelResult(NamedTuple):
    """One kernel: its runs, or why there are none."""

    kernel: str
    settings: str
    """The kernel object."""
    runs: tuple[SeedRun, ...]
    """By seed; those before the failure, of a kernel that failed."""
    summary: Summary | None
    """``None`` if it failed."""
    failure: str | None
    """What went wrong, and with which seed."""


class BaseResult(NamedTuple):
    """The base samples that the chains start from."""

    scores: NDArray[np.float64]
    """By seed, (R,)."""
    score: Interval
    occupancy_error: Interval | None


class Protocol(NamedTuple):
    """What was measured, and how."""

    score: str
    budget: int
    """Gradient evaluations per chain, warm-up included."""
    num_chains: int
    """Chains, and samples in every set that is scored."""
    warmup_steps: int
    beta: float
    seeds: tuple[int, ...]
    global_moves: str
    target_accept_prob: float | None
    stationary_sets: int
    device: str
    dtype: str
    versions: dict[str, str]
    notes: tuple[str, ...]
    """The protocol in sentences."""


class Comparison(NamedTuple):
    """What ``compare`` finds."""

    kernels: dict[str, KernelResult]
    """By name, in the order asked for."""
    base: BaseResult
    floor: MeanSpread
    """Score of two random halves of the data."""
    protocol: Protocol


class CommonCurve(NamedTuple):
    """A kernel's curves on one axis, in the order of fields of ``plots.Curve``."""

    gradients: NDArray[np.float64]
    """(T,)."""
    scores: NDArray[np.float64]
    """(R, T)."""
    stationary: float
    stationary_interval: tuple[float, float] | None


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of figures of independent seeds; NaN if one of them is.

    Example:
        >>> interval([1.0, 2.0, 3.0])
        Interval(mean=2.0, low=-0.484..., high=4.484..., count=3)
    """
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    # Not stdev() of the statistics module, which fails at a NaN.
    half = _student(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t, to 1e-4."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    # Cornish and Fisher's expansion in 1/freedom.
    z, f = _NORMAL, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / f + second / f**2 + third / f**3


def summarise(runs: Sequence[SeedRun], base_scores: Sequence[float]) -> Summary:
    """The figures of a kernel over seeds, ratios paired with the base's scores (R,)."""
    ends = [float(run.scores[-1]) for run in runs]
    levels = [float(run.stationary_scores.mean()) for run in runs]
    modes = [run.modes for run in runs if run.modes is not None]
    # A mode that no chain leaves or enters has no R-hat; if no mode has one, there is none.
    mode_rhats = [m.worst_rhat for m in modes if not math.isnan(m.worst_rhat)]
    errors = [m.total_variation for m in modes if m.total_variation is not None]
    switches = [m.switches_per_1000_gradients for m in modes]
    return Summary(
        end=interval(ends),
        end_ratio=interval(score_ratios(ends, base_scores)),
        stationary=interval(levels),
        stationary_ratio=interval(score_ratios(levels, base_scores)),
        # Not max(), which would pass over a nan: what cannot be judged is not converged.
        rhat=float(np.max([*(run.rhat for run in runs), *mode_rhats])),
        ess=float(np.min([run.ess for run in runs])),
        ess_per_1000_gradients=_mean(runs, "ess_per_1000_gradients"),
        acceptance=_mean(runs, "acceptance"),
        divergent_share=_mean(runs, "divergent_share"),
        warmup_gradients=_mean(runs, "warmup_gradients"),
        gradients=statistics.fmean(float(run.gradients[-1]) for run in runs),
        seconds=sum(run.seconds for run in runs),
        occupancy_error=interval(errors) if errors else None,
        mode_rhat=max(mode_rhats) if mode_rhats else None,
        mode_ess=min((m.least_ess for m in modes if m.least_ess > 0), default=None),
        switches_per_1000_gradients=statistics.fmean(s or 0.0 for s in switches) if modes else None,
    )


def common_curve(result: KernelResult) -> CommonCurve:
    """The curves of all seeds at the mean gradients of their checkpoints, by interpolation.

    Raises:
        ValueError: the kernel failed.
    """
    if result.summary is None:
        raise ValueError(f"{result.kernel}: expected a kernel that ran; got one that failed")
    runs, level = result.runs, result.summary.stationary
    count = min(len(run.gradients) for run in runs)
    places = [np.linspace(0, len(run.gradients) - 1, count).round().astype(int) for run in runs]
    grid = np.mean([run.gradients[at] for run, at in zip(runs, places, strict=True)], 0)
    # No seed is asked for what it has not seen.
    grid = grid.clip(max(run.gradients[0] for run in runs), min(run.gradients[-1] for run in runs))
    scores = np.stack([np.interp(grid, run.gradients, run.scores) for run in runs])
    reach = None if math.isnan(level.low) else (level.low, level.high)
    return CommonCurve(grid, scores, level.mean, reach)


def _mean(runs: Sequence[SeedRun], name: str) -> float:
    values: list[Any] = [getattr(run, name) for run in runs]
    return statistics.fmean(values)
