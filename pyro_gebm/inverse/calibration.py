"""Whether posteriors are as wide as they say: ranks of the truth, and coverage of intervals."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm._checks import check_count, check_in_range
from pyro_gebm.inference_data import InferenceData


class Calibration(NamedTuple):
    """Simulation-based calibration of P problems with L draws each.

    Attributes:
        ranks: by site, (P, *shape): how many of the L draws are below the truth, 0 to L.
        p_values: by site, (*shape): of the χ² test that ranks are uniform.
        num_draws: L.
        worst: the smallest p-value times their number (Bonferroni), at most 1.
    """

    ranks: dict[str, Tensor]
    p_values: dict[str, Tensor]
    num_draws: int
    worst: float


class Coverage(NamedTuple):
    """How often central intervals hold the truth.

    Attributes:
        share: of the entries of all problems, in [0, 1].
        standard_error: of the share; problems are independent, entries of one are not.
        expected: what a calibrated posterior has: the level that so many draws can make.
        by_problem: (P,).
    """

    share: float
    standard_error: float
    expected: float
    by_problem: Tensor


def rank_statistics(draws: Tensor, truth: Tensor) -> Tensor:
    """How many of L draws (L, P, ...) are below the truth (P, ...), (P, ...), 0 to L.

    Uniform on 0 to L if the truth is drawn from the prior, data from it, and the draws are
    independent draws of the posterior (Cook, Gelman and Rubin, 2006). Ties, of draws that
    stand still, count half, rounded down.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> rank_statistics(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2.5]))
        tensor([2])
    """
    _check_truth(draws, truth)
    return (draws < truth).sum(0) + (draws == truth).sum(0) // 2


def uniformity(ranks: Tensor, num_draws: int, num_bins: int) -> Tensor:
    """p-values of χ² tests that ranks (P, ...) are uniform on 0 to L, (...), float64.

    Args:
        ranks: from ``rank_statistics``.
        num_draws: L; L + 1 is a multiple of ``num_bins``.
        num_bins: of equal width.

    Raises:
        ValueError: the bins cannot be of equal width.

    Example:
        >>> uniformity(torch.arange(100) % 20, 19, 10)
        tensor(1., dtype=torch.float64)
    """
    check_count("num_bins", num_bins, minimum=2)
    if (num_draws + 1) % num_bins:
        raise ValueError(
            f"num_bins: expected a divisor of num_draws + 1 = {num_draws + 1}; got {num_bins}"
        )
    bins = ranks // ((num_draws + 1) // num_bins)
    counts = torch.stack([(bins == place).sum(0) for place in range(num_bins)]).double()
    expected = len(ranks) / num_bins
    statistic = ((counts - expected).square() / expected).sum(0)
    freedom = torch.full_like(statistic, num_bins - 1)
    p_values: Tensor = torch.special.gammaincc(freedom / 2, statistic / 2)
    return p_values


def calibration(
    idata: InferenceData,
    truth: Mapping[str, Tensor],
    *,
    thin: int = 1,
    num_bins: int = 16,
) -> Calibration:
    """Simulation-based calibration (Talts, Betancourt, Simpson, Vehtari and Gelman, 2018).

    Draw the truth from the model itself (z from the GEBM, scales from their priors), data from
    the likelihood, and the posteriors with ``sample_many``: then the rank of the truth among the
    draws is uniform, whatever the model. Ranks that heap up at the ends come from posteriors
    that are too narrow, in the middle from ones that are too wide, at one end from a bias.

    Args:
        idata: from ``sample_many``.
        truth: by site, (P, *shape).
        thin: keep every so many draws of each chain: ranks of correlated draws heap up at the
            ends, too. All chains are put together.
        num_bins: of the χ² test; expect 20 problems or more in each. The last few draws are
            left out so that L + 1 is a multiple.

    Returns:
        ``Calibration``.

    Raises:
        ValueError: a site is unknown or of another shape, or there are fewer draws than bins.
    """
    check_count("thin", thin)
    ranks, p_values, used = dict[str, Tensor](), dict[str, Tensor](), 0
    for name, value in truth.items():
        draws = _pooled(idata, name, thin)
        used = (len(draws) + 1) // num_bins * num_bins - 1
        if used < 1:
            raise ValueError(
                f"num_bins: expected at most {len(draws) + 1}, one more than there are draws; got "
                f"{num_bins}"
            )
        ranks[name] = rank_statistics(draws[:used], value.to(draws))
        p_values[name] = uniformity(ranks[name], used, num_bins)
    each = torch.cat([p.flatten() for p in p_values.values()])
    worst = min(1.0, float(each.min()) * len(each))
    return Calibration(ranks, p_values, used, worst)


def _pooled(idata: InferenceData, name: str, thin: int) -> Tensor:
    """Draws of all chains, (L, P, *shape), those of a time side by side."""
    known = inference_data.names(idata, "posterior")
    if name not in known:
        raise ValueError(f"truth: expected sites of the posterior, {known}; got {name!r}")
    values = inference_data.values(idata, name)[:, ::thin]
    return torch.as_tensor(values).transpose(0, 1).flatten(0, 1)


def interval_coverage(draws: Tensor, truth: Tensor, level: float = 0.9) -> Coverage:
    """How often central intervals of posterior draws hold the truth.

    The interval of an entry goes from the k-th smallest to the k-th largest of its L draws, with
    the largest k such that 1 - 2k/(L + 1) >= ``level``: that is the probability that it holds
    another draw of the same law.

    Args:
        draws: of the posteriors of P problems, (L, P, ...).
        truth: (P, ...).
        level: in (0, 1).

    Raises:
        ValueError: the shapes do not fit, or L draws cannot make such an interval.

    Example:
        >>> draws = torch.randn(199, 1000, generator=torch.Generator().manual_seed(0))
        >>> found = interval_coverage(draws[1:], draws[0])
        >>> abs(found.share - found.expected) < 4 * found.standard_error
        True
    """
    check_in_range("level", level, 0.0, 1.0, open_low=True)
    count = len(draws)
    # 1e-9: so that level 0.9 of 19 draws is k = 1, whatever the rounding.
    k = math.floor((1 - level) / 2 * (count + 1) + 1e-9)
    if k < 1:
        least = math.ceil(2 / (1 - level) - 1e-9) - 1 if level < 1 else "infinitely many"
        raise ValueError(
            f"level: expected one that {count} draws can make; got {level}, which takes {least}"
        )
    _check_truth(draws, truth)
    low = draws.kthvalue(k, 0).values
    high = draws.kthvalue(count + 1 - k, 0).values
    held = ((low <= truth) & (truth <= high)).double().reshape(len(truth), -1).mean(1)
    error = float(held.std()) / math.sqrt(len(held)) if len(held) > 1 else math.nan
    return Coverage(float(held.mean()), error, 1 - 2 * k / (count + 1), held)


def _check_truth(draws: Tensor, truth: Tensor) -> None:
    if draws.shape[1:] != truth.shape or truth.ndim == 0:
        raise ValueError(
            f"truth: expected shape {tuple(draws.shape[1:])} for draws {tuple(draws.shape)}; got "
            f"{tuple(truth.shape)}"
        )
