"""The table on standard output, and the JSON that keeps everything."""

import importlib.metadata
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cells import Cell

VERSIONS = ["pyro-gebm", "torch", "pyro-ppl", "numpyro", "blackjax", "jax", "torchebm", "arviz"]

COLUMNS: list[tuple[str, str, Callable[[float], str]]] = [
    ("ESS z", "ess", "{:.0f}".format),
    ("ESS z²", "ess_square", "{:.0f}".format),
    ("/kgrad", "ess_per_kgradient", "{:.1f}".format),
    ("R-hat", "rhat", "{:.3f}".format),
    ("bias max", "bias_max", "{:.1f}".format),
    ("rms", "bias_rms", "{:.1f}".format),
    ("div", "divergences", "{:.0f}".format),
    ("TV", "total_variation", "{:.3f}".format),
    ("mode err", "mode_error", "{:.2f}".format),
    ("modes/kgrad", "mode_ess_per_kgradient", "{:.2f}".format),
    ("within/s", "within_ess_per_second", "{:.0f}".format),
]


def print_table(cells: list[Cell]) -> None:
    """One line a cell: medians over the rounds, and the range of what is timed."""
    heads = ["target", "chains", "library", "kernel", "seconds", "compile", "ESS/s [range]"]
    say(" | ".join(heads + [head for head, _, _ in COLUMNS] + ["status"]))
    for cell in cells:
        job = cell.job
        named = [job.target, str(job.chains), job.library, job.kernel]
        say(" | ".join(named + (numbers(cell) if cell.runs else ["-"] * 14) + [cell.status]))


def numbers(cell: Cell) -> list[str]:
    """The figures of a line."""
    rates = [run["ess_per_second"] for run in cell.runs]
    spread = f"{statistics.median(rates):.1f} [{min(rates):.1f}, {max(rates):.1f}]"
    compiled = cell.prepared.compile_seconds if cell.prepared else 0.0
    timed = [f"{cell.median('seconds'):.2f}", f"{compiled:.1f}", spread]
    return timed + [show(cell.median(name)) for _, name, show in COLUMNS]


def record(cell: Cell) -> dict[str, Any]:
    """A cell for the JSON."""
    compiled = cell.prepared.compile_seconds if cell.prepared else None
    return {
        **cell.job._asdict(),
        "compile_seconds": compiled,
        "status": cell.status,
        "traceback": cell.traceback,
        "runs": cell.runs,
    }


def write(path: Path, results: list[dict[str, Any]]) -> None:
    """Results and where they come from, as strict JSON."""
    path.write_text(json.dumps(_strict({"about": about(), "results": results}), allow_nan=False))


def _strict(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def about() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
    }


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """As Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def say(line: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
