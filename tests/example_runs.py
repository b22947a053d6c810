"""Running an example with ``--smoke`` and reading its tables."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def rows_of(name: str, out: Path | None, *options: str) -> list[list[str]]:
    """The cells of the tables that an example prints."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--smoke", *options]
    command += [] if out is None else ["--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
