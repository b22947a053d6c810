"""What is wrong with a run, in words."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_gebm.inference_data._arviz import InferenceData
from pyro_gebm.inference_data.build import latent_names, names, saved_settings, values
from pyro_gebm.inference_data.diagnostics import (
    MOST_SUSPECTS,
    bfmi,
    scarcest_component,
    suspects,
    worst_component,
)

STUCK = 0.01
"""A chain that moves in fewer of its draws, or accepts so much less than others, is stuck."""

RHAT_LIMIT = 1.01
"""Largest R-hat of chains that count as converged (Vehtari et al., 2021)."""

MANY_CHAINS, MOST_JUDGED = 32, 50_000
"""So many chains tell well which components mix worst, since what differs between them stands out
from noise: then ranks of about so many numbers are taken, but of three components at least."""


def problems(idata: InferenceData) -> list[str]:
    """What R-hat, ESS, stuck chains, divergences, lengths, depths and BFMI say against a run.

    R-hat, ESS and stuck chains are about all variables in ``attrs["latent_sites"]`` (names
    joined by commas), or all of the posterior where it does not say. R-hat needs four draws,
    for it splits chains, and eight of one chain; what the run has no statistics for is not
    looked at.

    Returns:
        One sentence per problem, with what to do; none for a good run.

    Example:
        >>> from pyro_gebm.inference_data import build
        >>> z = np.random.default_rng(0).normal(size=(4, 1000, 2))
        >>> problems(build({"z": z}, {}, {}))
        []
        >>> z[2] = 5.0
        >>> problems(build({"z": z}, {}, {}))[0][:41]
        '1 of 4 chains never moved (chains 2): the'
    """
    stats = set(names(idata, "sample_stats"))
    chains, draws = values(idata, latent_names(idata)[0]).shape[:2]
    found = [_storage_problem(idata)]
    if not any(found):  # of what is not there nothing can be told
        found += _motion_problems(idata, stats) if draws > 1 else []
        # A single chain is cut into two.
        found.append(_rhat_problem(idata) if draws >= (8 if chains == 1 else 4) else "")
    if "diverging" in stats:
        found.append(_divergence_problem(idata, stats))
    if "reached_max_treedepth" in stats:
        found.append(_treedepth_problem(idata))
    if "n_steps" in stats:
        found.append(_length_problem(idata))
    if {"energy", "tree_depth"} <= stats and draws >= 4:
        found.append(_bfmi_problem(idata))
    return [problem for problem in found if problem]


def _storage_problem(idata: InferenceData) -> str:
    lost = [name for name in latent_names(idata) if not np.isfinite(values(idata, name)).all()]
    if not lost:
        return ""
    return (
        f"draws of {', '.join(lost)} were stored as inf, since chains went beyond what "
        'storage_dtype holds (65,504 for "float16"); take "float32"'
    )


def _motion_problems(idata: InferenceData, stats: set[str]) -> list[str]:
    moved = _moved(idata)
    still, seldom = moved == 0, (moved > 0) & (moved < STUCK)
    if "acceptance_rate" in stats:
        acceptance = values(idata, "acceptance_rate", "sample_stats").mean(1)
        seldom |= ~still & (acceptance < STUCK * np.median(acceptance))
    return [
        _name_chains(still, "never moved", "their averages mean nothing; drop them"),
        _name_chains(
            seldom,
            "are stuck",
            f"they moved in under {STUCK:.0%} of their draws or accepted under {STUCK:.0%} of "
            "what the rest did, and averages count their few places far too often; drop them",
        ),
    ]


def _moved(idata: InferenceData) -> NDArray[np.float64]:
    """Share of the draws of each chain (C,) that differ from the one before."""
    draws = [values(idata, name) for name in latent_names(idata)]
    changed: NDArray[np.bool_] = np.zeros((draws[0].shape[0], draws[0].shape[1] - 1), dtype=bool)
    for array in draws:
        changed |= (array[:, 1:] != array[:, :-1]).reshape(*changed.shape, -1).any(-1)
    share: NDArray[np.float64] = changed.mean(1)
    return share


def _name_chains(chosen: NDArray[Any], what: str, advice: str) -> str:
    chains = np.flatnonzero(chosen)
    if not len(chains):
        return ""
    named = ", ".join(map(str, chains[:10])) + (", ..." if len(chains) > 10 else "")
    return (
        f"{len(chains)} of {len(chosen)} chains {what} (chains {named}): {advice}, and look at "
        "the potential where they stand"
    )


def _rhat_problem(idata: InferenceData) -> str:
    chains, draws = (idata["posterior"].sizes[name] for name in ("chain", "draw"))
    few = chains < MANY_CHAINS
    most = MOST_SUSPECTS if few else min(MOST_SUSPECTS, max(3, MOST_JUDGED // (chains * draws)))
    some = suspects(idata, most)
    worst, where = worst_component(some)
    least, there = scarcest_component(some)
    if worst <= RHAT_LIMIT and least >= 400:
        return ""
    shown = f"{worst:.3f}"
    if worst > RHAT_LIMIT >= float(shown):
        shown = f"just above {RHAT_LIMIT}"
    return (
        f"not converged yet: largest R-hat {shown} of {where} (wanted <= {RHAT_LIMIT}), "
        f"smallest bulk ESS {least:.0f} of {there} (wanted >= 400); take more draws, a longer "
        "warm-up or more chains"
    )


def _divergence_problem(idata: InferenceData, stats: set[str]) -> str:
    diverging = values(idata, "diverging", "sample_stats").astype(bool)
    share = float(diverging.mean())
    if share == 0:
        return ""
    told = f"{share:.2%} of the transitions diverged"
    error = next((name for name in ("max_energy_error", "energy_error") if name in stats), "")
    if error and np.isinf(values(idata, error, "sample_stats")[diverging]).mean() > 0.5:
        return (
            f"{told}, most of them to where the potential is not finite: behind a wall that is as "
            "it should be; without one raise target_accept_prob"
        )
    return f"{told}: the draws may avoid narrow regions; raise target_accept_prob"


def _length_problem(idata: InferenceData) -> str:
    longest = saved_settings(idata).get("max_num_steps")
    if longest is None:
        return ""
    steps = values(idata, "n_steps", "sample_stats")
    share = float((steps >= longest * idata.attrs.get("thinning", 1)).mean())
    if share < 0.01:
        return ""
    return (
        f"{share:.1%} of the trajectories were cut at max_num_steps = {longest}, since steps are "
        "small: look for NaN in the potential, and for walls, with which MALA and NUTS cope best; "
        "elsewhere raise it, or warm up for longer"
    )


def _treedepth_problem(idata: InferenceData) -> str:
    share = float(values(idata, "reached_max_treedepth", "sample_stats").mean())
    if share < 0.01:
        return ""
    return f"{share:.1%} of the trees reached max_tree_depth; raise it, or warm up for longer"


def _bfmi_problem(idata: InferenceData) -> str:
    low = int((bfmi(idata) < 0.3).sum())
    if not low:
        return ""
    return (
        f"BFMI below 0.3 in {low} chains: the momentum explores the energies badly; take more "
        "draws or reparametrise"
    )
