"""Draws that go to a netCDF file while they are made, in pieces."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import h5netcdf  # type: ignore[import-untyped,unused-ignore]
import h5py  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_gebm.inference_data._arviz import IS_ARVIZ_1, InferenceData
from pyro_gebm.inference_data.build import (
    SCHEMA_NAMES,
    STATE_GROUP,
    Arrays,
    Attribute,
    build,
)

GROWING = ("posterior", "sample_stats")
COUNT = f"sample_stats/{SCHEMA_NAMES['num_steps']}"
"""Negative where there is no draw yet, in a file that is not finished."""

CHUNK_CHAINS, CHUNK_DRAWS, CHUNK_BYTES = 64, 64, 2**20
SLAB = 256
"""Draws of all chains that are read at once."""


@final
class Store:
    """A netCDF file of the groups that ``build`` makes, which is filled piece by piece.

    The first piece gives the file its structure and its room for all draws, of which the disk
    holds what is written. From then on nothing changes but numbers in their places, so the file
    can be opened at any time, whatever becomes of the writer: ``load`` and ``open_lazily`` leave
    out the draws that not all chains have. Until ``finish``, ``attrs["interrupted"]`` is 1.

    Args:
        path: of the unfinished file.
        shape: chains and draws.
        attributes: of ``build``; those that ``finish`` changes must be there.
        groups: further groups, as in ``build``: ``state``, ``warmup_posterior``,
            ``warmup_sample_stats``.

    Example:
        >>> import tempfile
        >>> from pyro_gebm.inference_data.files import open_lazily
        >>> folder = tempfile.TemporaryDirectory()
        >>> part, whole = (Path(folder.name) / name for name in ("a.nc.unfinished", "a.nc"))
        >>> store = Store(part, (2, 5), {"interrupted": 1}, {})
        >>> for first, count in ((0, 3), (3, 2)):
        ...     z, steps = np.full((2, count, 4), first), np.ones((2, count), dtype=np.int64)
        ...     store.write(slice(0, 2), first, {"z": z}, {"num_steps": steps})
        >>> store.close()
        >>> finish(part, whole, 5, {"interrupted": 0}, None)
        >>> idata = open_lazily(whole)
        >>> idata["posterior"]["z"].values[1, :, 2].tolist(), int(idata.attrs["interrupted"])
        ([0, 0, 0, 3, 3], 0)
        >>> _ = idata.close(), folder.cleanup()
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        attributes: Mapping[str, Attribute],
        groups: Mapping[str, Arrays],
    ) -> None:
        self.path = path
        self._shape, self._attributes, self._groups = shape, attributes, groups
        self._file: Any = None
        self._places: dict[str, Any] = {}

    def write(self, chains: slice, first: int, posterior: Arrays, sample_stats: Arrays) -> None:
        """Draws ``first``, ``first`` + 1, ... of some chains, arrays (chain, draw, ...).

        Args:
            chains: which.
            first: number of the first of the draws.
            posterior: by name.
            sample_stats: by our name; "num_steps" must be among them.
        """
        if self._file is None:
            template = build(posterior, sample_stats, self._attributes, **self._groups)
            self._file = self._create(template)
        named = {f"posterior/{name}": array for name, array in posterior.items()}
        named |= {f"sample_stats/{SCHEMA_NAMES[n]}": array for n, array in sample_stats.items()}
        # Last what says that the draws are there.
        for name in sorted(named, key=lambda name: name == COUNT):
            self._put(name, (chains.start, first), named[name])

    def close(self) -> None:
        """No more pieces."""
        if self._file is not None:
            self._file.close()
            self._file, self._places = None, {}

    def _put(self, name: str, corner: tuple[int, int], array: NDArray[Any]) -> None:
        # h5py's own interface would take several times as long for small pieces.
        if name not in self._places:
            self._places[name] = self._file[name]
        dataset = self._places[name]
        array = np.ascontiguousarray(array, dtype=dataset.dtype)
        space = dataset.id.get_space()
        space.select_hyperslab((*corner, *[0] * (array.ndim - 2)), array.shape)
        dataset.id.write(h5py.h5s.create_simple(array.shape), space, array)

    def _create(self, template: InferenceData) -> Any:
        try:
            with h5netcdf.File(self.path, "w", locking=False) as file:
                file.attrs.update(template.attrs)
                for name in template.children if IS_ARVIZ_1 else template.groups():
                    dataset = template[name].to_dataset() if IS_ARVIZ_1 else template[name]
                    size = self._shape if name in GROWING else None
                    _write_group(file.create_group(name), dataset, size)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        # Without a cache what is written is on its way to the disk at once, in place.
        return h5py.File(self.path, "r+", rdcc_nbytes=0, locking=False)


def _write_group(group: Any, dataset: xr.Dataset, size: tuple[int, int] | None) -> None:
    """A group as xarray would write it; of a growing one the room only."""
    sizes = {str(dim): length for dim, length in dataset.sizes.items()}
    if size is not None:
        sizes |= {"chain": size[0], "draw": size[1]}
    for dim, length in sizes.items():
        unlimited = size is not None and dim == "draw"
        group.dimensions[dim] = None if unlimited else length
        if unlimited:
            group.resize_dimension(dim, length)
    group.attrs.update(dataset.attrs)
    for name, array in dataset.variables.items():
        dims = tuple(map(str, array.dims))
        values = array.values
        if size is not None and dims in {("chain",), ("draw",)}:
            values = np.arange(sizes[dims[0]])
        grows = size is not None and dims[:2] == ("chain", "draw")
        _write_variable(group, str(name), dims, values, grows)


