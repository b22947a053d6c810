"""Tables of numbers from files: CSV and its kin, NPY and NPZ."""

import csv
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Column = str | int
"""A column by its name, or by its place from 0; negative places count from the end."""
Rows = Iterator[tuple[int, list[str]]]
"""Number of the line in its file, from 1, and fields."""

_SNIFFED_LINES = 50
_DELIMITERS = (",", ";", "\t", "|", " ")


class Table(NamedTuple):
    """Numbers in rows and named columns."""

    values: Tensor
    """(N, D), float64, all finite."""
    columns: tuple[str, ...]
    """Names (D,): from the header, or places "0", "1", ... in the file."""


def read_table(
    path: str | Path,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    key: str | None = None,
    keep: Sequence[Column] | None = None,
    drop: Sequence[Column] = (),
) -> Table:
    r"""Read a table of numbers; what is missing or not a number is refused, with its place.

    ``.npy`` and ``.npz`` are numpy's, without pickles; any other file is text (UTF-8), a row a
    line, fields quoted as by a spreadsheet, blank lines passed over. Columns that are not kept may
    hold anything.

    Args:
        path: the file.
        delimiter: one character between the fields of a text; " " is any white space. ``None``
            finds it: of , ; tab | and white space the one that makes most numbers of the first
            lines, in rows of equal length.
        header: whether the first line of a text has names. ``None``: it has if none of its
            fields is a number.
        key: name of the array in a ``.npz`` with several.
        keep: columns to keep, in this order; ``None`` keeps all.
        drop: columns to leave out.

    Returns:
        ``Table``.

    Raises:
        ValueError: a field is missing or no finite number, rows differ in length, a column is
            unknown, or nothing is left; the message names file, row, and column.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "wine.csv"
        ...     _ = file.write_text("pH;colour;alcohol\n3.5;red;9.4\n3.2;white;9.8\n")
        ...     table = read_table(file, drop=["colour"])
        >>> table.columns, table.values.tolist()
        (('pH', 'alcohol'), [[3.5, 9.4], [3.2, 9.8]])
    """
    file = Path(path)
    if file.suffix.lower() in {".npy", ".npz"}:
        return _read_array(file, key, keep, drop)
    if key is not None:
        raise ValueError(f"{file}: key: expected None for a text, which has one table; got {key!r}")
    return _read_text(file, delimiter, header, keep, drop)


# --- arrays ------------------------------------------


def _read_array(
    file: Path, key: str | None, keep: Sequence[Column] | None, drop: Sequence[Column]
) -> Table:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                array = loaded[_key_of(file, list(loaded.files), key)]
        elif key is not None:
            raise ValueError(f"{file}: key: expected None, for there is one array; got {key!r}")
        else:
            array = loaded
    except (EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not an array of numpy ({error})") from error
    if array.ndim == 1:
        array = array[:, None]  # a column
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{file}: expected real numbers (N, D); got {array.dtype} of shape {array.shape}"
        )
    columns = tuple(str(place) for place in range(array.shape[1]))
    chosen = _chosen(file, columns, keep, drop)
    values = torch.from_numpy(np.ascontiguousarray(array[:, chosen], dtype=np.float64))
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        row, place = bad[0].tolist()
        raise ValueError(
            f"{file}: row {row}, column {columns[chosen[place]]} (both from 0): expected a finite "
            f"number; got {float(values[row, place])} ({len(bad)} in all); remove or impute them"
        )
    return _whole(file, values, columns, chosen)


def _key_of(file: Path, keys: list[str], key: str | None) -> str:
    if key is None and len(keys) == 1:
        return keys[0]
    if key in keys and key is not None:
        return key
    raise ValueError(f"{file}: key: expected one of {', '.join(keys)}; got {key!r}")


# --- texts ------------------------------------------


