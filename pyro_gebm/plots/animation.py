"""Chains in motion, in the latent and in the data space, as a GIF or an MP4."""

import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageColor
from tqdm import tqdm

from pyro_gebm._checks import check_count
from pyro_gebm._types import PotentialFn
from pyro_gebm.plots.latent import check_plane, draw_potential, limits_around
from pyro_gebm.plots.samples import check_images, pixels
from pyro_gebm.plots.style import (
    COLOURS,
    GREY,
    INK,
    Array,
    Floats,
    check_shape,
    finite,
    look,
    new_figure,
)

SIZE = (8.4, 4.4)
DPI = 100
TAIL = 6
"""Frames that a chain's tail is long."""

PALETTE = 120
"""Colours of a GIF beside the six of the chains."""

SHOWN_IMAGES = 25
MOST_POINTS = 2000
MOST_CHAINS = 500


class _Panel(NamedTuple):
    """What moves in a panel, from the back to the front."""

    move: Callable[[int], None]
    """Brings it to a frame."""
    artists: list[Any]


class _Style(NamedTuple):
    potential_fn: PotentialFn | None
    depth: float
    real: Floats | None
    coloured: int


def animate_chains(
    x: Array,
    path: str | Path,
    *,
    z: Array | None = None,
    potential_fn: PotentialFn | None = None,
    real: Array | None = None,
    frames: int = 60,
    frames_per_second: int = 10,
    coloured: int = 6,
    depth: float = 12.0,
    progress: bool = True,
) -> None:
    """Chains moving in the data space, and beside it in their two latents.

    Draws are picked evenly, the first and the last among them. The first ``coloured`` chains
    have colours, the same in both spaces; points have tails of six frames, images a frame.

    Args:
        x: points (chain, draw, 2), of which up to 500 chains are shown, or images (chain, draw,
            1 or 3, H, W) in [-1, 1], of which up to 25 chains are.
        path: .gif, written by Pillow, or .mp4, which needs ffmpeg.
        z: latents (chain, draw, 2) of the same chains and draws; without them there is the data
            space alone, as for models of more than two latents.
        potential_fn: U, (N, 2) -> (N,), drawn under the latents; see ``plot_latent_potential``.
        real: data (N, 2) drawn faintly under the points.
        frames: pictures at most.
        frames_per_second: how fast it runs, a whole number.
        coloured: chains with a colour of their own, up to 6.
        depth: nats above the potential's minimum that are coloured.
        progress: show a bar.

    Raises:
        ValueError: shapes do not fit, z has not two latents, the name ends otherwise, or ffmpeg
            is wanted and not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "chains.gif"
        ...     animate_chains(np.zeros((2, 3, 2)), path, progress=False)
        ...     path.exists()
        True
    """
    to = Path(path)
    _check_ending(to)
    check_count("frames", frames)
    check_count("coloured", coloured, 0)
    check_count("frames_per_second", frames_per_second)
    data = finite("x", x)
    if data.ndim != 3 or data.shape[2] != 2:
        check_images("x", data, 5)
    if potential_fn is not None and z is None:
        raise ValueError("z: expected latents (chain, draw, 2), as there is a potential_fn")
    latents = None if z is None else check_plane("z", z)
    if latents is not None:
        wanted = f"({data.shape[0]}, {data.shape[1]}, 2) as x"
        check_shape("z", latents, wanted, ok=latents.shape[:2] == data.shape[:2])
    background = None if real is None else finite("real", real)
    if background is not None:
        ok = data.ndim == 3 and background.ndim == 2 and background.shape[1] == 2
        check_shape("real", background, "(N, 2) beside points x", ok=ok)
    picked = _pick(data.shape[1], frames)
    style = _Style(potential_fn, depth, background, min(coloured, 6))
    figure, panels = _compose(data, latents, picked, style, like=z)
    pictures = _draw_all(figure, panels, picked, data.shape[1], progress)
    if to.suffix.lower() == ".gif":
        _write_gif(pictures, to, frames_per_second)
    else:
        _write_mp4(pictures, to, frames_per_second)


def _pick(draws: int, frames: int) -> NDArray[np.int64]:
    return np.linspace(0, draws - 1, min(draws, frames)).round().astype(np.int64)


