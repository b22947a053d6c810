"""The verdict says what the figures say, and pictures show what they are handed."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyro_gebm import plots
from pyro_gebm.cli.evaluation import BaseScore, Verdict
from pyro_gebm.cli.tables import verdict_line
from pyro_gebm.metrics import MeanSpread, RelativeScore
from pyro_gebm.report import RunFolder, format_table, write_json

BASE = BaseScore(MeanSpread(2.0, 0.1, 5), MeanSpread(1.0, 0.1, 20), "", 0.05, None, 540)


def verdict(kernel: str, ratio: float, *, rhat: float = 1.001, occupancy: float = 0.04) -> Verdict:
    part = MeanSpread(ratio, 0.05, 5)
    score = RelativeScore(MeanSpread(2 * ratio, 0.1, 5), BASE.score, part)
    return Verdict(kernel, score, occupancy, None, rhat, 1e4, 0, 4000.0, 1.0)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([verdict("HMC", 0.6)], "the energy helps: HMC (0.60)"),
        ([verdict("HMC", 0.6), verdict("NUTS", 0.97)], "Not so: NUTS."),
        ([verdict("HMC", 0.6, rhat=1.02)], "R-hat or occupancy speak against it"),
        ([verdict("HMC", 0.6, occupancy=0.06)], "R-hat or occupancy speak against it"),
        ([verdict("HMC", 0.96)], "no kernel improves on the base"),
        ([verdict("HMC", 1.3)], "no kernel improves on the base"),
    ],
)
def test_verdict_needs_the_score_and_the_diagnostics(verdicts: list[Verdict], said: str) -> None:
    assert said in verdict_line(verdicts, BASE)


def test_table_keeps_columns_apart() -> None:
    lines = format_table(["a", "b"], [["x", "10"], ["long", "1"]]).splitlines()
    assert lines == ["a      b", "--------", "x     10", "long   1"]


def test_write_json_leaves_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert '"a": 1' in path.read_text()


def test_run_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="run"):
        RunFolder(tmp_path / "run").create()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[plt.Figure]:
    """Figures as they are when they are written."""
    figures: list[plt.Figure] = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: figures.append(figure))
    return figures


def test_image_pairs_stand_under_each_other_sorted_by_energy(drawn: list[plt.Figure]) -> None:
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


def test_energy_histograms_are_densities(drawn: list[plt.Figure]) -> None:
    plots.plot_energies({"real": torch.randn(4000), "base": torch.randn(4000) + 2}, Path("unused"))
    axis = drawn[0].axes[0]
    for patch in axis.patches:
        outline = patch.get_xy()
        area = abs(np.trapezoid(outline[:, 1], outline[:, 0]))
        assert area == pytest.approx(1.0, abs=0.01)
    assert [text.get_text()[:4] for text in axis.get_legend().get_texts()] == ["real", "base"]


def test_curves_show_floor_and_levels(drawn: list[plt.Figure]) -> None:
    curves = {"HMC": plots.Curve([0, 5, 10], [3.0, 2.0, 1.5], 1.4)}
    plots.plot_curves(curves, Path("unused"), score="distance", floor=("floor", 1.0))
    line, level, floor = drawn[0].axes[0].lines
    assert line.get_xydata().tolist() == [[0, 3], [5, 2], [10, 1.5]]
    assert set(level.get_ydata()) == {1.4} and set(floor.get_ydata()) == {1.0}
    assert drawn[0].axes[0].get_ylim()[0] == 0
