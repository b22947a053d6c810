"""Pictures show what they are handed: read back from the figures, the files and the frames."""

import math
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.path import Path as Path2D
from PIL import Image

from pyro_gebm import inference_data, plots
from pyro_gebm.inference_data import pictures

torch.set_num_threads(1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they are when they are written."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axis, label):
    (found,) = [line for line in axis.lines if line.get_label() == label]
    return np.asarray(found.get_xydata())


# --- samples ---------------------------------------------------------------------------------


def test_image_pairs_stand_under_each_other_sorted_by_energy(drawn):
    count = 50
    before = torch.linspace(-1, 1, count)[:, None, None, None].expand(count, 1, 2, 2)
    energies = torch.linspace(3, -3, count)
    shift = plots.Shift(before, -before, energies, energies - 1)
    plots.plot_image_shift(shift, Path("unused"), kernel="HMC")
    axes = np.array(drawn[0].axes).reshape(6, 8)
    tops = [axis for row in (0, 2, 4) for axis in axes[row]]
    bottoms = [axis for row in (1, 3, 5) for axis in axes[row]]
    shown = [float(axis.images[0].get_array().mean()) for axis in tops]
    assert shown == sorted(shown) and shown[0] == 0.0 and shown[-1] == 1.0
    for top, bottom in zip(tops, bottoms, strict=True):
        # ``after`` is the negative image, one nat lower.
        assert top.images[0].get_array().mean() == pytest.approx(
            1 - bottom.images[0].get_array().mean()
        )
        high, low = (float(axis.get_title().split("=")[1]) for axis in (top, bottom))
        assert high - low == pytest.approx(1.0, abs=0.11)  # titles have one decimal


def test_colour_images_keep_their_channels(drawn):
    red = torch.full((1, 3, 2, 2), -1.0)
    red[:, 0] = 1.0
    shift = plots.Shift(red, red, torch.zeros(1), torch.full((1,), -0.04))
    plots.plot_image_shift(shift, "unused", kernel="HMC", columns=1)
    top, bottom = drawn[0].axes[:2]
    assert np.asarray(top.images[0].get_array())[0, 0].tolist() == [1, 0, 0]
    assert bottom.get_title() == "E = 0.0"  # not -0.0


def test_scatter_counts_what_lies_outside(drawn):
    real = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    base = torch.tensor([[9.0, 9.0], [1.0, 1.0]])
    plots.plot_scatter(real, base, real, "unused", kernel="NUTS")
    panels = drawn[0].axes
    titles = [axis.get_title() for axis in panels]
    assert titles == ["real data", "base (50.0% outside)", "model, NUTS"]
    for axis, points in zip(panels, (real, base, real), strict=True):
        assert axis.collections[0].get_offsets().tolist() == points.tolist()
        assert axis.get_xlim() == axis.get_ylim() == (-2.5, 2.5)


def test_scatter_shows_as_many_points_of_each(drawn):
    sizes = 5000, 40, 700
    plots.plot_scatter(*(torch.randn(n, 2) for n in sizes), "unused", kernel="NUTS")
    assert [len(axis.collections[0].get_offsets()) for axis in drawn[0].axes] == [40] * 3


def test_energy_histograms_are_densities(drawn):
    real = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    plots.plot_energies({"real": real, "base": real + 2}, Path("unused"))
    axis = drawn[0].axes[0]
    centres = []
    for patch in axis.patches:
        x, y = patch.get_xy().T
        # The area and centre of a polygon (Green's theorem).
        cross = x[:-1] * y[1:] - x[1:] * y[:-1]
        assert abs(cross.sum()) / 2 == pytest.approx(1.0, abs=0.01)
        centres.append(((x[:-1] + x[1:]) * cross).sum() / (3 * cross.sum()))
    assert centres[1] - centres[0] == pytest.approx(2.0, abs=0.05)
    mean = float(real.mean())
    assert legend_of(drawn[0]) == [f"real (mean {mean:.2f})", f"base (mean {mean + 2:.2f})"]
    assert "nats" in axis.get_xlabel() and "1/nat" in axis.get_ylabel()


def test_a_flat_energy_has_a_histogram(drawn):
    plots.plot_energies({"base": torch.full((10,), 3.0)}, "unused")
    low, high = drawn[0].axes[0].get_xlim()
    assert low < 3 < high


# --- curves ----------------------------------------------------------------------------------


def test_curves_show_floor_and_levels(drawn):
    curves = {"HMC": plots.Curve([0, 5, 10], [3.0, 2.0, 1.5], 1.4)}
    plots.plot_curves(curves, Path("unused"), score="distance", floor=("floor", 1.0))
    run, level, floor = drawn[0].axes[0].lines
    assert run.get_xydata().tolist() == [[0, 3], [5, 2], [10, 1.5]]
    assert set(level.get_ydata()) == {1.4} and set(floor.get_ydata()) == {1.0}
    assert drawn[0].axes[0].get_ylim()[0] == 0
    assert legend_of(drawn[0]) == ["HMC", "floor"] and len(drawn[0].axes) == 1


@pytest.mark.parametrize("band", ["range", "sd"])
def test_bands_are_over_seeds(drawn, band):
    scores = np.random.default_rng(0).normal(5, 1, (7, 3))
    curve = plots.Curve([0, 5, 10], scores, 4.0, (3.5, 4.75))
    plots.plot_curves({"HMC": curve}, "unused", score="distance", band=band)
    axis, beside = drawn[0].axes
    edges = axis.collections[0].get_paths()[0].vertices
    spread = scores.std(0, ddof=1)
    middle, low, high = {
        "range": (np.median(scores, 0), scores.min(0), scores.max(0)),
        "sd": (scores.mean(0), scores.mean(0) - spread, scores.mean(0) + spread),
    }[band]
    np.testing.assert_allclose(line(axis, "HMC")[:, 1], middle)
    for at, (lower, upper) in enumerate(zip(low, high, strict=True)):
        found = edges[edges[:, 0] == 5 * at][:, 1]
        assert found.min() == pytest.approx(lower) and found.max() == pytest.approx(upper)
    assert "of 7 seeds" in axis.get_title()
    interval = beside.collections[0].get_segments()[0]
    assert interval[:, 1].tolist() == [3.5, 4.75]
    assert beside.lines[0].get_ydata().tolist() == [4.0]


def test_seeds_of_different_costs_meet_on_a_common_grid(drawn):
    # Both runs follow score = 10 - gradients: interpolation must find no difference.
    gradients = np.array([[0.0, 2.0, 4.0, 9.0], [0.0, 3.0, 5.0, 6.0]])
    curves = {"NUTS": plots.Curve(gradients, 10 - gradients, 1.0)}
    plots.plot_curves(curves, "unused", score="distance")
    axis = drawn[0].axes[0]
    x, y = line(axis, "NUTS").T
    np.testing.assert_allclose(y, 10 - x)
    assert x[0] == 0 and x[-1] == 6  # no further than the cheaper seed went
    edges = axis.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(edges[:, 1], 10 - edges[:, 0])


def test_more_curves_than_colours_are_all_there_and_differ(drawn):
    curves = {f"kernel {k}": plots.Curve([0, 1], [k, k], 0.0) for k in range(9)}
    plots.plot_curves(curves, "unused", score="distance")
    assert legend_of(drawn[0]) == list(curves)
    lines = [found for found in drawn[0].axes[0].lines if found.get_label() in curves]
    assert len({(found.get_color(), found.get_linestyle()) for found in lines}) == 9


# --- densities, modes ------------------------------------------------------------------------


def test_manifold_densities_have_their_masses_and_bands(drawn):
    s = np.linspace(0, 2, 101)
    truth, model = np.full(101, 0.5), np.stack([s / 2, s])
    plots.plot_manifold_density(s, {"truth": truth, "model": torch.tensor(model)}, "unused")
    axis = drawn[0].axes[0]
    assert legend_of(drawn[0]) == ["truth (mass 1.000)", "model (mass 1.500)"]
    np.testing.assert_array_equal(line(axis, "truth (mass 1.000)"), np.c_[s, truth])
    np.testing.assert_allclose(line(axis, "model (mass 1.500)")[:, 1], 0.75 * s)
    edges = axis.collections[1].get_paths()[0].vertices
    at = edges[np.isclose(edges[:, 0], 1.0)][:, 1]
    assert sorted(set(at.round(9))) == [0.5, 1.0]
    assert axis.get_xlabel() == "arc length s, data units"


def test_occupancy_bars_errors_and_truth(drawn):
    truth = [0.5, 0.3, 0.2]
    bars = {
        "base": plots.Occupancy([0.6, 0.4, 0.0], [0.01, 0.02, math.nan]),
        "NUTS": plots.Occupancy(torch.tensor([0.5, 0.25, 0.25])),
    }
    labels = ["zero", "one", "two"]
    plots.plot_mode_occupancy(bars, "unused", truth=truth, labels=labels)
    axis = drawn[0].axes[0]
    heights = [patch.get_height() for patch in axis.patches]
    assert heights == [0.6, 0.4, 0.0, 0.5, 0.25, 0.25]
    middles = [patch.get_x() + patch.get_width() / 2 for patch in axis.patches]
    np.testing.assert_allclose(middles, [-0.2, 0.8, 1.8, 0.2, 1.2, 2.2])
    segments = {
        len(found.get_segments()): np.array(found.get_segments()) for found in axis.collections
    }
    np.testing.assert_allclose(segments[2][:, :, 1], [[0.58, 0.62], [0.36, 0.44]])  # ± 2 MCSE
    np.testing.assert_allclose(segments[3][:, :, 1], np.repeat(truth, 2).reshape(3, 2))
    assert [text.get_text() for text in axis.get_xticklabels()] == labels
    assert sorted(legend_of(drawn[0])) == ["NUTS", "base", "truth"]


def test_transition_matrix_is_read_from_row_to_column(drawn):
    matrix = np.array([[0.996, 0.004, 0.0], [0.25, 0.7, 0.05], [math.nan] * 3])
    plots.plot_transition_matrix(matrix, "unused")
    axis = drawn[0].axes[0]
    shown = axis.images[0].get_array()
    assert shown.mask[2].all() and not shown.mask[:2].any()
    np.testing.assert_array_equal(shown[:2], matrix[:2])
    numbers = {text.get_position(): text.get_text() for text in axis.texts}
    expected = ["1.00", "<.01", "0", "0.25", "0.70", "0.05"]
    assert [numbers[column, row] for row in range(2) for column in range(3)] == expected
    assert len(numbers) == 6  # none in the row that was never visited
    assert "hatched" in axis.get_title() and len(axis.patches) == 1


# --- latent potential ------------------------------------------------------------------------


def ring(z):
    """Lowest on the unit circle; infinite to the left of z₁ = -2."""
    potential = 8 * (z.square().sum(-1).sqrt() - 1).square()
    return torch.where(z[:, 0] < -2, torch.inf, potential)


def level_at(axis, x, y):
    """The lower edge of the coloured level at a point; None where nothing is drawn."""
    filled = axis.collections[0]
    for low, path in zip(filled.levels, filled.get_paths(), strict=False):
        # Levels have holes: inside an odd number of outlines is inside.
        if sum(Path2D(outline).contains_point((x, y)) for outline in path.to_polygons()) % 2:
            return float(low)
    return None


def test_latent_potential_has_its_levels_where_they_are(drawn):
    limits = ((-3.0, 3.0), (-2.0, 2.0))
    # A potential has no zero of its own.
    plots.plot_latent_potential(lambda z: ring(z) - 50, "unused", limits=limits, depth=10.0)
    axis = drawn[0].axes[0]
    assert (axis.get_xlim(), axis.get_ylim()) == limits
    for point in [(1.0, 0.03), (0.03, 0.6), (1.7, 0.1), (1.2, -1.3)]:
        value = float(ring(torch.tensor([point])))
        assert level_at(axis, *point) == pytest.approx(value, abs=1.01)
        assert level_at(axis, *point) <= value + 0.05
    assert level_at(axis, -2.5, 0.03) is None  # no density there
    assert level_at(axis, 2.9, 0.03) in (None, 10.0)  # 28.9 nats: white
    assert axis.get_xlabel() == "$z_1$" and "nats" in drawn[0].axes[1].get_ylabel()


def test_chains_and_divergences_on_the_potential(drawn):
    generator = np.random.default_rng(0)
    chains = generator.normal(size=(5, 60, 2))
    diverging = generator.random((5, 60)) < 0.1
    plots.plot_latent_potential(
        ring, "unused", chains=chains, diverging=diverging, trails=2, trail_draws=7
    )
    axis = drawn[0].axes[0]
    dots = line(axis, "300 draws of 5 chains")
    np.testing.assert_array_equal(dots, chains.reshape(-1, 2))
    for chain in range(2):
        trail = line(axis, f"chain {chain}, draws 0 to 6")
        np.testing.assert_array_equal(trail, chains[chain, :7])
    crosses = line(axis, f"divergent draws ({diverging.sum()} of 300)")
    np.testing.assert_array_equal(crosses, chains[diverging])
    low, high = np.array([axis.get_xlim(), axis.get_ylim()]).T
    assert (chains > low).all() and (chains < high).all()
    assert len(legend_of(drawn[0])) == 4


def test_the_potential_is_asked_in_the_dtype_of_the_chains(drawn):
    asked = set()

    def potential(z):
        asked.add((z.dtype, z.requires_grad, torch.is_grad_enabled()))
        return z.square().sum(-1)

    plots.plot_latent_potential(potential, "unused", chains=torch.randn(2, 5, 2).double())
    plots.plot_latent_potential(potential, "unused")
    assert asked == {(torch.float64, False, False), (torch.float32, False, False)}


# --- training --------------------------------------------------------------------------------


def training_rows():
    rows = []
    for step in range(1, 401):
        row = {
            "step": step,
            "phase": "alternate" if step <= 300 else "refit",
            "bound": 1000.0 if step == 1 else 1 - math.exp(-step / 50),
            "log_partition": step / 100,
            "batch_log_z": step / 100 + (-1) ** step,
            "importance_ess": 0.5 + step / 1000,
            "energy_grad_norm": 10.0 / step,
            "base_grad_norm": 1.0 if step <= 300 else None,
            "rollbacks": (step > 120) + (step > 350),
        }
        if step % 100 == 0:
            row |= {"held_out_bound": step / 1000, "held_out_kale": step / 900}
            row |= {"held_out_log_z": step / 110, "held_out_importance_ess": 0.4}
        rows.append(row)
    return rows


def test_training_shows_its_figures(drawn):
    rows = training_rows()
    plots.plot_training(rows, "unused")
    bound, log_z, ess, norms = drawn[0].axes
    held = np.arange(100, 401, 100)
    np.testing.assert_allclose(line(bound, "held out"), np.c_[held, held / 1000])
    np.testing.assert_allclose(line(bound, "held out, c = log Z"), np.c_[held, held / 900])
    steps = np.arange(1, 401)
    np.testing.assert_allclose(line(log_z, "learned c"), np.c_[steps, steps / 100])
    np.testing.assert_allclose(line(log_z, "log Z of a large sample"), np.c_[held, held / 110])
    np.testing.assert_allclose(line(ess, "large sample"), np.c_[held, [0.4] * 4])
    # Medians of five steps each: of a straight line, its middle.
    x, y = line(ess, "batch").T
    np.testing.assert_allclose(y, 0.5 + x / 1000)
    assert len(x) == 80
    x, y = line(norms, "base").T
    assert x.max() <= 300 and (y == 1).all() and norms.get_yscale() == "log"
    assert bound.get_ylim()[1] < 1.1 and "0.2% of the steps outside" in bound.get_title("right")


def test_training_marks_phases_and_rollbacks(drawn):
    plots.plot_training(training_rows(), "unused")
    for axis in drawn[0].axes:
        shaded = axis.patches[0].get_bbox()
        assert (shaded.x0, shaded.x1) == (301, 400)
        (back,) = [
            found
            for found in axis.lines
            if found.get_marker() == "^" and len(found.get_xdata()) == 2
        ]
        assert list(back.get_xdata()) == [121, 351]
    assert legend_of(drawn[0]) == [
        "refit of the energy alone",
        "rolled back to a good state (2 times)",
    ]


def test_training_without_some_figures_says_so(drawn):
    plots.plot_training([{"step": 1, "importance_ess": 0.5}, {"step": 2, "bound": None}], "unused")
    bound, _, ess, norms = drawn[0].axes
    assert [axis.texts[0].get_text() for axis in (bound, norms)] == ["not recorded"] * 2
    assert line(ess, "batch").tolist() == [[1, 0.5]] and not drawn[0].legends


# --- animation -------------------------------------------------------------------------------


def frames_of(path):
    film = Image.open(path)
    frames = []
    for at in range(film.n_frames):
        film.seek(at)
        frames.append(np.asarray(film.convert("RGB")).astype(int))
    return frames, film.info["duration"]


def centre_of(frame, colour, half):
    """Mean pixel (x, y) of a colour in the left or right half of a frame, or both."""
    width = frame.shape[1]
    part = frame[:, : width // 2] if half == 0 else frame[:, width // 2 :]
    at = np.argwhere((abs(part - np.array(colour)) < 12).all(-1))
    return at.mean(0)[::-1]


BLUE = tuple(int(plots.COLOURS[0][at : at + 2], 16) for at in (1, 3, 5))


def test_points_move_through_the_frames_in_both_spaces(tmp_path):
    # One chain: z goes right, x = -z goes left; the tail is long, so its mean moves steadily.
    z = np.stack([np.linspace(-1, 1, 12), np.zeros(12)], -1)[None]
    path = tmp_path / "chains.gif"
    plots.animate_chains(
        -z, path, z=z, potential_fn=lambda z: z.square().sum(-1), frames=6, progress=False
    )
    frames, duration = frames_of(path)
    assert len(frames) == 6 and duration == 100
    left, right = ([centre_of(frame, BLUE, half)[0] for frame in frames] for half in (0, 1))
    assert (np.diff(left) > 0).all() and (np.diff(right) < 0).all()
    assert frames[0][0, 0].tolist() == [255, 255, 255]  # paper stays white


def test_images_of_a_film_are_those_of_its_draws(tmp_path):
    # Chain k is black but in draw k, where it is white.
    x = np.full((4, 4, 1, 8, 8), -1.0)
    x[np.arange(4), np.arange(4)] = 1.0
    path = tmp_path / "images.gif"
    plots.animate_chains(x, path, coloured=0, progress=False)
    frames, _ = frames_of(path)
    assert len(frames) == 4
    dark = frames[0].sum(-1) < 60
    rows, columns = (np.flatnonzero(dark.mean(1 - axis) > 0.2) for axis in (0, 1))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    for draw, frame in enumerate(frames):
        grey = frame.mean(-1)
        bright = [
            grey[top + int(r * (bottom - top)), left + int(c * (right - left))] > 250
            for r, c in ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
        ]
        assert bright == [chain == draw for chain in range(4)]


def test_a_film_of_many_chains_is_light(tmp_path):
    generator = np.random.default_rng(0)
    z = generator.normal(size=(64, 60, 2))
    path = tmp_path / "chains.gif"
    real = generator.normal(size=(2000, 2))
    plots.animate_chains(z, path, z=z, potential_fn=ring, real=real, progress=False)
    assert Image.open(path).n_frames == 60
    assert path.stat().st_size < 2e6


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on the PATH")
def test_mp4(tmp_path):
    path = tmp_path / "chains.mp4"
    plots.animate_chains(np.zeros((2, 3, 2)), path, progress=False)
    assert path.read_bytes()[4:8] == b"ftyp"


def test_mp4_without_ffmpeg_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"ffmpeg.*\.gif"):
        plots.animate_chains(np.zeros((2, 3, 2)), tmp_path / "chains.mp4", progress=False)


# --- refusals and files ----------------------------------------------------------------------

POINTS = torch.zeros(4, 2)
NAN = torch.tensor([math.nan])
CURVE = plots.Curve([0, 1], [2.0, 1.0], 1.0)
SHIFT = plots.Shift(torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2), POINTS[:, 0], POINTS[:, 0])
Z = torch.zeros(2, 5, 2)


