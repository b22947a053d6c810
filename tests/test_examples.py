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
