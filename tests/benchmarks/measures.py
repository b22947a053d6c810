"""How good a run was: effective sample sizes, R-hat, bias against the truth, masses of modes."""

from typing import Any, NamedTuple

import numpy as np
from jobs import Run
from numpy.typing import NDArray
from targets import Modes, Target

from pyro_gebm import inference_data

Array = NDArray[Any]

MAX_RHAT, MIN_ESS = 1.01, 400  # Vehtari et al. (2021)
# The R-hat of perfect chains is about 1 + 1/(ESS of one half chain): short ones never reach 1.01
# (Margossian et al., "Nested R-hat", 2024).
MAX_RHAT_OF_MANY, MANY = 1.05, 16
MAX_BIAS = 5.0  # standard errors; of 200 fair ones the largest is below 4 nine times in ten
WITHIN_CHAINS = 16


class Scores(NamedTuple):
    """Figures of one run. NaN: there is no such thing for this target."""

    ess: float  # smallest bulk ESS over the dimensions of z
    ess_square: float  # the same of z²
    ess_tail: float  # smallest tail ESS over the dimensions of z: 5 % and 95 % quantiles
    rhat: float  # largest over z and z²
    bias_max: float  # largest |mean - truth| over z and z², in standard errors
    bias_rms: float  # root mean square of the same; 1 if all is well
    total_variation: float = np.nan  # between visited and exact masses of the modes
    mode_error: float = np.nan  # largest relative error of a mode's mass
    mode_ess: float = np.nan  # smallest ESS of the indicator of a mode
    within_ess: float = np.nan  # smallest over dimensions, of the sum of each chain's own ESS


def score(target: Target, run: Run) -> Scores:
    """All figures of a run; a draw that is not finite is an error.

    Raises:
        ValueError: there are non-finite draws.
    """
    z = run.z.astype(np.float64)
    if not np.isfinite(z).all():
        raise ValueError(f"draws: expected finite ones; got {np.sum(~np.isfinite(z))} others")
    both = np.concatenate([z, z**2], -1)
    ess = diagnose("ess", both)
    bias = np.abs(standard_errors_off(target, both))
    known = bias[np.isfinite(bias)]
    scores = Scores(
        ess=float(ess[: target.dim].min()),
        ess_square=float(ess[target.dim :].min()),
        ess_tail=float(diagnose("ess", z, method="tail").min()),
        rhat=float(diagnose("rhat", both).max()),
        bias_max=float(known.max()) if known.size else np.nan,
        bias_rms=float(np.sqrt(np.mean(known**2))) if known.size else np.nan,
    )
    if target.modes is None:
        return scores
    return scores._replace(within_ess=within_ess(z), **mode_scores(target.modes, z))


def least_ess(z: Array) -> float:
    """The least bulk ESS of z and z², over all dimensions, of draws (C, S, D)."""
    z = z.astype(np.float64)
    return float(diagnose("ess", np.concatenate([z, z**2], -1)).min())


def standard_errors_off(target: Target, both: Array) -> Array:
    """(mean - truth) / standard error for z and z² side by side, (2 D,)."""
    truth = np.concatenate([target.mean, target.second_moment])
    variance = both.var((0, 1)) / diagnose("ess", both, method="mean")
    if target.truth_error is not None:
        variance = variance + target.truth_error.ravel() ** 2
    return (both.mean((0, 1)) - truth) / np.sqrt(variance)


def mode_scores(modes: Modes, z: Array) -> dict[str, float]:
    """Total variation, worst relative error and ESS of the modes' masses."""
    visits = modes.nearest(z)[..., None] == np.arange(len(modes.masses))
    found = visits.mean((0, 1))
    ess = diagnose("ess", visits.astype(np.float64), method="mean")
    # A mode that nothing ever visited (or left) tells ArviZ nothing, and us that it is lost.
    ess = np.where((found > 0) & (found < 1), ess, 0.0)
    return {
        "total_variation": float(0.5 * np.abs(found - modes.masses).sum()),
        "mode_error": float(np.abs(found / modes.masses - 1).max()),
        "mode_ess": float(np.nan_to_num(ess).min()),
    }


def within_ess(z: Array) -> float:
    """Smallest over dimensions of the chains' own ESS, summed over chains.

    For kernels that stay in the mode they start in: how well they move inside it. Sixteen
    chains stand for all.
    """
    chains, draws, dim = z.shape
    some = z[:WITHIN_CHAINS]
    as_one = some.transpose(1, 0, 2).reshape(1, draws, -1)
    each = diagnose("ess", as_one).reshape(len(some), dim)
    return float(each.sum(0).min() * chains / len(some))


def verdict(scores: Scores, chains: int) -> str:
    """ "ok", or what is wrong."""
    found = []
    if not scores.rhat <= (MAX_RHAT if chains < MANY else MAX_RHAT_OF_MANY):
        found.append("R-hat")
    if not min(scores.ess, scores.ess_square, scores.ess_tail) >= MIN_ESS:
        found.append("few")
    if scores.bias_max > MAX_BIAS:
        found.append("biased")
    return "+".join(found) or "ok"


def diagnose(name: str, values: Array, **settings: Any) -> Array:
    """ArviZ's ``ess`` or ``rhat`` of values (C, S, K), for each of K."""
    idata = inference_data.build({"z": values}, {}, {})
    return np.asarray(getattr(inference_data, name)(idata, **settings)).ravel()
