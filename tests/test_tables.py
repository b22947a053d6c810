"""The verdict says what the figures say, and pictures show what they are handed."""

from pathlib import Path

import pytest

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