def _compose(
    x: Floats, z: Floats | None, picked: NDArray[np.int64], style: _Style, like: Array | None
) -> tuple[Figure, list[_Panel]]:
    """The figure, and what moves its panels."""
    figure = new_figure(SIZE[0] if z is not None else SIZE[0] / 2, SIZE[1])
    axes = list(figure.subplots(1, 1 if z is None else 2, squeeze=False)[0])
    panels = []
    if z is not None:
        axis = axes.pop(0)
        box = limits_around(z)
        if style.potential_fn is not None:
            draw_potential(axis, style.potential_fn, box, style.depth, like)
        axis.set(xlim=box[0], ylim=box[1], xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
        axis.set_title("latents z" + ("" if style.potential_fn is None else ", dark: likely"))
        panels.append(_points(axis, z[:, picked], style.coloured))
    axis = axes[0]
    axis.set_title("data x = G(z)")
    if x.ndim == 5:
        panels.append(_images(axis, x[:, picked], style.coloured))
    else:
        box = limits_around(x if style.real is None else _joined(x, style.real))
        if style.real is not None:
            axis.plot(*style.real[:MOST_POINTS].T, ".", ms=2, color="#BBBBBB", zorder=0)
        axis.set(xlim=box[0], ylim=box[1], xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        panels.append(_points(axis, x[:, picked], style.coloured))
    return figure, panels


def _joined(x: Floats, real: Floats) -> Floats:
    return np.concatenate([x.reshape(-1, 2), real])[None]


def _points(axis: Any, walks: Floats, coloured: int) -> _Panel:
    """Chains (C, F, 2) as dots, the first with marks, colours and tails."""
    rest = walks[coloured:MOST_CHAINS]
    (dots,) = axis.plot([], [], ".", ms=3.5, color=INK, alpha=0.55)
    marks, tails = [], []
    for place in range(min(coloured, len(walks))):
        colour, marker, _ = look(place)
        tails += axis.plot([], [], color=colour, linewidth=1.2)
        marks += axis.plot([], [], marker, ms=7, color=colour, markeredgecolor="white")

    def move(frame: int) -> None:
        dots.set_data(*rest[:, frame].T)
        for walk, mark, tail in zip(walks, marks, tails, strict=False):
            mark.set_data(*walk[frame, :, None])
            tail.set_data(*walk[max(0, frame - TAIL) : frame + 1].T)

    return _Panel(move, [dots, *tails, *marks])


def _images(axis: Any, films: Floats, coloured: int) -> _Panel:
    """Chains (C, F, channels, H, W) as a grid of images, the first framed."""
    shown = pixels(films[:SHOWN_IMAGES])
    height, width = shown.shape[2:4]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    gap = max(1, width // 8)
    sheet = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, 3))
    corners = [
        (gap + row * (height + gap), gap + column * (width + gap))
        for row, column in (divmod(place, columns) for place in range(len(shown)))
    ]
    picture = axis.imshow(sheet)
    axis.axis("off")
    frames = []
    for place, (top, left) in enumerate(corners):
        colour, thick = (look(place).colour, 2.5) if place < coloured else (GREY, 0.5)
        frame = Rectangle(
            (left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, lw=thick
        )
        frames.append(axis.add_patch(frame))

    def move(frame: int) -> None:
        for (top, left), film in zip(corners, shown, strict=True):
            sheet[top : top + height, left : left + width] = film[frame]
        picture.set_data(sheet)

    return _Panel(move, [picture, *frames])


def _draw_all(
    figure: Figure, panels: list[_Panel], picked: NDArray[np.int64], draws: int, progress: bool
) -> Iterator[NDArray[np.uint8]]:
    """The frames, (height, width, 3) each."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    title = figure.suptitle(f"draw {draws} of {draws}", fontsize=10)
    moving = [title, *(artist for panel in panels for artist in panel.artists)]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: panels must not tremble
    for artist in moving:
        artist.set_animated(True)
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)
    for frame, draw in enumerate(tqdm(picked.tolist(), "draw frames", disable=not progress)):
        title.set_text(f"draw {draw + 1} of {draws}")
        canvas.restore_region(still)
        for panel in panels:
            panel.move(frame)
        for artist in moving:
            figure.draw_artist(artist)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _write_gif(pictures: Iterator[NDArray[np.uint8]], path: Path, rate: int) -> None:
    """One palette for all frames and no dithering: what stands still then costs nothing."""
    images = [Image.fromarray(picture) for picture in pictures]
    samples = [np.asarray(images[at]) for at in (0, len(images) // 2, -1)]
    palette = Image.fromarray(np.concatenate(samples)).quantize(PALETTE, Image.Quantize.MEDIANCUT)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    # Median cut averages: the paper would be off white, and the few coloured pixels mixed.
    colours[(colours > 247).all(1)] = 255
    named = [ImageColor.getrgb(colour) for colour in COLOURS]
    palette.putpalette([*colours[:PALETTE].ravel().tolist(), *np.ravel(named).tolist()])
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    duration = round(1000 / rate)
    indexed[0].save(
        path, save_all=True, append_images=indexed[1:], duration=duration, loop=0, disposal=1
    )


def _write_mp4(pictures: Iterator[NDArray[np.uint8]], path: Path, rate: int) -> None:
    first = next(pictures)
    height, width = first.shape[:2]
    screen = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(screen)
    shown = screen.figimage(first)
    writer = FFMpegWriter(fps=rate)
    with writer.saving(screen, str(path), DPI):
        for picture in chain([first], pictures):
            shown.set_data(picture)
            writer.grab_frame()


def _check_ending(path: Path) -> None:
    ending = path.suffix.lower()
    if ending not in (".gif", ".mp4"):
        raise ValueError(f"path: expected a name that ends in .gif or .mp4; got {path.name!r}")
    if ending == ".mp4" and not FFMpegWriter.isAvailable():
        raise ValueError(
            "path: expected ffmpeg on the PATH to write .mp4; got none; install it, or write a .gif"
        )
