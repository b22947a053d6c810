"""Tables from files as problems: where they came from, how they were prepared, what they say."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyro_gebm.data.preprocessing import Prepared, prepare
from pyro_gebm.data.tables import read_table

READING = ("delimiter", "header", "key", "keep", "drop")
"""Options of ``read_table``."""
PREPARING = ("preprocessing", "dequantize")
"""Options of ``prepare``."""


class TableSource(NamedTuple):
    """A table as config.json names it, to be found again."""

    path: str
    options: dict[str, Any]
    """Those of reading and preparing that were given, and the file's "sha256"."""
    log_det: float
    """log |det| of the scaling: NLLs in the data's own units are those of the model less it."""
    scaling: dict[str, Any]
    """For whoever wants the data's units back: y = (x - loc) matrix, by "columns"."""


def load_table(path: str, seed: int, options: Mapping[str, Any]) -> tuple[Prepared, TableSource]:
    """A table, prepared, and where it came from.

    Raises:
        ValueError: the table is refused, or the file is another than that of ``options``.
        OSError: the file cannot be read.
    """
    unknown = sorted(set(options) - {*READING, *PREPARING, "sha256"})
    if unknown:
        raise ValueError(f"table: expected options of tables; got unknown {unknown}")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if options.get("sha256", digest) != digest:
        raise ValueError(
            f"{path}: expected the table that the run was trained on; got another, by its sha256; "
            "put the old one back or train anew"
        )
    table = read_table(path, **{name: options[name] for name in READING if name in options})
    given = {name: options[name] for name in PREPARING if name in options}
    prepared = prepare(table, seed=seed, **given)
    kept = {**options, "sha256": digest}
    log_det = prepared.scaling.log_det
    return prepared, TableSource(path, kept, log_det, _scaling(prepared))


def _scaling(prepared: Prepared) -> dict[str, Any]:
    loc, matrix = prepared.scaling
    diagonal = matrix.diagonal()
    told: dict[str, Any] = {"columns": list(prepared.columns), "loc": loc.tolist()}
    if torch.equal(matrix, torch.diag(diagonal)):
        return {**told, "scale": (1 / diagonal).tolist()}
    return {**told, "matrix": matrix.tolist()}
