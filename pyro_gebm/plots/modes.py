"""How often modes are visited, and how chains change between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_gebm.plots.style import (
    GREY,
    HIGH_IS_DARK,
    INK,
    Array,
    Floats,
    check_shape,
    finite,
    floats,
    legend_below,
    look,
    new_figure,
    open_axes,
    write,
)

HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")
NUMBERED = 30
"""Modes up to which the cells of a transition matrix have their numbers written in."""


class Occupancy(NamedTuple):
    """Shares of draws in K modes: of a ``mode_summary``, its ``occupancy`` and ``mcse``."""

    share: Array
    """(K,), adding up to at most 1."""
    mcse: Array | None = None
    """Monte-Carlo standard errors (K,); nan where there is none, as of modes never visited."""


def plot_mode_occupancy(
    occupancies: Mapping[str, Occupancy],
    path: str | Path,
    *,
    truth: Array | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Bars of the share of draws in each mode, with ± 2 MCSE and the truth as a line across.

    Args:
        occupancies: by name of the sampler, such as "base" and "NUTS".
        path: file to write.
        truth: probability of each mode, (K,).
        labels: name of each mode; numbers from 0 if ``None``.

    Raises:
        ValueError: shapes do not fit, or shares are not in [0, 1].

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "modes.png"
        ...     plot_mode_occupancy({"base": Occupancy([0.4, 0.6])}, path, truth=[0.5, 0.5])
        ...     path.exists()
        True
    """
    if not occupancies:
        raise ValueError("occupancies: expected at least one by name; got none")
    bars = {name: _check_occupancy(name, found) for name, found in occupancies.items()}
    modes = len(next(iter(bars.values()))[0])
    expected = None if truth is None else _check_shares("truth", truth)
    for name, array in [*((n, b[0]) for n, b in bars.items()), ("truth", expected)]:
        if array is not None:
            check_shape(name, array, f"({modes},) as the first", ok=len(array) == modes)
    figure = new_figure(min(16.0, max(6.4, 1.5 + 0.22 * modes * len(bars))), 4.2)
    axis = figure.subplots()
    width = 0.8 / len(bars)
    for place, (name, (share, mcse)) in enumerate(bars.items()):
        at = np.arange(modes, dtype=np.float64) - 0.4 + width * (place + 0.5)
        _draw_bars(axis, at, share, width, name, place)
        if mcse is not None:
            known = np.isfinite(mcse)
            reach = 2 * mcse[known]
            axis.errorbar(at[known], share[known], reach, fmt="none", ecolor=INK, capsize=2, lw=1)
    if expected is not None:
        ends = np.arange(modes)
        axis.hlines(expected, ends - 0.46, ends + 0.46, color=INK, linewidth=1.8, label="truth")
    axis.set_xticks(range(modes), _names(labels, modes))
    errors_shown = any(mcse is not None for _, mcse in bars.values())
    axis.set(xlabel="mode", ylabel="share of draws" + (", ± 2 MCSE" if errors_shown else ""))
    axis.set_ylim(bottom=0)
    axis.tick_params(axis="x", rotation=0 if modes < 16 or labels is None else 90)
    open_axes([axis])
    legend_below(figure, axis, 4)
    write(figure, path)


def plot_transition_matrix(
    matrix: Array,
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    title: str = "from one draw to the next",
) -> None:
    """Heat map of the share of draws in mode i whose next one is in mode j, numbers written in.

    Args:
        matrix: (K, K), each row adding up to 1, or all nan: no draw was in that mode. Such rows
            are hatched. The numbers are left out of more than 30 modes.
        path: file to write.
        labels: name of each mode; numbers from 0 if ``None``.
        title: over the picture.

    Raises:
        ValueError: it is not square, or a row is not of probabilities that add up to 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "transitions.png"
        ...     plot_transition_matrix([[0.9, 0.1], [0.2, 0.8]], path, labels=["3", "8"])
        ...     path.exists()
        True
    """
    shares = floats("matrix", matrix)
    check_shape(
        "matrix", shares, "(K, K)", ok=shares.ndim == 2 and 0 < len(shares) == shares.shape[1]
    )
    empty = np.isnan(shares).all(1)
    rows = shares[~empty]
    if not (rows >= 0).all() or (abs(rows.sum(1) - 1) > 1e-5).any():
        raise ValueError(
            "matrix: expected rows of probabilities that add up to 1, or rows of nan alone; give "
            "shares of the draws in i, not counts, and not the transpose"
        )
    modes = len(shares)
    figure = new_figure(2.3 + 0.38 * max(modes, 6), 1.6 + 0.38 * max(modes, 6))
    axis = figure.subplots()
    drawn = axis.imshow(np.ma.masked_invalid(shares), cmap=HIGH_IS_DARK, vmin=0, vmax=1)
    for row in np.flatnonzero(empty):
        axis.axhspan(row - 0.5, row + 0.5, facecolor="white", edgecolor=GREY, hatch="////", lw=0)
    if modes <= NUMBERED:
        for row, column in np.argwhere(~np.isnan(shares)):
            _write_share(axis, row, column, float(shares[row, column]))
    names = _names(labels, modes)
    axis.set_xticks(range(modes), names, rotation=0 if labels is None else 90)
    axis.set_yticks(range(modes), names)
    axis.set(xlabel="mode of the next draw", ylabel="mode of a draw")
    note = "\nhatched: no draw in this mode" if empty.any() else ""
    axis.set_title(title + note, fontsize=10)
    figure.colorbar(drawn, ax=axis, label="share of the row", shrink=0.8)
    write(figure, path)


def _draw_bars(axis: Any, at: Floats, share: Floats, width: float, name: str, place: int) -> None:
    axis.bar(
        at,
        share,
        width,
        color=look(place).colour,
        alpha=0.7,
        hatch=HATCHES[place % len(HATCHES)],
        edgecolor="white",
        linewidth=0.5,
        label=name,
    )


def _write_share(axis: Any, row: int, column: int, share: float) -> None:
    colour = "white" if share > 0.6 else INK
    text = "0" if share == 0 else "<.01" if share < 0.005 else f"{share:.2f}"
    axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _names(labels: Sequence[str] | None, modes: int) -> list[str]:
    names = [str(k) for k in range(modes)] if labels is None else list(labels)
    if len(names) != modes:
        raise ValueError(f"labels: expected one for each of {modes} modes; got {len(names)}")
    return names


def _check_occupancy(name: str, found: Occupancy) -> tuple[Floats, Floats | None]:
    share = _check_shares(name, found.share)
    if found.mcse is None:
        return share, None
    mcse = floats(f"{name}: mcse", found.mcse)
    check_shape(f"{name}: mcse", mcse, f"{share.shape}", ok=mcse.shape == share.shape)
    return share, mcse


def _check_shares(name: str, given: Array) -> Floats:
    share = finite(name, given)
    check_shape(name, share, "(K,)", ok=share.ndim == 1)
    if (share < 0).any() or share.sum() > 1 + 1e-5:
        raise ValueError(
            f"{name}: expected shares in [0, 1] that add up to at most 1; got {share.min():g} to "
            f"{share.max():g} with sum {share.sum():g}; divide counts by their sum"
        )
    return share
