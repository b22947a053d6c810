"""From the draws of all chains to the InferenceData that ``sample_many`` returns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyro_gebm import inference_data
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.inverse.problems import Problems
from pyro_gebm.mcmc import Draws
from pyro_gebm.sampling.result import statistics_of

WORST_RHAT = 1.05
"""Of so many components some come near 1.01 by chance."""


def build_result(
    problems: Problems,
    draws: Draws,
    about: dict[str, Any],
    state: Mapping[str, NDArray[Any]],
    include_x: bool,
) -> InferenceData:
    """Posterior (chain, draw, problem, *shape) under the sites' names, statistics, attributes."""

    def by_problem(rows: NDArray[Any]) -> NDArray[Any]:
        """(P·C, S, ...) -> (C, S, P, ...)."""
        whole = rows.reshape(problems.num_problems, -1, *rows.shape[1:])
        return np.moveaxis(whole, 0, 2)

    with torch.no_grad():
        u = draws.z.to(problems.reference.sample(1))
        sites = problems.first.to_sites(u)
    posterior = {name: by_problem(value.cpu().numpy()) for name, value in sites.items()}
    about |= {"latent_sites": ",".join(sites), "rhat_by_problem": _rhat_by_problem(posterior)}
    if include_x and problems.push is not None:
        apart = problems.push(u.reshape(problems.num_problems, -1, u.shape[-1]))
        rows = {n: v.reshape(*u.shape[:2], *v.shape[2:]).numpy() for n, v in apart.items()}
        posterior |= {name: by_problem(value) for name, value in rows.items()}
    step_size = draws.tuning.step_size[-len(u) :]
    statistics = statistics_of(draws.potential_energy, draws.info, step_size)
    stats = {name: by_problem(value) for name, value in statistics.items()}
    idata = inference_data.build(posterior, stats, about, state=state)
    for group in ("posterior", "sample_stats"):
        _name_dimension(idata, group)
    return idata


def _name_dimension(idata: InferenceData, group: str) -> None:
    """The third dimension of every variable of a group is called problem."""
    found = idata[group]
    variables = {}
    for name in map(str, found.data_vars):
        values = found[name].values
        rest = [f"{name}_dim_{place}" for place in range(values.ndim - 3)]
        variables[name] = (["chain", "draw", "problem", *rest], values)
    chains, draws, problems = next(iter(variables.values()))[1].shape[:3]
    coordinates = {
        "chain": np.arange(chains),
        "draw": np.arange(draws),
        "problem": np.arange(problems),
    }
    dataset = xr.Dataset(variables, coordinates, attrs=dict(found.attrs))
    if isinstance(idata, xr.DataTree):  # ArviZ 1.x
        idata[group] = xr.DataTree(dataset)
    else:
        setattr(idata, group, dataset)


# --- diagnostics ------------------------------------------


def _rhat_by_problem(posterior: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Largest split R-hat of a problem's components, (P,); NaN where one never varies."""
    worst: list[NDArray[np.float64]] = []
    for draws in posterior.values():
        half = draws.shape[1] // 2
        if half < 2:
            return np.full(draws.shape[2], np.nan)
        split = np.concatenate([draws[:, :half], draws[:, -half:]]).astype(np.float64)
        within = split.var(1, ddof=1).mean(0)
        with np.errstate(all="ignore"):
            rhat = np.sqrt((half - 1) / half + split.mean(1).var(0, ddof=1) / within)
        worst.append(rhat.reshape(len(rhat), -1).max(1))
    found: NDArray[np.float64] = np.max(worst, 0)
    return found


def complaints(idata: InferenceData) -> list[str]:
    """Problems that have not converged, and divergences, a line each."""
    found = []
    rhat = np.asarray(idata.attrs["rhat_by_problem"])
    num_draws = idata["posterior"].sizes["draw"]
    # Not >: what never varies has none.
    bad = np.flatnonzero(~(rhat <= WORST_RHAT) & (num_draws >= 4))
    if len(bad):
        worst = bad[np.argmax(np.nan_to_num(rhat[bad], nan=np.inf))]
        found.append(
            f"not converged: {len(bad)} of {len(rhat)} problems have an R-hat above {WORST_RHAT} "
            f"(problem {worst} the worst, {rhat[worst]:.3f}); take more draws, a longer warm-up, "
            "or global moves where posteriors have several modes"
        )
    diverging = float(inference_data.values(idata, "diverging", "sample_stats").mean())
    if diverging:
        found.append(
            f"{diverging:.2%} of the transitions diverged: the draws may avoid narrow regions; "
            "raise target_accept_prob"
        )
    return found
