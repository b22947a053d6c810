"""R-hat, nested R-hat, effective sample sizes and BFMI."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_gebm.inference_data._arviz import IS_ARVIZ_1, InferenceData, az
from pyro_gebm.inference_data.build import build, latent_names, values


def rhat(idata: InferenceData, name: str = "z") -> NDArray[Any]:
    """Rank-normalised split R-hat of every component of a variable (Vehtari et al. 2021).

    A single chain is compared with itself, first half with second, each split again.
    """
    return _rhats(idata, [name])[name]


def ess(idata: InferenceData, name: str = "z", method: str = "bulk") -> NDArray[Any]:
    """Effective sample size of every component, ``method`` "bulk", "tail" or "mean"."""
    return _sizes(idata, [name], method)[name]


def worst_rhat(idata: InferenceData) -> float:
    """Largest ``rhat`` over every component of the latent variables; nan if one never varies.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(4, 1000, 2))
        >>> bool(worst_rhat(build({"z": z, "tau": z[..., 0]}, {}, {})) < 1.01)
        True
    """
    return worst_component(idata)[0]


def least_ess(idata: InferenceData, method: str = "bulk") -> float:
    """Smallest ``ess`` over every component of the latent variables.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(4, 1000, 2))
        >>> bool(least_ess(build({"z": z, "tau": z[..., 0]}, {}, {})) > 3000)
        True
    """
    return scarcest_component(idata, method)[0]


def worst_component(idata: InferenceData) -> tuple[float, str]:
    """The largest R-hat and whose it is, such as "z[3]"."""
    # NumPy's argmax stops at a nan, so what cannot be judged is not passed over.
    return _extreme(_rhats(idata, latent_names(idata)), np.argmax)


def scarcest_component(idata: InferenceData, method: str = "bulk") -> tuple[float, str]:
    """The smallest effective sample size and whose it is."""
    return _extreme(_sizes(idata, latent_names(idata), method), np.argmin)


MOST_SUSPECTS = 8
"""Components that are looked at where there are many: ranks and autocorrelations take time."""

MOST_NUMBERS, FEWEST_DRAWS = 1_000_000, 100
"""To choose them by: numbers in all, but so many draws of each chain."""

UTMOST_NUMBERS = 20_000_000
"""Whatever that makes of the draws."""

QUARTILES_OF = 1000
"""Draws that tell the quartiles of a component."""


def suspects(idata: InferenceData, most: int = MOST_SUSPECTS) -> InferenceData:
    """The components that mixed worst by a cheap measure, each as a variable such as "z[3]".

    The measure is the plain split R-hat (Gelman et al. 2013) of the draws and of their distance
    from the median, with tails drawn in, vectorised over the components and, of large runs, read
    at a share of the draws. Up to ``most`` are all returned.
    """
    drawn = {name: values(idata, name) for name in latent_names(idata)}
    places = [(name, at) for name, draws in drawn.items() for at in np.ndindex(draws.shape[2:])]
    if len(places) <= most:
        return idata
    score = _badly_mixed(list(drawn.values()))
    # What never varies has no R-hat, and comes first.
    order = np.argsort(np.where(np.isfinite(score), -score, -np.inf))[:most]
    chosen = [places[k] for k in order]
    return build({label(name, at): drawn[name][(..., *at)] for name, at in chosen}, {}, {})


def label(name: str, at: Sequence[Any]) -> str:
    """A component's name, such as "z[3]"; of a scalar the variable's."""
    return name + (f"[{', '.join(map(str, at))}]" if at else "")


def _badly_mixed(drawn: list[NDArray[Any]]) -> NDArray[np.float64]:
    """The measure of ``suspects`` for every component of some variables, one after another."""
    chains, draws = drawn[0].shape[:2]
    numbers = sum(array.size for array in drawn)
    step = max(1, min(numbers // MOST_NUMBERS, draws // FEWEST_DRAWS), numbers // UTMOST_NUMBERS)
    every = np.concatenate(
        [array[:, ::step].reshape(chains, -(-draws // step), -1) for array in drawn], -1
    )
    tame = _tamed(every)
    worst: NDArray[np.float64] = np.maximum(_plain_rhat(tame), _plain_rhat(np.abs(tame)))
    return worst


def _tamed(draws: NDArray[Any]) -> NDArray[Any]:
    """Distances from the median in quartiles, within (-π/2, π/2): the share of ranks that is cheap.

    Without it the few largest of heavy tails would hide all else.
    """
    flat = draws.reshape(-1, draws.shape[-1])
    low, median, high = np.quantile(flat[:: len(flat) // QUARTILES_OF + 1], (0.25, 0.5, 0.75), 0)
    scale = np.where(high > low, high - low, flat.std(0, dtype=np.float64))
    kind = np.result_type(draws, np.float32)
    with np.errstate(all="ignore"):
        tame: NDArray[Any] = np.arctan((draws - median.astype(kind)) / scale.astype(kind))
    return tame


def _plain_rhat(draws: NDArray[Any]) -> NDArray[np.float64]:
    """Split R-hat without ranks, of draws (C, S, K)."""
    half = draws.shape[1] // 2
    halves = draws[:, :half], draws[:, -half:]
    within = np.mean([part.var(1, ddof=1).mean(0, dtype=np.float64) for part in halves], 0)
    between = np.concatenate([part.mean(1, dtype=np.float64) for part in halves]).var(0, ddof=1)
    with np.errstate(all="ignore"):
        found: NDArray[np.float64] = np.sqrt(1 + between / within)
    return found


def nested_rhat(
    idata: InferenceData, superchains: int | ArrayLike, name: str = "z"
) -> NDArray[np.float64]:
    """Nested R-hat, for many chains too short to be judged one by one.

    Chains are grouped in K superchains of M; those of a superchain share their start, and
    superchains start apart. With N draws per chain (Margossian et al. 2022, "Nested R-hat",
    arXiv 2110.13017; no rank normalisation, no splitting):

        B   = 1/(K-1) Σ_k (f_k - f)²                       between superchains
        W   = 1/K Σ_k (B_k + W_k)                          within a superchain:
        B_k = 1/(M-1) Σ_m (f_mk - f_k)²,  0 if M = 1         between its chains
        W_k = 1/(M (N-1)) Σ_mn (f_nmk - f_mk)²,  0 if N = 1  within its chains
        nested R-hat = √(1 + B/W)

    Independent draws of one law give about √(1 + 1/(M (N+1))), which is near 1 for many
    chains however short; for M = 1 it is R-hat without splitting, up to 1/N.

    Args:
        idata: a run.
        superchains: K, for consecutive chains in K equal blocks, or a label per chain (C,).
        name: the variable.

    Returns:
        A figure per component of the variable; nan where it never varies.

    Raises:
        ValueError: fewer than two superchains, superchains of unequal size, labels of another
            shape, or one draw of one chain in each.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(128, 5, 1))
        >>> nested_rhat(build({"z": z}, {}, {}), superchains=8).round(2)
        array([1.])
    """
    draws = values(idata, name).astype(np.float64)
    draws = draws[_grouped(superchains, *draws.shape[:2])]  # (K, M, N, ...)
    chain_means = draws.mean(2)  # (K, M, ...)
    means = chain_means.mean(1)  # (K, ...)
    within = (_variance(chain_means, 1) + _variance(draws, 2).mean(1)).mean(0)
    with np.errstate(all="ignore"):
        nested: NDArray[np.float64] = np.sqrt(1 + means.var(0, ddof=1) / within)
    return nested


def bfmi(idata: InferenceData) -> NDArray[Any]:
    """Bayesian fraction of missing information, (chain,); below 0.3 is poor."""
    result = az.bfmi(idata)
    return np.asarray(result["energy"].values if IS_ARVIZ_1 else result)


def _grouped(superchains: int | ArrayLike, chains: int, draws: int) -> NDArray[np.intp]:
    """The chains of each superchain, (K, M)."""
    labels = _labels(superchains, chains)
    _, sizes = np.unique(labels, return_counts=True)
    if len(sizes) < 2 or len(set(sizes)) > 1:
        raise ValueError(
            "superchains: expected two or more of equal size; got sizes "
            f"{sizes.tolist()} for {chains} chains; drop chains or regroup them"
        )
    if sizes[0] * draws < 2:
        raise ValueError(
            "superchains: expected two chains or two draws in each; got one draw of one chain; "
            "put several chains into a superchain"
        )
    return np.argsort(labels, kind="stable").reshape(len(sizes), -1)


def _labels(superchains: int | ArrayLike, chains: int) -> NDArray[Any]:
    given = np.asarray(superchains)
    if given.ndim == 0 and given.dtype.kind in "iu" and given > 0 and chains % int(given) == 0:
        return np.repeat(np.arange(int(given)), chains // int(given))
    if given.shape == (chains,):
        return given
    raise ValueError(
        f"superchains: expected a number that divides the {chains} chains, or a label for each, "
        f"({chains},); got {superchains!r}"
    )


def _variance(draws: NDArray[np.float64], axis: int) -> Any:
    return draws.var(axis, ddof=1) if draws.shape[axis] > 1 else np.zeros_like(draws.mean(axis))


def _extreme(
    figures: dict[str, NDArray[Any]], pick: Callable[[NDArray[Any]], Any]
) -> tuple[float, str]:
    found = []
    for name, of_one in figures.items():
        place = np.unravel_index(int(pick(of_one)), of_one.shape)
        found.append((float(of_one[place]), label(name, place)))
    return found[int(pick(np.array([figure for figure, _ in found])))]


def _rhats(idata: InferenceData, names: list[str]) -> dict[str, NDArray[Any]]:
    chains, draws = (idata["posterior"].sizes[name] for name in ("chain", "draw"))
    if chains == 1:
        whole, half = {name: values(idata, name) for name in names}, draws // 2
        halves = {n: np.concatenate([d[:, :half], d[:, -half:]]) for n, d in whole.items()}
        idata = build(halves, {}, {})
    return _diagnose(az.rhat, idata, names)


def _sizes(idata: InferenceData, names: list[str], method: str) -> dict[str, NDArray[Any]]:
    return _diagnose(partial(az.ess, method=method), idata, names)


def _diagnose(diagnostic: Any, idata: InferenceData, names: list[str]) -> dict[str, NDArray[Any]]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = diagnostic(idata, var_names=names)
    return {name: np.asarray(result[name].values) for name in names}
