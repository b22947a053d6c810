"""Every example runs with ``--smoke`` and prints what it promises."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_five_seeds_prints_a_row_per_seed_and_the_medians(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "five_seeds.py"), "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["seed", "0", "**median**"]
    assert len({row.count("|") for row in rows}) == 1, "columns line up"
    assert (tmp_path / "0" / "samples.png").exists()


def test_training_choices_prints_a_row_per_way(tmp_path: Path) -> None:
    ways = ["alternating", "joint (one stage)", "EBM in data space"]
    script = str(EXAMPLES / "training_choices.py")
    command = [sys.executable, script, "--smoke", "--out", str(tmp_path), "--ways", *ways]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    tables = 3  # one per metric
    assert [row.split("|")[1].strip() for row in rows] == ["way", *ways] * tables
    assert len({row.count("|") for row in rows}) == 1, "columns line up"


def test_log_partition_prints_errors_and_draws_them(tmp_path: Path) -> None:
    script = str(EXAMPLES / "log_partition.py")
    command = [sys.executable, script, "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[0] == "| steps | batch | c | ESS |" and len(rows) == 1 + 8
    assert (tmp_path / "log_partition.png").stat().st_size > 0
