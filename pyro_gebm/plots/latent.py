"""The latent potential of two latents as a map, with chains on it."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_gebm._checks import check_count, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.plots.style import (
    INK,
    LOW_IS_DARK,
    Array,
    Floats,
    check_shape,
    finite,
    legend_below,
    look,
    new_figure,
    write,
)

Limits: TypeAlias = tuple[tuple[float, float], tuple[float, float]]
"""Lowest and highest z₁, then z₂."""

RESOLUTION = 201
CHUNK = 4096
MOST_DOTS = 4000


def plot_latent_potential(
    potential_fn: PotentialFn,
    path: str | Path,
    *,
    chains: Array | None = None,
    diverging: Array | None = None,
    limits: Limits | None = None,
    depth: float = 12.0,
    trails: int = 4,
    trail_draws: int = 40,
) -> None:
    """Filled contours of a potential of two latents, draws and divergences on them.

    What is drawn is U(z) - min U over the picture; it is white where U is more than ``depth``
    above its minimum or infinite.

    Args:
        potential_fn: U, (N, 2) -> (N,), such as ``gebm.potential_fn``; called on the device and
            in the dtype of ``chains`` if that is a tensor, else on the CPU in torch's default.
        path: file to write.
        chains: z (chain, draw, 2). Up to 4,000 draws are dots, evenly picked.
        diverging: (chain, draw), marked by crosses, all of them.
        limits: of the picture; around the draws if ``None``, or ±4 without draws.
        depth: nats above the minimum that are coloured.
        trails: chains whose first ``trail_draws`` draws are joined by lines, from an open to a
            full mark.
        trail_draws: draws of a trail.

    Raises:
        ValueError: the latent has another dimension than 2, shapes do not fit, or the potential
            is nan, or infinite everywhere.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "latent.png"
        ...     plot_latent_potential(lambda z: z.square().sum(-1) / 2, path)
        ...     path.exists()
        True
    """
    z = None if chains is None else check_plane("chains", chains)
    flags = _check_diverging(diverging, z)
    check_count("trails", trails, 0)
    check_count("trail_draws", trail_draws)
    figure = new_figure(6.6, 5.9)
    axis = figure.subplots()
    box = limits_around(z) if limits is None else limits
    drawn = draw_potential(axis, potential_fn, box, depth, like=chains)
    label = f"U(z) - min U, nats; white: more than {depth:g}"
    figure.colorbar(drawn, ax=axis, label=label, shrink=0.85)
    if z is not None:
        _draw_dots(axis, z)
        for place in range(min(trails, len(z))):
            _draw_trail(axis, z[place, :trail_draws], place)
    if z is not None and flags is not None:
        _draw_divergences(axis, z, flags)
    legend_below(figure, axis)
    write(figure, path)


def check_plane(name: str, chains: Array) -> Floats:
    """Return z (chain, draw, 2) as an array, else raise ``ValueError``."""
    z = finite(name, chains)
    if z.ndim != 3 or z.shape[2] != 2:
        raise ValueError(
            f"{name}: expected shape (chain, draw, 2); got {z.shape}; only a potential of two "
            "latents has a map, and a plane through more would show a slice that no chain walks "
            "in: look at more latents by plot_rank and plot_trace of pyro_gebm.inference_data"
        )
    return z


def limits_around(z: Floats | None) -> Limits:
    """Limits a tenth wider than the draws."""
    if z is None:
        return (-4.0, 4.0), (-4.0, 4.0)
    flat = z.reshape(-1, 2)
    low, high = flat.min(0), flat.max(0)
    room = 0.1 * max(float((high - low).max()), 1e-3)
    (left, bottom), (right, top) = (low - room).tolist(), (high + room).tolist()
    return (left, right), (bottom, top)


def draw_potential(
    axis: Any, potential_fn: PotentialFn, limits: Limits, depth: float, like: Array | None
) -> ScalarMappable:
    """Filled contours of U - min U on ``axis``; returns them for a colour bar."""
    check_in_range("depth", depth, 0, open_low=True)
    lines = [np.linspace(*ends, RESOLUTION) for ends in limits]
    grid = np.stack(np.meshgrid(*lines), -1).reshape(-1, 2)
    potential = _evaluate(potential_fn, grid, like)
    if not np.isfinite(potential).any() or np.isnan(potential).any():
        raise ValueError(
            "potential_fn: expected numbers, or +inf outside the support; got nan, or nothing "
            f"finite, within {limits}; check the energy, or set limits"
        )
    above = potential - potential[np.isfinite(potential)].min()
    surface = np.ma.masked_invalid(above).reshape(RESOLUTION, RESOLUTION)
    levels = np.asarray(MaxNLocator(12).tick_values(0, depth))
    levels = levels[(levels >= 0) & (levels <= depth)]
    shades = LOW_IS_DARK.with_extremes(over="white")
    contours = axis.contourf(*lines, surface, levels=levels, cmap=shades, extend="max")
    # Thin lines: in grey the shades alone are hard to follow.
    axis.contour(*lines, surface, levels=levels, colors="#7F9CB3", linewidths=0.3)
    axis.set(xlabel="$z_1$", ylabel="$z_2$", xlim=limits[0], ylim=limits[1], aspect="equal")
    found: ScalarMappable = contours
    return found


def _evaluate(potential_fn: PotentialFn, grid: Floats, like: Array | None) -> Floats:
    on = like if isinstance(like, Tensor) else torch.empty(0)
    dtype = on.dtype if on.is_floating_point() else None
    points = torch.as_tensor(grid).to(on.device, dtype or torch.get_default_dtype())
    try:
        with torch.no_grad():
            parts = [potential_fn(part) for part in torch.split(points, CHUNK)]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            "potential_fn: expected a function of z (N, 2); it raised "
            f"{type(error).__name__}: {error}; a model of more than two latents has no map"
        ) from error
    values = torch.cat(parts).double().cpu().numpy()
    check_shape(
        "potential_fn(z)",
        values,
        f"({len(grid)},) of z {grid.shape}",
        ok=values.shape == (len(grid),),
    )
    return values


def _check_diverging(diverging: Array | None, z: Floats | None) -> Any:
    if diverging is None:
        return None
    flags = diverging.cpu().numpy() if isinstance(diverging, Tensor) else np.asarray(diverging)
    if z is None or flags.shape != z.shape[:2]:
        shape = None if z is None else z.shape[:2]
        raise ValueError(
            f"diverging: expected flags of shape {shape}, one for each draw of chains; got "
            f"{flags.shape}"
        )
    return flags.astype(bool)


def _draw_dots(axis: Any, z: Floats) -> None:
    flat = z.reshape(-1, 2)
    picked = np.linspace(0, len(flat) - 1, min(MOST_DOTS, len(flat))).round().astype(int)
    few = f", {len(picked):,} shown" if len(picked) < len(flat) else ""
    label = f"{len(flat):,} draws of {len(z)} chains{few}"
    axis.plot(*flat[picked].T, ".", ms=1.6, color=INK, alpha=0.45, label=label)


def _draw_trail(axis: Any, walk: Floats, place: int) -> None:
    colour, marker, _ = look(place)
    label = f"chain {place}, draws 0 to {len(walk) - 1}"
    # White under colour: to be seen on dots and in grey.
    axis.plot(*walk.T, color="white", linewidth=2.8)
    marks = {"marker": marker, "ms": 7, "markeredgecolor": "white"}
    axis.plot(*walk.T, color=colour, linewidth=1.2, markevery=[-1], label=label, **marks)
    axis.plot(*walk[0], marker, ms=6.5, markerfacecolor="white", markeredgecolor=colour)


def _draw_divergences(axis: Any, z: Floats, flags: Any) -> None:
    where = z[flags]
    label = f"divergent draws ({len(where):,} of {flags.size:,})"
    axis.plot(*where.T, "x", ms=6, color="white", markeredgewidth=3)
    axis.plot(*where.T, "x", ms=5, color="black", markeredgewidth=1.3, label=label)
