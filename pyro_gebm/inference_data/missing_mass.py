"""Mass that every chain misses, which R-hat cannot see: a comparison with weighted base draws."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_gebm.inference_data.build import build
from pyro_gebm.inference_data.diagnostics import ess

TRUSTED_ESS = 50
"""Weighted base draws that are worth fewer exact ones judge nothing."""

UNSEEN_SHARE = 0.05
"""The largest share of the run that may outweigh every base draw."""

FALSE_ALARMS = 0.002
MEANINGFUL = 0.02
"""A share of the mass below which nothing is said, however sure it is."""

DECILES = np.linspace(0.1, 0.9, 9)


class _Excess(NamedTuple):
    """The tenth of a statistic where the base finds most more mass than the run."""

    reference: float
    run: float
    errors: float
    """(reference - run) / its standard error."""
    margin: float
    """Errors beyond those that chance reaches; -inf if the excess is too small to matter."""


def check_missing_mass(
    log_weights: NDArray[Any],
    reference_statistics: NDArray[Any],
    run_statistics: NDArray[Any],
    *,
    run_log_weights: NDArray[Any] | None = None,
    names: Sequence[str] | None = None,
) -> str:
    """Say where importance-weighted draws of the base find mass that the run does not.

    R-hat compares chains with each other, so it is blind when all of them miss the same mode.
    Base draws z_i ~ η with self-normalised weights w_i ∝ exp(-β E(G(z_i))) see all of ν_β, if
    roughly. For each statistic t the draws of the run are cut in tenths, and the mass of each
    tenth B is estimated from the base:

        p = Σ w_i 1[t_i in B],   se² = Σ w_i² (1[t_i in B] - p)² + q (1 - q) / ESS of the run

    with q halfway between p and the run's share (delta method, Owen 2013, "Monte Carlo theory,
    methods and examples", §9.2; the run's error is that of its own cuts). Missed mass is a p
    above the run's share by 0.02 or more, and by more standard errors than chance reaches in
    1 of 500 runs, over all tenths and statistics (Bonferroni, with the first term of Student's
    correction for few draws). Only an excess counts: where the base sees less than the run,
    base draws may be what is missing.

    Args:
        log_weights: of N independent base draws, up to a constant, (N,); -inf is weight 0.
        reference_statistics: K statistics of each base draw, (N, K), such as the energy, a few
            latents and random projections; a mode is seen if one of them sets it apart.
        run_statistics: the same of the draws of the run, (C, S, K), S >= 4.
        run_log_weights: log weights of the draws of the run, (C, S), with the same constant.
            If over 5 % of them are above every base draw's, the base has not seen where the
            run is, and nothing is said.
        names: what the statistics are called, K of them; "statistic k" unless given.

    Returns:
        One sentence, or "" if nothing is wrong or the weighted base draws are worth fewer than
        50 exact ones (Σw)²/Σw².

    Raises:
        ValueError: the shapes do not fit, or a number is not finite (statistics of weight 0
            may be anything).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> base = rng.choice([-3.0, 3.0], size=(2000, 1)) + rng.normal(size=(2000, 1))
        >>> both = rng.choice([-3.0, 3.0], size=(4, 500, 1)) + rng.normal(size=(4, 500, 1))
        >>> check_missing_mass(np.zeros(2000), base, both)
        ''
        >>> one = 3 + rng.normal(size=(4, 500, 1))
        >>> check_missing_mass(np.zeros(2000), base, one)[:28]
        'the run seems to miss mass: '
    """
    _check(log_weights, reference_statistics, run_statistics, run_log_weights, names)
    kept = log_weights > -np.inf
    if kept.sum() < TRUSTED_ESS or _is_unseen(log_weights, run_log_weights):
        return ""
    weights = np.exp(log_weights[kept].astype(np.float64) - log_weights.max())
    weights /= weights.sum()
    worth = 1 / float(np.square(weights).sum())
    if worth < TRUSTED_ESS:
        return ""
    run_worth = _run_worth(run_statistics)
    level = FALSE_ALARMS / (10 * len(run_worth))
    found = [
        _largest_excess(
            weights,
            reference_statistics[kept, k],
            run_statistics[..., k].ravel(),
            draws,
            _chance_errors(level, min(worth, draws)),
        )
        for k, draws in enumerate(run_worth)
    ]
    k = max(range(len(found)), key=lambda k: found[k].margin)
    return _describe(found[k], worth, names[k] if names is not None else f"statistic {k}")


def _largest_excess(
    weights: NDArray[np.float64],
    reference: NDArray[Any],
    run: NDArray[Any],
    draws: float,
    chance: float,
) -> _Excess:
    cuts = np.quantile(run, DECILES)
    inside = np.searchsorted(cuts, reference, side="right")[:, None] == np.arange(10)
    p = weights @ inside
    share = np.bincount(np.searchsorted(cuts, run, side="right"), minlength=10) / len(run)
    pooled = (p + share) / 2
    variance = np.square(weights) @ np.square(inside - p) + pooled * (1 - pooled) / draws
    # Nothing varies where both shares are 0 or both are 1: no excess there.
    errors = (p - share) / np.sqrt(np.where(variance > 0, variance, np.inf))
    margin = np.where(p - share >= MEANINGFUL, errors - chance, -np.inf)
    tenth = int(margin.argmax())
    return _Excess(*(float(figures[tenth]) for figures in (p, share, errors, margin)))


def _run_worth(run: NDArray[Any]) -> NDArray[np.float64]:
    """Exact draws that the run is worth, by statistic (K,)."""
    idata = build({"t": run}, {}, {})
    least = np.minimum(ess(idata, "t", "bulk"), ess(idata, "t", "tail"))
    varies = (run != run[:1, :1]).any((0, 1))
    return np.where(varies & np.isfinite(least), least, len(run))


def _chance_errors(level: float, freedom: float) -> float:
    """Standard errors that chance reaches with probability ``level``."""
    z = NormalDist().inv_cdf(1 - level)
    return z * (1 + (z**2 + 1) / (4 * freedom))


def _is_unseen(log_weights: NDArray[Any], run_log_weights: NDArray[Any] | None) -> bool:
    if run_log_weights is None:
        return False
    return bool((run_log_weights > log_weights.max()).mean() > UNSEEN_SHARE)


def _describe(excess: _Excess, worth: float, name: str) -> str:
    if excess.margin <= 0:
        return ""
    return (
        f"the run seems to miss mass: base draws, weighted (worth {worth:.0f} exact ones), put "
        f"{excess.reference:.1%} of the model where the run has {excess.run:.1%} of its draws "
        f"({excess.errors:.1f} standard errors, seen in {name}); use global_moves or tempering, "
        "or start chains from more of the base"
    )


def _check(
    log_weights: NDArray[Any],
    reference: NDArray[Any],
    run: NDArray[Any],
    run_log_weights: NDArray[Any] | None,
    names: Sequence[str] | None,
) -> None:
    if log_weights.ndim != 1 or reference.ndim != 2 or len(reference) != len(log_weights):
        raise ValueError(
            "log_weights, reference_statistics: expected (N,) and (N, K); got "
            f"{log_weights.shape} and {reference.shape}"
        )
    if run.ndim != 3 or run.shape[2] != reference.shape[1] or run.shape[1] < 4 or 0 in run.shape:
        raise ValueError(
            f"run_statistics: expected (C, S, {reference.shape[1]}) with S >= 4; got {run.shape}; "
            "give the statistics of the base draws, of every draw of the run"
        )
    if run_log_weights is not None and run_log_weights.shape != run.shape[:2]:
        raise ValueError(f"run_log_weights: expected {run.shape[:2]}; got {run_log_weights.shape}")
    if names is not None and len(names) != run.shape[2]:
        raise ValueError(f"names: expected {run.shape[2]}, one per statistic; got {len(names)}")
    if np.isnan(log_weights).any() or (log_weights == np.inf).any():
        raise ValueError("log_weights: expected finite numbers or -inf; got nan or inf")
    if not np.isfinite(reference[log_weights > -np.inf]).all() or not np.isfinite(run).all():
        raise ValueError(
            "reference_statistics, run_statistics: expected finite numbers wherever the weight "
            "is above 0; got nan or inf; leave the statistic out"
        )
