"""What every picture has in common: colours, marks, arrays at the door, legends, writing."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array: TypeAlias = ArrayLike | Tensor
Floats: TypeAlias = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, darkest contrasts first."""

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
"""Colours alone do not survive a grey printer."""

GREY = "#666666"
INK = "#222222"
SHADE = "#EDEDED"
DPI = 130

LOW_IS_DARK = LinearSegmentedColormap.from_list("low_is_dark", ["#6FAEDB", "#EDF5FB"])
"""For potentials; light enough to draw chains on it."""

HIGH_IS_DARK = LinearSegmentedColormap.from_list("high_is_dark", ["#FFFFFF", "#0072B2"])
"""For shares."""


class Look(NamedTuple):
    """How one of several things is drawn."""

    colour: str
    marker: str
    dashes: Any


def look(place: int) -> Look:
    """The look of the ``place``-th thing; colours come again after six, with other dashes."""
    around = place % len(COLOURS)
    dashes = DASHES[(around + place // len(COLOURS)) % len(DASHES)]
    return Look(COLOURS[around], MARKERS[around], dashes)


def floats(name: str, array: Array) -> Floats:
    """An array or tensor of any device and dtype as float64, gradients forgotten."""
    given: Any = array.detach().double().cpu().numpy() if isinstance(array, Tensor) else array
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected numbers; got {type(array).__name__} ({error})"
        ) from None


def finite(name: str, array: Array) -> Floats:
    """``floats``, refused if one is not finite or there are none."""
    numbers = floats(name, array)
    bad = ~np.isfinite(numbers)
    if bad.any() or numbers.size == 0:
        what = f"{int(bad.sum())} that are not" if numbers.size else "none at all"
        raise ValueError(f"{name}: expected finite numbers; got {what}; leave them out first")
    return numbers


def check_shape(name: str, array: Any, wanted: str, *, ok: bool) -> None:
    """Refuse an array whose shape is not as ``wanted``."""
    if not ok:
        raise ValueError(f"{name}: expected shape {wanted}; got {tuple(array.shape)}")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, that makes room for its own labels and legends."""
    return Figure(figsize=(width, height), layout="constrained")


def open_axes(axes: Iterable[Any]) -> None:
    """Axes without the lines at the top and on the right."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Any, axis: Any, columns: int = 3) -> None:
    """A legend of one axis under the whole figure, where it covers nothing."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(columns, len(handles)),
            frameon=False,
            fontsize=9,
        )


def write(figure: Figure, path: str | Path) -> None:
    """Write a figure; the name's ending says as what."""
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
