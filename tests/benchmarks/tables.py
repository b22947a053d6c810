"""Where figures come from, and how they are written."""

import importlib.metadata
import json
import math
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERSIONS = [
    *("pyro-gebm", "torch", "pyro-ppl", "numpyro", "blackjax", "jax", "torchebm", "ebmkit"),
    *("arviz", "numpy"),
]


def write(path: Path, results: list[dict[str, Any]]) -> None:
    """Results and where they come from, as strict JSON."""
    found = strict({"about": about(), "results": results})
    path.write_text(json.dumps(found, allow_nan=False))


def strict(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def about() -> dict[str, Any]:
    """Where the figures come from. The load says how busy the machine was before us."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
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


def tell(result: dict[str, Any]) -> dict[str, Any]:
    """Print a result, and hand it on."""
    shown = {key: f"{v:.3g}" if isinstance(v, float) else v for key, v in result.items()}
    say(" ".join(f"{key}={value}" for key, value in shown.items()))
    return result
