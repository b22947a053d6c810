"""Densities along a curve in the data space."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyro_gebm.plots.bands import BAND_WORDS, BandKind, band_over_runs
from pyro_gebm.plots.style import (
    GREY,
    INK,
    Array,
    Floats,
    check_shape,
    finite,
    legend_below,
    look,
    new_figure,
    open_axes,
    write,
)


def plot_manifold_density(
    position: Array,
    densities: Mapping[str, Array],
    path: str | Path,
    *,
    unit: str = "data units",
    band: BandKind = "range",
) -> None:
    """Densities along a one-dimensional manifold, such as the truth's, the base's, the model's.

    All are with respect to arc length: of a curve s ↦ X(t(s)) with t ~ p, the density is
    p(t) / |dX/dt|. The legend tells the mass of each, by trapezoids, which shows whether one was
    given with respect to another measure.

    Args:
        position: arc length s along the manifold, growing, (N,). Of points (N, d) in order:
            ``np.r_[0, np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()]``.
        densities: by name, (N,) each or (R, N) of R seeds. The first, the truth, is filled.
        path: file to write.
        unit: that of the arc length.
        band: see ``plot_curves``.

    Raises:
        ValueError: shapes do not fit, the position does not grow, or a density is negative or
            not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "density.png"
        ...     plot_manifold_density([0, 1, 2], {"truth": [0.5] * 3}, path)
        ...     path.exists()
        True
    """
    s = finite("position", position)
    check_shape("position", s, "(N,), N >= 2", ok=s.ndim == 1 and len(s) > 1)
    if (np.diff(s) <= 0).any() or not densities:
        raise ValueError("position, densities: expected growing arc lengths and a density by name")
    figure = new_figure(6.8, 4.4)
    axis = figure.subplots()
    seeds = 1
    for place, (name, values) in enumerate(densities.items()):
        runs = np.atleast_2d(finite(name, values))
        check_shape(name, runs, f"(..., {len(s)})", ok=runs.ndim == 2 and runs.shape[1] == len(s))
        if (runs < 0).any():
            raise ValueError(f"{name}: expected a density; got negative values; give no logarithms")
        middle, low, high = band_over_runs(runs, band)
        label = f"{name} (mass {_mass(s, runs.mean(0)):.3f})"
        if place == 0:
            axis.fill_between(s, middle, color=GREY, alpha=0.25, linewidth=0)
            axis.plot(s, middle, color=INK, linewidth=1.0, label=label)
            continue
        colour, dashes = look(place - 1).colour, look(place).dashes  # solid is the truth
        axis.plot(s, middle, color=colour, linestyle=dashes, linewidth=1.8, label=label)
        if len(runs) > 1:
            axis.fill_between(s, low, high, color=colour, alpha=0.2, linewidth=0)
            seeds = max(seeds, len(runs))
    if seeds > 1:
        axis.set_title(BAND_WORDS[band].format(seeds), fontsize=9)
    axis.set(xlabel=f"arc length s, {unit}", ylabel=f"density, 1/({unit})", xlim=(s[0], s[-1]))
    axis.set_ylim(bottom=0)
    open_axes([axis])
    legend_below(figure, axis)
    write(figure, path)


def _mass(s: Floats, density: Floats) -> float:
    return float((np.diff(s) * (density[1:] + density[:-1]) / 2).sum())
