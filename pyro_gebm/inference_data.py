"""From draws to ArviZ and back: the only file that imports it, for 0.23 and 1.x alike.

ArviZ 0.x calls its container ``InferenceData``; in 1.x it is xarray's ``DataTree``. Both
have the same groups here.
"""

import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyro_gebm._version import __version__

with warnings.catch_warnings():
    # 0.23 announces the refactoring of 1.0 on the first import of a day.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

IS_ARVIZ_1 = int(az.__version__.split(".")[0]) >= 1

InferenceData: TypeAlias = Any
"""``arviz.InferenceData`` on ArviZ 0.23, ``xarray.DataTree`` on 1.x."""

SCHEMA_NAMES = {
    "accept_prob": "acceptance_rate",
    "diverging": "diverging",
    "hamiltonian": "energy",
    "num_steps": "n_steps",
    "energy_error": "energy_error",
    "tree_depth": "tree_depth",
    "max_energy_error": "max_energy_error",
    "reached_max_treedepth": "reached_max_treedepth",
    "step_size": "step_size",
    "lp": "lp",
}
"""Our names of sample statistics -> those of the InferenceData schema."""

Attribute: TypeAlias = str | int | float | NDArray[Any]


def build(
    posterior: Mapping[str, NDArray[Any]],
    sample_stats: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Attribute],
) -> InferenceData:
    """An InferenceData (DataTree on ArviZ 1.x) of two groups.

    Args:
        posterior: name -> (chain, draw, ...).
        sample_stats: our name -> (chain, draw); renamed by ``SCHEMA_NAMES``.
        attributes: stored at the root and with the posterior; numbers, strings and
            one-dimensional arrays, which netCDF can hold.
    """
    stats = {SCHEMA_NAMES[name]: values for name, values in sample_stats.items()}
    about = {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyro_gebm",
        "inference_library_version": __version__,
        **attributes,
    }
    groups = {"posterior": dict(posterior), "sample_stats": stats}
    with warnings.catch_warnings():
        # 0.23 warns of more chains than draws, which is how short batched runs look.
        warnings.simplefilter("ignore", UserWarning)
        idata = az.from_dict(groups) if IS_ARVIZ_1 else az.from_dict(**groups)
    idata.attrs.update(about)
    idata.posterior.attrs.update(about)
    return idata


def save(idata: InferenceData, path: str | Path) -> None:
    """Write netCDF, readable by ``arviz.from_netcdf`` of the same major version."""
    idata.to_netcdf(str(path))


def load(path: str | Path) -> InferenceData:
    """Read what ``save`` wrote."""
    return az.from_netcdf(str(path))


def subset(idata: InferenceData, dims: Sequence[int], chains: Sequence[int]) -> InferenceData:
    """Some latents of some chains of ``z``."""
    z = values(idata, "z")[np.asarray(chains)][:, :, np.asarray(dims)]
    named = {f"z[{dim}]": z[:, :, place] for place, dim in enumerate(dims)}
    return build(named, {}, {})


def values(idata: InferenceData, name: str, group: str = "posterior") -> NDArray[Any]:
    """A variable as an array (chain, draw, ...)."""
    return np.asarray(idata[group][name].values)


def names(idata: InferenceData, group: str) -> list[str]:
    """The variables of a group."""
    return [str(name) for name in idata[group].data_vars]


def rhat(idata: InferenceData, name: str = "z") -> NDArray[Any]:
    """Rank-normalised split R-hat of every component of a variable (Vehtari et al. 2021).

    A single chain is compared with itself, first half with second, each split again.
    """
    draws = values(idata, name)
    if len(draws) == 1:
        half = draws.shape[1] // 2
        draws = np.concatenate([draws[:, :half], draws[:, -half:]])
    return _diagnose(az.rhat, draws, name)


def ess(idata: InferenceData, name: str = "z", method: str = "bulk") -> NDArray[Any]:
    """Effective sample size of every component, ``method`` "bulk" or "tail"."""
    return _diagnose(lambda data: az.ess(data, method=method), values(idata, name), name)


def bfmi(idata: InferenceData) -> NDArray[Any]:
    """Bayesian fraction of missing information, (chain,); below 0.3 is poor."""
    result = az.bfmi(idata)
    return np.asarray(result["energy"].values if IS_ARVIZ_1 else result)


def problems(idata: InferenceData) -> list[str]:
    """What R-hat, ESS, divergences and, for NUTS, tree depths and BFMI say against a run."""
    z = values(idata, "z")
    stats = set(names(idata, "sample_stats"))
    found = [_stuck_problem(z)] if z.shape[1] > 1 else []
    if z.shape[1] >= 4:  # R-hat splits chains and needs two draws in each half
        found.append(_rhat_problem(idata))
    found.append(_divergence_problem(idata))
    if "reached_max_treedepth" in stats:
        found.append(_treedepth_problem(idata))
    if {"energy", "tree_depth"} <= stats and z.shape[1] >= 4:
        found.append(_bfmi_problem(idata))
    return [problem for problem in found if problem]


def _stuck_problem(z: NDArray[Any]) -> str:
    stuck = np.flatnonzero((z == z[:, :1]).all(axis=(1, 2)))
    if not len(stuck):
        return ""
    named = ", ".join(map(str, stuck[:10]))
    return (
        f"{len(stuck)} of {len(z)} chains never moved (chains {named}): their averages mean "
        "nothing; drop them, and look at the potential where they stand"
    )


def _rhat_problem(idata: InferenceData) -> str:
    worst, least = float(np.max(rhat(idata))), float(np.min(ess(idata)))
    if worst <= 1.01 and least >= 400:
        return ""
    return (
        f"not converged yet: largest R-hat {worst:.3f} (wanted <= 1.01), smallest bulk ESS "
        f"{least:.0f} (wanted >= 400); take more draws, a longer warm-up or more chains"
    )


def _divergence_problem(idata: InferenceData) -> str:
    share = float(values(idata, "diverging", "sample_stats").mean())
    if share == 0:
        return ""
    return (
        f"{share:.2%} of the transitions diverged: the draws may avoid narrow regions; raise "
        "target_accept_prob"
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


def plot_rank(idata: InferenceData, path: str | Path, dims: Sequence[int]) -> None:
    """Marginals and ranks of some latents of up to eight chains, by ArviZ, as a picture."""
    import matplotlib.pyplot as plt

    chains = range(min(8, values(idata, "z").shape[0]))
    some = subset(idata, dims, chains)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if IS_ARVIZ_1:
            az.plot_rank_dist(some, compact=False).savefig(str(path), dpi=110)
        else:
            axes = az.plot_trace(some, kind="rank_bars", compact=False, figsize=(10, 2 * len(dims)))
            figure = axes.ravel()[0].figure
            figure.tight_layout()
            figure.savefig(str(path), dpi=110)
    plt.close("all")


def _diagnose(diagnostic: Any, draws: NDArray[Any], name: str) -> NDArray[Any]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = diagnostic(build({name: draws}, {}, {}))
    return np.asarray(result[name].values)
