"""Scores along a run, of several kernels and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pyro_gebm.plots.bands import BAND_WORDS, Band, BandKind, band_over_runs
from pyro_gebm.plots.style import (
    GREY,
    Floats,
    check_shape,
    finite,
    legend_below,
    look,
    new_figure,
    open_axes,
    write,
)


class Curve(NamedTuple):
    """A score along a run, chains started from the base; of one seed or of several."""

    gradients: Sequence[float] | Floats | Tensor
    """Gradient evaluations per chain so far, from 0: (T,), or (R, T) if seeds differ."""
    scores: Sequence[float] | Floats | Tensor
    """(T,), or (R, T) of R seeds."""
    stationary: float
    """Score of the kernel's long run, in sets as large as the batch, drawn as a level."""
    stationary_interval: tuple[float, float] | None = None
    """Interval of ``stationary``, such as 95 %, drawn beside the level."""


def plot_curves(
    curves: Mapping[str, Curve],
    path: str | Path,
    *,
    score: str,
    floor: tuple[str, float] | None = None,
    band: BandKind = "range",
) -> None:
    """A score against gradient evaluations, a line a kernel, with stationary levels and floor.

    Args:
        curves: by the kernel's name. Several seeds become a line and a band; where their
            gradients differ, each is interpolated between its points, from the latest start to
            the earliest end.
        path: file to write.
        score: name of the score with its unit, for the axis.
        floor: name and value of the score of real data, drawn as a level.
        band: "range" for the median and smallest to largest, "sd" for the mean ± one standard
            deviation.

    Raises:
        ValueError: no curves, or their shapes do not fit, or they are not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "curves.png"
        ...     plot_curves({"HMC": Curve([0, 9], [3.0, 1.0], 0.9)}, path, score="distance")
        ...     path.exists()
        True
    """
    if not curves:
        raise ValueError("curves: expected at least one by name; got none")
    figure = new_figure(6.8, 4.8)
    intervals = any(curve.stationary_interval is not None for curve in curves.values())
    ratios = [1.0, 0.04 + 0.035 * len(curves)] if intervals else [1.0]
    axes = figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
    seeds = 1
    for place, (name, curve) in enumerate(curves.items()):
        seeds = max(seeds, _draw_curve(axes[0], name, curve, place, band))
        if intervals:
            _draw_interval(axes[1], curve, place)
    if floor is not None:
        axes[0].axhline(floor[1], color=GREY, linestyle="--", linewidth=1.0, label=floor[0])
    axes[0].set(xlabel="gradient evaluations per chain, from base samples", ylabel=score)
    axes[0].set_ylim(bottom=min(0.0, axes[0].get_ylim()[0]))
    words = [BAND_WORDS[band].format(seeds)] if seeds > 1 else []
    axes[0].set_title("\n".join([*words, "dotted: the same kernel's long run"]), fontsize=9)
    open_axes(axes)
    if intervals:
        axes[1].set(xticks=[], xlim=(-0.7, len(curves) - 0.3))
        axes[1].set_title("long run,\ninterval", fontsize=9)
        axes[1].spines["left"].set_visible(False)
        axes[1].tick_params(left=False)
    legend_below(figure, axes[0])
    write(figure, path)


def _draw_curve(axis: Any, name: str, curve: Curve, place: int, band: BandKind) -> int:
    """Line, band and level; returns the number of seeds."""
    colour, marker, dashes = look(place)
    gradients, runs = _common_grid(name, curve)
    middle, low, high = Band(*[runs[0]] * 3) if len(runs) == 1 else band_over_runs(runs, band)
    marks = {"marker": marker, "ms": 4, "markevery": max(1, len(gradients) // 12)}
    axis.plot(gradients, middle, color=colour, linestyle=dashes, label=name, **marks)
    if len(runs) > 1:
        axis.fill_between(gradients, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.axhline(curve.stationary, color=colour, linestyle=":", linewidth=1.3)
    return len(runs)


def _draw_interval(axis: Any, curve: Curve, place: int) -> None:
    colour, marker, _ = look(place)
    level = curve.stationary
    low, high = curve.stationary_interval or (level, level)
    if not low <= level <= high:
        raise ValueError(
            f"stationary_interval: expected one around {level}; got ({low}, {high}); give its "
            "lower and upper end"
        )
    reach = [[level - low], [high - level]]
    axis.errorbar([place], [level], yerr=reach, fmt=marker, ms=4, color=colour, capsize=3)


def _common_grid(name: str, curve: Curve) -> tuple[Floats, Floats]:
    """Gradients (T,) and scores (R, T) on them."""
    x, y = finite(f"{name}: gradients", curve.gradients), finite(f"{name}: scores", curve.scores)
    ok = y.ndim in (1, 2) and x.shape in (y.shape, y.shape[-1:])
    check_shape(f"{name}: gradients", x, f"{y.shape[-1:]} or {y.shape} as the scores", ok=ok)
    if (np.diff(x) < 0).any():
        raise ValueError(f"{name}: gradients: expected counts that only grow; got some that fall")
    if x.ndim == 1:
        return x, np.atleast_2d(y)
    inside = x.mean(0).clip(x[:, 0].max(), x[:, -1].min())
    grid = np.unique(inside)
    return grid, np.stack([np.interp(grid, *run) for run in zip(x, y, strict=True)])