def _write_variable(
    group: Any, name: str, dims: tuple[str, ...], values: NDArray[Any], grows: bool
) -> None:
    # netCDF has neither booleans, which xarray marks, nor 16-bit floats.
    stored = np.dtype({"bool": "i1", "float16": "f4"}.get(values.dtype.name, values.dtype))
    if grows:
        shape = tuple(group.dimensions[dim].size for dim in dims)
        layout = _allocated(stored, absent=f"{group.name.strip('/')}/{name}" == COUNT)
        chunks = _chunks(shape, stored.itemsize)
        variable = group.create_variable(name, dims, stored, chunks=chunks, dcpl=layout)
    else:
        variable = group.create_variable(name, dims, stored, data=values.astype(stored))
    if values.dtype == bool:
        variable.attrs["dtype"] = "bool"


def _chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """About a megabyte each, but no fewer draws than come at once."""
    chains = -(-shape[0] // -(-shape[0] // CHUNK_CHAINS))  # so that little is left over
    row = itemsize * chains * int(np.prod(shape[2:]))
    return (chains, min(shape[1], max(CHUNK_DRAWS, CHUNK_BYTES // max(1, row))), *shape[2:])


def _allocated(dtype: np.dtype[Any], absent: bool) -> Any:
    """Properties of a variable whose chunks all have their places from the start."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if absent else h5py.h5d.FILL_TIME_NEVER)
    if absent:
        layout.set_fill_value(np.array(-1, dtype=dtype))
    return layout


def finish(
    unfinished: Path,
    path: Path,
    draws: int,
    attributes: Mapping[str, Attribute],
    state: Arrays | None,
) -> None:
    """Make a file of which ``draws`` draws are there a whole one, at ``path``.

    Args:
        unfinished: what a ``Store`` has written.
        path: where it goes.
        draws: that every chain has.
        attributes: to change.
        state: what the group "sampling_state" becomes; ``None``: there is none.
    """
    with h5py.File(unfinished, "r+", locking=False) as file:
        for group in (file, file["posterior"]):
            for name, value in attributes.items():
                group.attrs.modify(name, value)
        room = len(file["posterior/draw"])
        if state is None and STATE_GROUP in file:
            del file[STATE_GROUP]
        held = file.get(STATE_GROUP, {})
        there = {name: array for name, array in (state or {}).items() if name in held}
        for name, array in there.items():
            held[name][...] = array
    with h5netcdf.File(unfinished, "r+", locking=False) as file:
        if draws < room:
            for group in GROWING:
                file[group].resize_dimension("draw", draws)
        for name in (state or {}).keys() - there.keys():
            _add_state(file, name, np.asarray((state or {})[name]))
    unfinished.replace(path)


def _add_state(file: Any, name: str, array: NDArray[Any]) -> None:
    group = file[STATE_GROUP] if STATE_GROUP in file.groups else file.create_group(STATE_GROUP)
    dims = tuple(f"{name}_dim_{place}" for place in range(array.ndim))
    group.dimensions.update(dict(zip(dims, array.shape, strict=True)))
    _write_variable(group, name, dims, array, grows=False)


def join(parts: Sequence[Path], store: Store, draws: int) -> None:
    """Copy the first ``draws`` draws of files of some chains each into one of all chains."""
    ours = {schema: name for name, schema in SCHEMA_NAMES.items()}
    chain = 0
    for part in parts:
        groups = [xr.open_dataset(part, group=name, engine="h5netcdf") for name in GROWING]
        try:
            chains = slice(chain, chain + groups[0].sizes["chain"])
            for first in range(0, draws, SLAB):
                piece = slice(first, min(draws, first + SLAB))
                posterior, stats = (
                    {str(n): a.isel(draw=piece).values for n, a in group.data_vars.items()}
                    for group in groups
                )
                stats = {ours[name]: array for name, array in stats.items()}
                store.write(chains, first, posterior, stats)
            chain = chains.stop
        finally:
            for group in groups:
                group.close()


def last_draw(path: Path, draws: int) -> dict[str, NDArray[Any]]:
    """The variables of draw number ``draws`` - 1, (chain, ...), of a file of a ``Store``."""
    with h5py.File(path, "r") as file:
        return {n: a[:, draws - 1] for n, a in file["posterior"].items() if a.ndim > 1}


def count_steps(path: Path, draws: int) -> tuple[NDArray[np.int64], int]:
    """Steps of each chain in its first draws, (chain,), and the sum of every draw's most."""
    with h5py.File(path, "r") as file:
        steps = file[COUNT]
        total, most = np.zeros(len(steps), dtype=np.int64), 0
        for first in range(0, draws, SLAB):
            slab = steps[:, first : min(draws, first + SLAB)]
            total += slab.sum(1)
            most += int(slab.max(0).sum())
        return total, most