def refuse_curve(**changes):
    return lambda: plots.plot_curves({"HMC": CURVE._replace(**changes)}, "unused", score="d")


REFUSALS = {
    "no images": (
        lambda: plots.plot_image_shift(SHIFT._replace(before=POINTS), "x", kernel=""),
        "before.*1 or 3",
    ),
    "fewer after": (
        lambda: plots.plot_image_shift(SHIFT._replace(after=SHIFT.after[:2]), "x", kernel=""),
        "after.*4",
    ),
    "3-D points": (
        lambda: plots.plot_scatter(POINTS, torch.zeros(4, 3), POINTS, "x", kernel=""),
        "base.*N, 2",
    ),
    "nan energy": (lambda: plots.plot_energies({"base": NAN}, "x"), "base.*finite"),
    "no energies": (lambda: plots.plot_energies({}, "x"), "at least one"),
    "no curves": (lambda: plots.plot_curves({}, "x", score=""), "at least one"),
    "lengths": (refuse_curve(scores=[1.0, 2.0, 3.0]), "gradients"),
    "falling": (refuse_curve(gradients=[1, 0]), "only grow"),
    "interval": (refuse_curve(stationary_interval=(2.0, 3.0)), "around 1.0"),
    "band": (
        lambda: plots.plot_curves(
            {"H": CURVE._replace(scores=[[1.0, 2], [3, 4]])}, "x", score="", band="iqr"
        ),
        "range, sd",
    ),
    "negative": (lambda: plots.plot_manifold_density([0, 1], {"p": [1.0, -1.0]}, "x"), "negative"),
    "back": (lambda: plots.plot_manifold_density([0, 1, 1], {"p": [1.0] * 3}, "x"), "growing"),
    "counts": (
        lambda: plots.plot_mode_occupancy({"b": plots.Occupancy([3, 4])}, "x"),
        "divide counts",
    ),
    "truth": (
        lambda: plots.plot_mode_occupancy({"b": plots.Occupancy([1.0])}, "x", truth=[0.5, 0.5]),
        "truth",
    ),
    "labels": (lambda: plots.plot_transition_matrix(np.eye(2), "x", labels=["a"]), "labels"),
    "transpose": (lambda: plots.plot_transition_matrix([[0.9, 0.4], [0.1, 0.6]], "x"), "transpose"),
    "some nan": (
        lambda: plots.plot_transition_matrix([[math.nan, 0.5], [0.1, 0.9]], "x"),
        "nan alone",
    ),
    "three latents": (
        lambda: plots.plot_latent_potential(ring, "x", chains=torch.zeros(2, 5, 3)),
        "two latents",
    ),
    "model of 3": (
        lambda: plots.plot_latent_potential(lambda z: z @ torch.ones(3), "x"),
        "two latents",
    ),
    "scalar": (lambda: plots.plot_latent_potential(lambda z: z, "x"), "potential_fn"),
    "nan": (lambda: plots.plot_latent_potential(lambda z: z[:, 0] * math.nan, "x"), "nan"),
    "flags": (
        lambda: plots.plot_latent_potential(ring, "x", chains=Z, diverging=np.zeros(5)),
        "diverging",
    ),
    "no rows": (lambda: plots.plot_training([], "x"), "0 rows"),
    "two runs": (lambda: plots.plot_training([{"step": 2}, {"step": 1}], "x"), "one run at a time"),
    "png film": (lambda: plots.animate_chains(Z, "x.png"), "gif"),
    "latents of others": (lambda: plots.animate_chains(Z, "x.gif", z=Z[:1]), "z: expected"),
    "no latents": (lambda: plots.animate_chains(Z, "x.gif", potential_fn=ring), "z: expected"),
    "film of 3": (lambda: plots.animate_chains(Z, "x.gif", z=torch.zeros(2, 5, 3)), "two latents"),
    "film of vectors": (lambda: plots.animate_chains(torch.zeros(2, 5, 7), "x.gif"), "x: expected"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    call, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_file_is_written_and_pyplot_left_alone(tmp_path, ending):
    before = plt.get_fignums()
    path = tmp_path / f"modes.{ending}"
    plots.plot_mode_occupancy({"base": plots.Occupancy([0.5, 0.5])}, path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    assert plt.get_fignums() == before


# --- through ArviZ ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    """AR(1) chains, φ = 0.8, with a known energy and two divergences in the first chain."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(400, 12, 3))
    z = np.zeros_like(noise)
    for t in range(1, 400):
        z[t] = 0.8 * z[t - 1] + noise[t]
    z = z.swapaxes(0, 1)
    diverging = np.zeros((12, 400), dtype=bool)
    diverging[0, [100, 300]] = True
    stats = {"hamiltonian": generator.gamma(3, size=(12, 400)), "diverging": diverging}
    return inference_data.build({"z": z}, stats, {})


@pytest.mark.parametrize("name", ["rank", "trace", "autocorr"])
def test_arviz_pictures_of_latents(run, name, tmp_path):
    mine = plt.figure()
    draw = getattr(pictures, f"plot_{name}")
    draw(run, tmp_path / "picture.png", dims=[0, 2])
    assert plt.get_fignums() == [mine.number]  # neither left open nor the user's closed
    plt.close(mine)
    picture = imread(tmp_path / "picture.png")[..., :3]
    assert min(picture.shape[:2]) > 100 and picture.std() > 0.03
    with pytest.raises(ValueError, match=r"0\.\.2"):
        draw(run, tmp_path / "picture.png", dims=[3])


def test_traces_are_those_of_the_latents(run, drawn):
    pictures.plot_trace(run, "unused", dims=[2])
    z = inference_data.values(run, "z")[:8, :, 2]
    found = [np.asarray(shown.get_ydata()) for axis in drawn[0].axes for shown in axis.lines]
    traces = [y for y in found if len(y) == 400]
    matched = [chain for chain in z if any(np.allclose(chain, y) for y in traces)]
    assert len(matched) == 8


def test_autocorrelation_is_that_of_the_process(run, drawn):
    pictures.plot_autocorr(run, "unused", dims=[0], max_lag=20)
    text = [axis.get_ylabel() for axis in drawn[0].axes] + [t.get_text() for t in drawn[0].texts]
    assert "autocorrelation" in " ".join(text) + str(drawn[0].get_supylabel())
    z = inference_data.values(run, "z")[0, :, 0]
    centred = z - z.mean()
    expected = (centred[:-5] * centred[5:]).sum() / (centred**2).sum()
    heights = []
    for axis in drawn[0].axes:
        heights += [
            s[1, 1]
            for c in axis.collections
            if hasattr(c, "get_segments")
            for s in c.get_segments()
            if len(s) == 2 and abs(s[0, 0] - 5) < 1e-9
        ]
        heights += [
            float(y[5]) for y in (np.asarray(s.get_ydata()) for s in axis.lines) if len(y) > 5
        ]
    assert any(abs(height - expected) < 0.02 for height in heights)


def test_energy_picture_tells_the_worst_bfmi(run, drawn):
    pictures.plot_energy(run, "unused")
    energy = inference_data.values(run, "energy", "sample_stats")
    ratio = np.square(np.diff(energy)).mean(1) / energy.var(1)
    title = drawn[0].get_suptitle()
    told = float(title.split("least ")[1].split(" ")[0])
    assert told == pytest.approx(ratio.min(), rel=0.01) and "12 chains, 0 below" in title
    assert "nats" in drawn[0].axes[-1].get_xlabel()


def test_energy_picture_needs_energies(tmp_path):
    plain = inference_data.build({"z": np.zeros((2, 5, 1))}, {}, {})
    with pytest.raises(ValueError, match="'energy'"):
        pictures.plot_energy(plain, tmp_path / "energy.png")
