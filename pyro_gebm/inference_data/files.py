"""InferenceData as netCDF files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pyro_gebm.inference_data._arviz import IS_ARVIZ_1, InferenceData, az
from pyro_gebm.inference_data.build import STATE_GROUP, names
from pyro_gebm.inference_data.store import COUNT, GROWING


def save(idata: InferenceData, path: str | Path) -> None:
    """Write netCDF, readable by ``arviz.from_netcdf`` of the same major version.

    The file is written beside ``path`` and then takes its place, so an interrupted save
    leaves an older file whole. netCDF knows no 16-bit floats: they are stored as 32-bit ones,
    of the same value. Every other dtype comes back as it was.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        _widened(idata).to_netcdf(str(unfinished))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: str | Path) -> InferenceData:
    """Read what ``save`` or ``sample(store=...)`` wrote, whole; the file may be written anew.

    Of an unfinished file, such as a killed run leaves, it reads the draws that every chain has.
    """
    idata = open_lazily(path)
    idata.load()
    idata.close()
    return idata


def open_lazily(path: str | Path) -> InferenceData:
    """The same as ``load``, but numbers are read when they are asked for."""
    with warnings.catch_warnings():
        # 0.23 may warn of groups that are not in its schema.
        warnings.simplefilter("ignore", UserWarning)
        idata = az.from_netcdf(str(path))
    group, name = COUNT.split("/")
    if not idata.attrs.get("interrupted") or name not in names(idata, group):
        return idata
    here = np.asarray(idata[group][name].values) >= 0
    return idata if here.all() else _cut(idata, int(here.cumprod(1).sum(1).min()))


def _cut(idata: InferenceData, draws: int) -> InferenceData:
    """The draws that are there, of a run that has not come to its end: it has no state."""
    if IS_ARVIZ_1:
        cut = idata.copy(deep=False)
        for group in GROWING:
            cut[group] = idata[group].isel(draw=slice(draws))
    else:
        cut = idata.isel(draw=slice(draws), groups=list(GROWING))
    if STATE_GROUP in cut:
        del cut[STATE_GROUP]
    return cut


def _widened(idata: InferenceData) -> InferenceData:
    def widen(dataset: Any) -> Any:
        halves = [name for name, array in dataset.data_vars.items() if array.dtype == np.float16]
        return dataset.assign({name: dataset[name].astype(np.float32) for name in halves})

    if IS_ARVIZ_1:
        return idata.map_over_datasets(widen)
    return idata.map(widen)
