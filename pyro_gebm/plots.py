"""Pictures: matplotlib figures from arrays, written to files; colours safe for the colour-blind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, darkest contrasts first."""

GREY = "#666666"
DPI = 130


class Curve(NamedTuple):
    """A score along a run, chains started from the base."""

    gradients: Sequence[float]
    """Gradient evaluations per chain so far, from 0."""
    scores: Sequence[float]
    stationary: float
    """Score of the kernel's long run, in sets as large as the batch, drawn as a level."""


class Shift(NamedTuple):
    """Samples before and after a run, from the same latent starts."""

    before: Tensor
    """Base samples (N, *data shape)."""
    after: Tensor
    """Where the same chains stand at the end, (N, *data shape)."""
    energy_before: Tensor
    energy_after: Tensor


def plot_image_shift(shift: Shift, path: Path, *, kernel: str, columns: int = 8) -> None:
    """Grid of images before and after, each under its energy, highest energy before first.

    Args:
        shift: images (N, 1, H, W) or (N, 3, H, W) in [-1, 1]; the first 3 * columns after
            sorting evenly through the energies are shown.
        path: file to write.
        kernel: name for the title.
        columns: pairs in a row.
    """
    order = shift.energy_before.argsort(descending=True)
    picked = order[np.linspace(0, len(order) - 1, 3 * columns).round().astype(int)]
    figure = Figure(figsize=(1.05 * columns + 0.9, 8.2))
    axes = figure.subplots(6, columns)
    for place, index in enumerate(picked.tolist()):
        row, column = divmod(place, columns)
        pairs = ((shift.before, shift.energy_before), (shift.after, shift.energy_after))
        for half, (images, energies) in enumerate(pairs):
            axis = axes[2 * row + half, column]
            _show_image(axis, images[index])
            axis.set_title(f"E = {energies[index]:.1f}", fontsize=7, pad=2, color=COLOURS[half])
    for row in range(6):
        label = "base" if row % 2 == 0 else kernel
        axes[row, 0].set_ylabel(label, color=COLOURS[row % 2], fontsize=10)
    figure.suptitle(
        f"The same latent starts before and after {kernel}; energies E, low where data is likely",
        fontsize=10,
        y=0.925,
    )
    _write(figure, path)


def plot_scatter(real: Tensor, base: Tensor, refined: Tensor, path: Path, *, kernel: str) -> None:
    """Two-dimensional real, base and refined points (N, 2) side by side, on the same axes."""
    figure = Figure(figsize=(10.5, 3.7))
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    panels = (("real data", real), ("base", base), (f"model, {kernel}", refined))
    for axis, (name, points), colour in zip(axes, panels, (GREY, *COLOURS), strict=False):
        xy = points[:3000].numpy()
        axis.scatter(xy[:, 0], xy[:, 1], s=2, alpha=0.4, color=colour, linewidths=0)
        axis.set(title=name, xlabel="$x_1$", aspect="equal")
    axes[0].set_ylabel("$x_2$")
    limit = 1.25 * float(real.abs().max())
    axes[0].set(xlim=(-limit, limit), ylim=(-limit, limit))
    _write(figure, path)


def plot_energies(energies: Mapping[str, Tensor], path: Path) -> None:
    """Histograms of the energies of several samples, as densities on common bins."""
    everything = np.concatenate([values.numpy() for values in energies.values()])
    low, high = np.quantile(everything, [0.001, 0.999])
    bins = np.linspace(low, high, 60)
    figure = Figure(figsize=(6.4, 3.8))
    axis = figure.subplots()
    for (name, values), colour in zip(energies.items(), (GREY, *COLOURS), strict=False):
        filled = name == next(iter(energies))
        axis.hist(
            values.numpy(),
            bins=bins.tolist(),
            density=True,
            histtype="stepfilled" if filled else "step",
            alpha=0.35 if filled else 1.0,
            linewidth=1.6,
            color=colour,
            label=f"{name} (mean {values.mean():.2f})",
        )
    axis.set(xlabel="energy E(x), nats; low where data is likely", ylabel="density")
    _legend_below(axis)
    _write(figure, path)


def plot_curves(
    curves: Mapping[str, Curve], path: Path, *, score: str, floor: tuple[str, float]
) -> None:
    """A score against gradient evaluations, a line a kernel, with stationary levels and floor."""
    figure = Figure(figsize=(6.4, 4.2))
    axis = figure.subplots()
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        axis.plot(curve.gradients, curve.scores, color=colour, marker="o", ms=3, label=name)
        axis.axhline(curve.stationary, color=colour, linestyle=":", linewidth=1.3)
    axis.axhline(floor[1], color=GREY, linestyle="--", linewidth=1.0, label=floor[0])
    axis.set(xlabel="gradient evaluations per chain, from base samples", ylabel=score)
    axis.set_ylim(bottom=0)
    axis.set_title("dotted: the same kernel's long run", fontsize=9)
    _legend_below(axis)
    _write(figure, path)


def _show_image(axis: Any, image: Tensor) -> None:
    pixels: NDArray[Any] = ((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
    axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def _legend_below(axis: Any) -> None:
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _write(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
