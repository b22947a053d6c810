"""Peak resident memory of this process, as Linux counts it."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")


def settle() -> float:
    """Give free memory back, forget the peak so far; MiB that are resident now, else NaN."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    return _read("VmRSS")


def peak() -> float:
    """MiB: the most that were resident since ``settle``; NaN where Linux does not say."""
    return _read("VmHWM")


def _read(name: str) -> float:
    if not STATUS.exists():
        return float("nan")
    return int(STATUS.read_text().split(f"{name}:")[1].split()[0]) / 1024
