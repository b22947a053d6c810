"""Of a run that lies on the disk, what its checks look at: little enough to be read."""

from collections.abc import Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_gebm.inference_data._arviz import InferenceData
from pyro_gebm.inference_data.build import SCHEMA_NAMES, build, latent_names, names
from pyro_gebm.inference_data.diagnostics import label, suspects

MOST_READ = 4_000_000
"""Numbers of the latent variables; the checks take some twenty bytes for each."""

CHECKED = (
    *("accept_prob", "diverging", "reached_max_treedepth", "tree_depth", "hamiltonian"),
    *("energy_error", "max_energy_error", "num_steps"),
)
"""Statistics that ``problems`` looks at."""

NAMED = "kernel_settings", "thinning"
"""Attributes that it looks at."""


def stride(idata: InferenceData, most: int = MOST_READ) -> int:
    """The step at which the draws of the latent variables have at most ``most`` numbers."""
    return -(-sum(int(idata["posterior"][name].size) for name in latent_names(idata)) // most)


def every(idata: InferenceData, name: str, step: int, group: str = "posterior") -> NDArray[Any]:
    """Every ``step``-th draw of a variable, (chain, draw / step, ...)."""
    return np.asarray(idata[group][name][:, ::step].values)


def abridged(idata: InferenceData, most: int = MOST_READ) -> InferenceData:
    """What ``problems`` needs of a run, in memory: all of it if that is little.

    Of a run with more than ``most`` numbers: the components that mixed worst, by the measure of
    ``suspects`` at a share of the draws, and of these and the statistics every so many-th draw.
    Energies, whose changes from draw to draw matter, are those of the last draws.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(4, 1000, 50))
        >>> z[0, :, 7] += 1
        >>> few = abridged(build({"z": z}, {}, {}), most=8_000)
        >>> "z[7]" in few["posterior"], few["posterior"].sizes["draw"]
        (True, 250)
    """
    step = stride(idata, most)
    latents = {name: every(idata, name, step) for name in latent_names(idata)}
    if step > 1:
        thin = build(latents, {}, {})
        worst = suspects(thin)
        if worst is not thin:
            latents, step = _components(idata, set(names(worst, "posterior")), most)
    count = next(iter(latents.values())).shape[1]
    told = {name: SCHEMA_NAMES[name] for name in CHECKED}
    told = {ours: name for ours, name in told.items() if name in names(idata, "sample_stats")}
    stats = {ours: every(idata, name, step, "sample_stats") for ours, name in told.items()}
    if "hamiltonian" in stats:
        stats["hamiltonian"] = np.asarray(idata["sample_stats"]["energy"][:, -count:].values)
    about = {name: idata.attrs[name] for name in NAMED if name in idata.attrs}
    return build(latents, stats, about)


def _components(
    idata: InferenceData, labels: Set[str], most: int
) -> tuple[dict[str, NDArray[Any]], int]:
    """Those called as ``suspects`` calls them, at the returned step."""
    sizes = idata["posterior"].sizes
    step = -(-len(labels) * int(sizes["chain"]) * int(sizes["draw"]) // most)
    found = {}
    for name in latent_names(idata):
        array = idata["posterior"][name]
        for at in np.ndindex(array.shape[2:]):
            if (own := label(name, at)) in labels:
                found[own] = np.asarray(array[(slice(None), slice(None, None, step), *at)].values)
    return found, step
