"""``pyro-gebm compare``: table, page and JSON say the same, and hide no failure."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import pyro_gebm as pg
from pyro_gebm.cli import main
from pyro_gebm.cli.comparing import HEADER
from pyro_gebm.cli.models import build_model
from pyro_gebm.cli.problems import load_problem

SIZES = ["--num-chains", "64", "--warmup-steps", "15", "--seeds", "3,5", "--budget", "200"]


class Cells(HTMLParser):
    """Rows of the tables, and the number of pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures, self._inside = 0, False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag in ("td", "th")
        self.pictures += tag == "img"
        if tag == "tr":
            self.rows.append([])
        if self._inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of eight Gaussians, as a run folder."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    pg.save(build_model(load_problem("gaussians8", 0)), folder / "gebm.pt")
    (folder / "config.json").write_text(json.dumps({"data": "gaussians8", "seed": 0}))
    return folder


def test_table_page_and_json_agree(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["compare", str(run), "--out", str(tmp_path), "--kernels", "MALA,HMC", *SIZES]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "compare.json").read_text())
    html = (tmp_path / "compare.html").read_text()
    page = Cells(html)
    assert page.rows[0] == list(HEADER)
    assert list(found["kernels"]) == ["MALA", "HMC"] == [row[0] for row in page.rows[1:]]
    for row in page.rows[1:]:
        summary = found["kernels"][row[0]]["summary"]
        assert float(row[1].split()[0]) == pytest.approx(summary["end"]["mean"], rel=0.01)
        assert float(row[2].split()[0]) == pytest.approx(summary["end_ratio"]["mean"], rel=0.01)
        assert " ".join(row) in " ".join(printed.split()), "the page's row is the terminal's"
    assert found["protocol"]["seeds"] == [3, 5] and found["protocol"]["budget"] == 200
    assert found["verdict"] in printed and "Energy distance" in found["measured"]
    assert page.pictures == 3  # curves, occupancy, transitions
    assert "http" not in html


def test_a_kernel_that_fails_is_told_everywhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget that MALA's warm-up does not leave anything of, but Langevin's does."""
    sizes = [*SIZES[:-1], "17"]
    argv = ["compare", str(run), "--out", str(tmp_path), "--kernels", "MALA,NUTS", *sizes]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "compare.json").read_text())
    failure = found["kernels"]["NUTS"]["failure"]
    assert "budget: expected at least" in failure
    assert f"NUTS: failed, {failure}" in printed
    html = (tmp_path / "compare.html").read_text()
    assert ["NUTS", "failed, see below"] in Cells(html).rows
    assert "NUTS: failed, seed 3: ValueError: budget: expected at least" in html


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "--budget"),
        (["--seeds", "1,x"], "--seeds"),
        (["--seeds", "1,1"], "seeds: expected one or more different numbers"),
        (["--kernels", "NUTS,nuts"], "different names"),
        (["--beta", "-1"], "beta"),
    ],
)
def test_bad_arguments_are_one_line(
    run: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["compare", str(run), "--out", str(tmp_path), *options])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code != 0 and message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir()), "before any work"
