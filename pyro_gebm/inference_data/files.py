"""InferenceData as netCDF files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pyro_gebm.inference_data._arviz import IS_ARVIZ_1, InferenceData, az


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
    """Read what ``save`` wrote, whole; the file may then be written anew."""
    with warnings.catch_warnings():
        # 0.23 may warn of groups that are not in its schema.
        warnings.simplefilter("ignore", UserWarning)
        idata = az.from_netcdf(str(path))
    idata.load()
    idata.close()
    return idata


def _widened(idata: InferenceData) -> InferenceData:
    def widen(dataset: Any) -> Any:
        halves = [name for name, array in dataset.data_vars.items() if array.dtype == np.float16]
        return dataset.assign({name: dataset[name].astype(np.float32) for name in halves})

    if IS_ARVIZ_1:
        return idata.map_over_datasets(widen)
    return idata.map(widen)