def _read_text(
    file: Path,
    delimiter: str | None,
    header: bool | None,
    keep: Sequence[Column] | None,
    drop: Sequence[Column],
) -> Table:
    if delimiter is not None and len(delimiter) != 1:
        raise ValueError(f"{file}: delimiter: expected one character; got {delimiter!r}")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8 ({error})") from error
    if not any(line.strip() for line in lines):
        raise ValueError(f"{file}: expected a table; got an empty file")
    delimiter = delimiter or _sniffed(lines)
    rows = _rows(lines, delimiter)
    first_line, first = next(rows)
    named = header if header is not None else not any(map(_is_number, first))
    columns = tuple(first) if named else tuple(str(place) for place in range(len(first)))
    chosen = _chosen(file, columns, keep, drop)
    numbers: list[list[float]] = []
    for line, fields in rows if named else chain([(first_line, first)], rows):
        numbers.append(_numbers(file, line, len(numbers) + 1, fields, columns, chosen))
    values = np.array(numbers, dtype=np.float64).reshape(len(numbers), len(chosen))
    return _whole(file, torch.from_numpy(values), columns, chosen)


def _rows(lines: Sequence[str], delimiter: str) -> Rows:
    """Rows that are not blank."""
    if delimiter == " ":
        split = ((number, line.split()) for number, line in enumerate(lines, 1))
    else:
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        split = ((reader.line_num, [field.strip() for field in fields]) for fields in reader)
    return ((number, fields) for number, fields in split if any(fields))


def _sniffed(lines: Sequence[str]) -> str:
    """The delimiter that makes rows of equal length, most numbers, most fields."""

    def merit(delimiter: str) -> tuple[bool, float, int]:
        rows = [fields for _, fields in _rows(lines[:_SNIFFED_LINES], delimiter)]
        fields = [field for row in rows[1:] or rows for field in row]
        numeric = sum(map(_is_number, fields)) / len(fields)
        return len({len(row) for row in rows}) == 1, numeric, len(rows[0])

    return max(_DELIMITERS, key=merit)


def _numbers(
    file: Path,
    line: int,
    row: int,
    fields: list[str],
    columns: Sequence[str],
    chosen: Sequence[int],
) -> list[float]:
    """The chosen fields of a row."""
    if len(fields) != len(columns):
        raise ValueError(
            f"{file}: row {row} (line {line}): expected {len(columns)} fields; got {len(fields)}; "
            "name the delimiter if it was not found rightly"
        )
    for place in chosen:
        if not (_is_number(fields[place]) and math.isfinite(float(fields[place]))):
            got = "nothing" if not fields[place] else repr(fields[place])
            raise ValueError(
                f"{file}: row {row} (line {line}), column {columns[place]!r}: expected a finite "
                f"number; got {got}; remove or impute it, or drop the column"
            )
    return [float(fields[place]) for place in chosen]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python reads 1_000, files do not mean it


# --- columns ------------------------------------------


def _chosen(
    file: Path, columns: tuple[str, ...], keep: Sequence[Column] | None, drop: Sequence[Column]
) -> list[int]:
    """Places of the columns that stay."""
    kept = list(range(len(columns))) if keep is None else [_place(file, columns, c) for c in keep]
    if len(set(kept)) < len(kept):
        raise ValueError(f"{file}: keep: expected different columns; got {list(keep or [])}")
    dropped = {_place(file, columns, column) for column in drop}
    chosen = [place for place in kept if place not in dropped]
    if not chosen:
        raise ValueError(f"{file}: expected at least one column to stay of {', '.join(columns)}")
    return chosen


def _place(file: Path, columns: tuple[str, ...], column: Column) -> int:
    if isinstance(column, str) and columns.count(column) == 1:
        return columns.index(column)
    if isinstance(column, int) and -len(columns) <= column < len(columns):
        return column % len(columns)
    raise ValueError(
        f"{file}: expected one column among {', '.join(columns)}, or a place from 0; got {column!r}"
    )


def _whole(file: Path, values: Tensor, columns: tuple[str, ...], chosen: Sequence[int]) -> Table:
    if len(values) == 0:
        raise ValueError(f"{file}: expected at least one row; got none")
    return Table(values, tuple(columns[place] for place in chosen))
