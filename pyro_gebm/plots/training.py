"""A training at a glance: bound, c, importance ESS and gradients, with phases and rollbacks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyro_gebm.plots.style import (
    COLOURS,
    GREY,
    INK,
    SHADE,
    Floats,
    new_figure,
    open_axes,
    write,
)

BLOCKS = 80
"""Blocks of steps whose medians make a line through noisy figures."""

Row = Mapping[str, Any]


def plot_training(rows: Sequence[Row], path: str | Path) -> None:
    """Four pictures of a training over its steps, from the lines of ``metrics.jsonl``.

    The bound F(E, c) of the batches and on held-out data, with the bound at c = log Z (KALE);
    c beside log Z of one batch and of a large sample; the effective share of base samples under
    the model; norms of the gradients. Thin: single steps; thick: medians of blocks of steps;
    marks: held-out evaluations. The refit is shaded; rollbacks are marked below. The first two
    leave out the outermost 1 % of single steps to each side, and say how many that is: the first
    steps would flatten all others.

    Args:
        rows: a mapping per step with "step" and any of "phase", "bound", "log_partition",
            "batch_log_z", "importance_ess", "energy_grad_norm", "base_grad_norm", "rollbacks",
            "held_out_bound", "held_out_kale", "held_out_log_z", "held_out_importance_ess";
            ``None`` and nan are gaps. Of a run folder:
            ``[json.loads(line) for line in open("metrics.jsonl")]``.
        path: file to write.

    Raises:
        ValueError: there are no rows, or steps are missing or fall.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "training.png"
        ...     plot_training([{"step": 1, "bound": 0.2}, {"step": 2, "bound": 0.3}], path)
        ...     path.exists()
        True
    """
    steps = _steps(rows)
    figure = new_figure(10.0, 7.4)
    axes = figure.subplots(2, 2, sharex=True)
    bound, log_z, ess, norms = axes.ravel()
    _draw_noisy(bound, rows, "bound", "batch", 0)
    _draw_marks(bound, rows, "held_out_bound", "held out", 1)
    _draw_marks(bound, rows, "held_out_kale", "held out, c = log Z", 2)
    bound.set_ylabel("lower bound F(E, c), nats")
    _limit(bound, rows, "bound", ("held_out_bound", "held_out_kale"))
    _draw_noisy(log_z, rows, "batch_log_z", "log Z of a batch", 0)
    _draw_line(log_z, rows, "log_partition", "learned c")
    _draw_marks(log_z, rows, "held_out_log_z", "log Z of a large sample", 1)
    log_z.set_ylabel("c and log Z, nats")
    _limit(log_z, rows, "batch_log_z", ("log_partition", "held_out_log_z"))
    _draw_noisy(ess, rows, "importance_ess", "batch", 0)
    _draw_marks(ess, rows, "held_out_importance_ess", "large sample", 1)
    ess.set(ylabel="importance ESS, share of base samples", ylim=(0, 1.03))
    _draw_noisy(norms, rows, "energy_grad_norm", "energy", 0)
    _draw_noisy(norms, rows, "base_grad_norm", "base", 1)
    norms.set(ylabel="norm of the gradient", yscale="log")
    for axis in axes.ravel():
        _finish(axis)
        events = _mark_events(axis, rows, steps)
    for axis in axes[1]:
        axis.set_xlabel("step")
    open_axes(axes.ravel())
    if events:
        figure.legend(handles=events, loc="outside lower center", ncols=2, frameon=False)
    write(figure, path)


def _steps(rows: Sequence[Row]) -> Floats:
    if not rows or any("step" not in row for row in rows):
        raise ValueError(
            "rows: expected a mapping with 'step' for each step, the lines of metrics.jsonl; got "
            f"{len(rows)} rows" + (", some without it" if rows else "")
        )
    steps = np.array([float(row["step"]) for row in rows])
    if (np.diff(steps) < 0).any():
        raise ValueError("rows: expected steps that grow; got some that fall: one run at a time")
    return steps


def _column(rows: Sequence[Row], name: str) -> Floats:
    """A figure of every row, (T,), nan where there is none."""
    values = (row.get(name) for row in rows)
    return np.array([math.nan if value is None else float(value) for value in values])


def _known(rows: Sequence[Row], name: str) -> tuple[Floats, Floats]:
    """Steps that have a finite figure, and the figure."""
    steps, values = _steps(rows), _column(rows, name)
    known = np.isfinite(values)
    return steps[known], values[known]


def _draw_noisy(axis: Any, rows: Sequence[Row], name: str, label: str, place: int) -> None:
    """Single steps thin, medians of blocks of them thick."""
    steps, values = _known(rows, name)
    if not len(steps):
        return
    colour = COLOURS[place]
    axis.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3)
    blocks = np.array_split(np.arange(len(steps)), min(BLOCKS, len(steps)))
    middle = np.array([[steps[block].mean(), np.median(values[block])] for block in blocks])
    dashes = ("-", "--")[place]
    axis.plot(*middle.T, color=colour, linewidth=1.6, linestyle=dashes, label=label)


def _draw_line(axis: Any, rows: Sequence[Row], name: str, label: str) -> None:
    steps, values = _known(rows, name)
    if len(steps):
        axis.plot(steps, values, color=INK, linewidth=1.2, linestyle="--", label=label)


def _draw_marks(axis: Any, rows: Sequence[Row], name: str, label: str, place: int) -> None:
    steps, values = _known(rows, name)
    if len(steps):
        marks = {"marker": ("", "s", "^")[place], "ms": 5, "markerfacecolor": "white"}
        axis.plot(steps, values, color=COLOURS[place], linewidth=0.8, label=label, **marks)


def _limit(axis: Any, rows: Sequence[Row], noisy: str, steady: Sequence[str]) -> None:
    """Limits that all of the steady figures and 98 % of the noisy ones lie within."""
    values = _known(rows, noisy)[1]
    ends = [*np.quantile(values, [0.01, 0.99])] if len(values) else []
    ends += [value for name in steady for value in _known(rows, name)[1]]
    if not ends:
        return
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or 0.1
    axis.set_ylim(low - room, high + room)
    outside = (values < low - room) | (values > high + room)
    if outside.any():
        note = f"{outside.mean():.1%} of the steps outside"
        axis.set_title(note, loc="right", fontsize=8, color=GREY, y=1.0, pad=3)


def _finish(axis: Any) -> None:
    """The legend of a panel, above it; or a word that there is nothing."""
    if not axis.has_data():
        axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", color=GREY)
        return
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.04), "borderaxespad": 0.0}
    axis.legend(ncols=3, frameon=False, fontsize=9, **place)


def _mark_events(axis: Any, rows: Sequence[Row], steps: Floats) -> list[Any]:
    """Draw the refit and the rollbacks; returns their entries of a legend."""
    entries: list[Any] = []
    refit = np.array([row.get("phase") == "refit" for row in rows])
    if refit.any():
        start = steps[refit][0]
        axis.axvspan(start, steps[refit][-1], color=SHADE, linewidth=0, zorder=-2)
        axis.axvline(start, color=GREY, linewidth=0.8)
        entries.append(Patch(color=SHADE, label="refit of the energy alone"))
    # Counted over the whole training; a row without the count changes nothing.
    at, count = _known(rows, "rollbacks")
    where = at[np.diff(count, prepend=0.0) > 0]
    if len(where):
        marks: dict[str, Any] = {"marker": "^", "ms": 7, "linestyle": "", "color": INK}
        label = f"rolled back to a good state ({len(where)} times)"
        heights = np.zeros(len(where))
        axis.plot(where, heights, transform=axis.get_xaxis_transform(), clip_on=False, **marks)
        entries.append(Line2D([], [], label=label, **marks))
    return entries
