"""Several runs of one thing as a line with a band."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from pyro_gebm._checks import check_choice
from pyro_gebm.plots.style import Floats

BandKind: TypeAlias = Literal["range", "sd"]
"""Median with smallest to largest, or mean with one standard deviation to each side."""

BAND_WORDS = {
    "range": "line: median, band: smallest to largest of {} seeds",
    "sd": "line: mean, band: ± 1 standard deviation of {} seeds",
}


class Band(NamedTuple):
    """A line and what it lies between, (T,) each."""

    middle: Floats
    low: Floats
    high: Floats


def band_over_runs(values: Floats, kind: BandKind) -> Band:
    """Line and band over the rows of ``values`` (R, T).

    Example:
        >>> band_over_runs(np.array([[0.0, 1.0], [4.0, 1.0], [1.0, 1.0]]), "range").middle
        array([1., 1.])
    """
    check_choice("band", kind, BAND_WORDS)
    if kind == "range":
        return Band(np.median(values, 0), values.min(0), values.max(0))
    middle, spread = values.mean(0), values.std(0, ddof=1 if len(values) > 1 else 0)
    return Band(middle, middle - spread, middle + spread)
