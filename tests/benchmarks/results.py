"""The JSON that keeps everything, cell by cell, so that a later call goes on where one stopped."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from jobs import Job
from tables import about, strict

Cell = dict[str, Any]
"""A job's fields, what it cost to prepare, its runs, and what went wrong."""


class Results:
    """What is in the file, and what comes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        empty: dict[str, Any] = {"sessions": [], "cells": {}, "training": []}
        self.data = json.loads(path.read_text()) if path.exists() else empty
        self.data["sessions"].append(about())

    def cell(self, job: Job) -> Cell:
        """The cell of a job, made if there is none."""
        fresh = {**job._asdict(), "once_seconds": None, "error": "", "traceback": "", "runs": []}
        return self.data["cells"].setdefault(job.key, fresh)

    def prepared(self, job: Job, answer: dict[str, Any]) -> bool:
        """Note what it cost to prepare a job; false if that failed."""
        if "error" in answer or self.cell(job)["once_seconds"] is None:
            self.cell(job).update(answer)
        self.write()
        return "error" not in answer

    def add(self, job: Job, answer: dict[str, Any]) -> None:
        """Note a run, or what went wrong with it."""
        if "error" in answer:
            self.cell(job).update(answer)
        else:
            session = len(self.data["sessions"]) - 1
            self.cell(job)["runs"].append({**answer, "session": session})
        self.write()

    def write(self) -> None:
        """As strict JSON, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(strict(self.data), allow_nan=False, indent=1))
        beside.replace(self.path)


def status(cell: Cell) -> str:
    """ "ok", what is wrong with the runs, or why there are none."""
    verdicts = sorted({run["verdict"] for run in cell["runs"]} - {"ok"})
    return cell["error"] or ", ".join(verdicts) or ("ok" if cell["runs"] else "not run")


def median(cell: Cell, name: str) -> float:
    """Over the runs; NaN where there is no such figure."""
    values = [run[name] for run in cell["runs"] if run.get(name) is not None]
    return statistics.median(values) if values else math.nan


def spread(cell: Cell, name: str) -> tuple[float, float]:
    """Least and largest over the runs."""
    values = [run[name] for run in cell["runs"] if run.get(name) is not None]
    return (min(values), max(values)) if values else (math.nan, math.nan)
