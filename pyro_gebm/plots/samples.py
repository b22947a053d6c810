"""Samples themselves: images before and after, points, and their energies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm._checks import check_count
from pyro_gebm.plots.style import (
    COLOURS,
    GREY,
    Array,
    check_shape,
    finite,
    legend_below,
    look,
    new_figure,
    open_axes,
    write,
)

MOST_POINTS = 3000


class Shift(NamedTuple):
    """Samples before and after a run, from the same latent starts."""

    before: Tensor
    """Base samples (N, *data shape)."""
    after: Tensor
    """Where the same chains stand at the end, (N, *data shape)."""
    energy_before: Tensor
    energy_after: Tensor


def plot_image_shift(shift: Shift, path: str | Path, *, kernel: str, columns: int = 8) -> None:
    """Grid of images before and after, each under its energy, highest energy before first.

    Args:
        shift: images (N, 1, H, W) or (N, 3, H, W) in [-1, 1]; the first 3 * columns after
            sorting evenly through the energies are shown.
        path: file to write.
        kernel: name for the title.
        columns: pairs in a row.

    Raises:
        ValueError: these are no images, or not one of each for every start.
    """
    check_count("columns", columns)
    before = check_images("before", finite("before", shift.before), 4)
    after = check_images("after", finite("after", shift.after), 4)
    energies = [
        finite("energy_before", shift.energy_before),
        finite("energy_after", shift.energy_after),
    ]
    for name, array in zip(
        ("after", "energy_before", "energy_after"), (after, *energies), strict=True
    ):
        check_shape(name, array, f"({len(before)}, ...)", ok=array.shape[:1] == before.shape[:1])
    order = np.argsort(-energies[0], kind="stable")
    picked = order[np.linspace(0, len(order) - 1, 3 * columns).round().astype(int)]
    figure = new_figure(1.05 * columns + 0.9, 8.2)
    axes = figure.subplots(6, columns, squeeze=False)
    for place, index in enumerate(picked.tolist()):
        row, column = divmod(place, columns)
        for half, images in enumerate((before, after)):
            axis = axes[2 * row + half, column]
            _show_image(axis, images[index])
            title = f"E = {round(float(energies[half][index]), 1) + 0.0:.1f}"  # no -0.0
            axis.set_title(title, fontsize=7, pad=2, color=COLOURS[half])
    for row in range(6):
        label = "base" if row % 2 == 0 else kernel
        axes[row, 0].set_ylabel(label, color=COLOURS[row % 2], fontsize=10)
    figure.suptitle(
        f"The same latent starts before and after {kernel}; energies E, low where data is likely",
        fontsize=10,
    )
    write(figure, path)


def plot_scatter(
    real: Array, base: Array, refined: Array, path: str | Path, *, kernel: str
) -> None:
    """Two-dimensional real, base and refined points (N, 2) side by side, on the same axes.

    The axes are a quarter wider than the real data; points outside are counted in the titles.
    As many points of each are drawn, evenly picked, at most 3,000.

    Raises:
        ValueError: points are not (N, 2), or not finite.
    """
    figure = new_figure(10.5, 3.9)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    panels = (("real data", real), ("base", base), (f"model, {kernel}", refined))
    limit = 1.25 * float(abs(finite("real", real)).max())
    clouds = {name: finite(name, points) for name, points in panels}
    for name, xy in clouds.items():
        check_shape(name, xy, "(N, 2)", ok=xy.ndim == 2 and xy.shape[1] == 2)
    # As many in each panel: densities are compared by eye.
    shown = min(MOST_POINTS, *map(len, clouds.values()))
    for axis, (name, xy), colour in zip(axes, clouds.items(), (GREY, *COLOURS), strict=False):
        outside = float((abs(xy) > limit).any(1).mean())
        picked = np.linspace(0, len(xy) - 1, shown).round().astype(int)
        axis.scatter(*xy[picked].T, s=3, alpha=0.45, color=colour, linewidths=0)
        note = f" ({outside:.1%} outside)" if outside > 0 else ""
        axis.set(title=name + note, xlabel="$x_1$", aspect="equal")
    axes[0].set_ylabel("$x_2$")
    axes[0].set(xlim=(-limit, limit), ylim=(-limit, limit))
    open_axes(axes)
    write(figure, path)


def plot_energies(energies: Mapping[str, Array], path: str | Path) -> None:
    """Histograms of the energies of several samples, as densities on common bins.

    The bins span all but the outermost 0.1 % to each side.

    Raises:
        ValueError: there are no energies, or some are not finite.
    """
    if not energies:
        raise ValueError("energies: expected at least one sample by name; got none")
    given = {name: finite(name, values).ravel() for name, values in energies.items()}
    low, high = np.quantile(np.concatenate(list(given.values())), [0.001, 0.999])
    # A flat energy, which is what an untrained one is, still has a bin.
    room = 0.0 if high > low else max(1e-3, 1e-3 * abs(low))
    bins = np.linspace(low - room, high + room, 60)
    figure = new_figure(6.4, 4.2)
    axis = figure.subplots()
    for place, (name, values) in enumerate(given.items()):
        drawn: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.35, "color": GREY}
        if place:
            colour, _, dashes = look(place - 1)
            drawn = {"histtype": "step", "color": colour, "linestyle": dashes}
        label = f"{name} (mean {values.mean():.2f})"
        axis.hist(values, bins=bins.tolist(), density=True, linewidth=1.6, label=label, **drawn)
    axis.set(xlabel="energy E(x), nats; low where data is likely", ylabel="density, 1/nat")
    open_axes([axis])
    legend_below(figure, axis, 2)
    write(figure, path)


def check_images(name: str, images: NDArray[Any], dims: int) -> NDArray[Any]:
    """Return images (..., 1 or 3, H, W) of ``dims`` dimensions, else raise ``ValueError``."""
    ok = images.ndim == dims and images.shape[-3] in (1, 3)
    leading = ", ".join(["chain", "draw"] if dims == 5 else ["N"])
    check_shape(name, images, f"({leading}, 1 or 3, H, W)", ok=ok)
    return images


def pixels(images: NDArray[Any]) -> NDArray[Any]:
    """Images (..., channels, H, W) in [-1, 1] as (..., H, W, channels) in [0, 1]."""
    # Networks overshoot a little; screens cannot.
    return np.moveaxis((images.clip(-1, 1) + 1) / 2, -3, -1)


def _show_image(axis: Any, image: NDArray[Any]) -> None:
    shown = pixels(image)
    axis.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
