"""Arrays into the groups of an InferenceData, and out of them."""

import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_gebm._version import __version__
from pyro_gebm.inference_data._arviz import IS_ARVIZ_1, InferenceData, az

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
    "trajectory_length": "int_time",
    "lp": "lp",
    # The schema has no names for these two; they follow its "acceptance_rate".
    "global_accept_prob": "global_acceptance_rate",
    "swap_accept_prob": "swap_acceptance_rate",
}
"""Our names of sample statistics -> those of the InferenceData schema."""

STATE_GROUP = "sampling_state"

Attribute: TypeAlias = str | int | float | NDArray[Any]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def build(
    posterior: Arrays,
    sample_stats: Arrays,
    attributes: Mapping[str, Attribute],
    *,
    prior: Arrays | None = None,
    warmup_posterior: Arrays | None = None,
    warmup_sample_stats: Arrays | None = None,
    state: Arrays | None = None,
) -> InferenceData:
    """An InferenceData (DataTree on ArviZ 1.x) of the groups that are given.

    Args:
        posterior: name -> (chain, draw, ...).
        sample_stats: our name -> (chain, draw); renamed by ``SCHEMA_NAMES``.
        attributes: stored at the root and with the posterior; numbers, strings and
            one-dimensional arrays, which netCDF can hold. "latent_sites", names joined by
            commas, says which variables the convergence checks are about.
        prior: name -> (chain, draw, ...): draws of the base or prior.
        warmup_posterior: like ``posterior``, of the warm-up.
        warmup_sample_stats: like ``sample_stats``, of the warm-up.
        state: name -> array of any shape: what a run needs to go on. It becomes the group
            "sampling_state", which ``sampling_state`` reads and ArviZ leaves alone.

    Raises:
        KeyError: a sample statistic that ``SCHEMA_NAMES`` does not list.

    Example:
        >>> z = np.zeros((2, 5, 3), dtype=np.float32)
        >>> idata = build({"z": z}, {"lp": z[..., 0]}, {"beta": 1.0}, state={"z": z[:, -1]})
        >>> dict(idata["posterior"].sizes)
        {'chain': 2, 'draw': 5, 'z_dim_0': 3}
        >>> sampling_state(idata)["z"].shape
        (2, 3)
    """
    groups = {"posterior": dict(posterior), "sample_stats": _renamed(sample_stats)}
    if prior is not None:
        groups["prior"] = dict(prior)
    if warmup_posterior is not None:
        groups["warmup_posterior"] = dict(warmup_posterior)
    if warmup_sample_stats is not None:
        groups["warmup_sample_stats"] = _renamed(warmup_sample_stats)
    idata = _from_groups(groups)
    if state is not None:
        _add_state(idata, state)
    about = _about(attributes)
    idata.attrs.update(about)
    idata.posterior.attrs.update(about)
    return idata


def subset(idata: InferenceData, dims: Sequence[int], chains: Sequence[int]) -> InferenceData:
    """Some latents of some chains of ``z``."""
    z = values(idata, "z")[np.asarray(chains)][:, :, np.asarray(dims)]
    named = {f"z[{dim}]": z[:, :, place] for place, dim in enumerate(dims)}
    return build(named, {}, {})


def values(idata: InferenceData, name: str, group: str = "posterior") -> NDArray[Any]:
    """A variable as an array (chain, draw, ...)."""
    return np.asarray(idata[group][name].values)


def names(idata: InferenceData, group: str) -> list[str]:
    """The variables of a group; none if it is not there."""
    # ArviZ 0.23 leaves out groups without variables.
    return [str(name) for name in idata[group].data_vars] if group in idata else []


def latent_names(idata: InferenceData) -> list[str]:
    """The sampled variables: those in ``attrs["latent_sites"]``, all if it is not there.

    Example:
        >>> draws = {"z": np.zeros((1, 4, 2)), "x": np.zeros((1, 4, 9))}
        >>> latent_names(build(draws, {}, {"latent_sites": "z"}))
        ['z']
    """
    every = names(idata, "posterior")
    if "latent_sites" not in idata.attrs:
        return every
    listed = f",{idata.attrs['latent_sites']},"
    # Not split: a name may hold a comma itself.
    return [name for name in every if f",{name}," in listed]


def saved_settings(idata: InferenceData) -> dict[str, Any]:
    """The settings of the kernel in ``attrs["kernel_settings"]``; none if they are not there."""
    found: dict[str, Any] = json.loads(idata.attrs.get("kernel_settings", "{}"))
    return found


def sampling_state(idata: InferenceData) -> dict[str, NDArray[Any]]:
    """The arrays given to ``build`` as ``state``.

    Raises:
        ValueError: there are none.
    """
    if STATE_GROUP not in idata:
        raise ValueError(
            f"idata: expected a group {STATE_GROUP!r}; got a run without one; only runs made by "
            "this version or a later one can be resumed"
        )
    return {name: values(idata, name, STATE_GROUP) for name in names(idata, STATE_GROUP)}


def _renamed(statistics: Arrays) -> dict[str, NDArray[Any]]:
    return {SCHEMA_NAMES[name]: array for name, array in statistics.items()}


def _from_groups(groups: dict[str, dict[str, NDArray[Any]]]) -> InferenceData:
    with warnings.catch_warnings():
        # 0.23 warns of more chains than draws, which is how short batched runs look.
        warnings.simplefilter("ignore", UserWarning)
        if IS_ARVIZ_1:
            return az.from_dict(groups, save_warmup=True)
        return az.from_dict(**groups, save_warmup=True)


def _add_state(idata: InferenceData, state: Arrays) -> None:
    dataset = xr.Dataset(
        {
            name: ([f"{name}_dim_{place}" for place in range(np.ndim(array))], array)
            for name, array in state.items()
        }
    )
    if IS_ARVIZ_1:
        idata[STATE_GROUP] = xr.DataTree(dataset)
        return
    with warnings.catch_warnings():
        # 0.23 warns of every group that is not in its schema.
        warnings.simplefilter("ignore", UserWarning)
        idata.add_groups({STATE_GROUP: dataset})


def _about(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyro_gebm",
        "inference_library_version": __version__,
        **attributes,
    }
