"""The checkpoints of one training: the last few and the best, in one folder."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

from pyro_gebm._checks import check_count
from pyro_gebm.training import container
from pyro_gebm.training.container import CheckpointError

NAME = re.compile(r"checkpoint-(\d+)\.pt")
PARTS = {"state", "step", "metrics"}


class Checkpoint(NamedTuple):
    """One checkpoint, read."""

    path: Path
    step: int
    metrics: dict[str, float]
    """What was measured at that step."""
    state: dict[str, Any]
    """What ``Trainer.load_state_dict`` takes, tensors on the CPU."""


@final
class Checkpoints:
    """Writes the state of a training every now and then, and finds the newest and the best.

    A file ``checkpoint-00001200.pt`` holds the state after 1,200 steps and its metrics. It
    appears whole or not at all, so a training that is killed at any moment resumes from the
    newest. Opening reads every file there is: damaged ones are named in a warning, left where
    they are and never counted. One training writes to a folder at a time; others may read there.

    Args:
        folder: where the files are; made when the first is written.
        keep: number of newest checkpoints to keep, besides the best.
        metric: name of the figure that decides which is best.
        larger_is_better: whether its largest value is best, or its smallest. Of equal values the
            earliest is best; one that is not finite never is.

    Raises:
        ValueError: ``keep`` is not a whole number >= 1.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder, keep=1)
        ...     for step, bound in [(10, 0.5), (20, 0.7), (30, 0.6)]:
        ...         _ = checkpoints.save({"w": torch.ones(2)}, step, {"held_out_bound": bound})
        ...     again = Checkpoints(folder, keep=1)
        ...     again.latest().step, again.best().step
        ...     sorted(file.name for file in again.folder.iterdir())
        (30, 20)
        ['checkpoint-00000020.pt', 'checkpoint-00000030.pt']
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 3,
        metric: str = "held_out_bound",
        larger_is_better: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self._keep = check_count("keep", keep)
        self._metric = metric
        self._sign = 1.0 if larger_is_better else -1.0
        # Metrics of the whole files, by step. They stand in the files: no index to fall behind.
        self._metrics: dict[int, dict[str, float]] = {}
        self._look()

    def save(self, state: dict[str, Any], step: int, metrics: Mapping[str, float]) -> Path:
        """Write a checkpoint, then remove those that are neither among the last nor the best.

        Args:
            state: plain data and tensors.
            step: steps done by the whole training. The newest step may be written again, as by
                Ctrl-C right after a checkpoint; metrics it already had are kept.
            metrics: what was measured at this step, ``metric`` among it; or nothing.

        Returns:
            The file.

        Raises:
            ValueError: ``step`` is before the newest checkpoint, ``metrics`` lack ``metric``, or
                the state holds more than plain data.
            OSError: the file cannot be written; the older ones are all there.
        """
        self._check(step, metrics)
        measured = {**self._metrics.get(step, {}), **_numbers(metrics)}
        content = {"state": state, "step": int(step), "metrics": measured}
        self.folder.mkdir(parents=True, exist_ok=True)
        # Left by writers that were killed. Not at opening: a reader must not take a live one away.
        for leftover in _leftovers(self.folder):
            leftover.unlink(missing_ok=True)
        container.write(self._path(step), content, "training")
        self._metrics[int(step)] = measured
        self._prune()
        return self._path(step)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; ``None`` if there is no file.

        A file that is damaged is named in a warning, and the next older one is taken.

        Raises:
            CheckpointError: there are files, and all of them are damaged.
        """
        files = self._look()
        found = self._first_whole(sorted(self._metrics, reverse=True))
        if found is None and files:
            raise CheckpointError(
                f"{self.folder}: all checkpoints are damaged ("
                f"{', '.join(path.name for _, path in sorted(files.items()))}); "
                "take copies of them, or train anew into another folder"
            )
        return found

    def best(self) -> Checkpoint | None:
        """The whole checkpoint of the best metric; ``None`` if none has a finite one."""
        self._look()
        return self._first_whole(self._ranking())

    @staticmethod
    def load(path: str | Path) -> Checkpoint:
        """Read one file.

        Raises:
            CheckpointError: the file is damaged, or not the checkpoint of a training.
            OSError: the file cannot be read.
        """
        content = container.read(path, "training", PARTS)
        return Checkpoint(Path(path), content["step"], content["metrics"], content["state"])

    def discard_after(self, step: int) -> None:
        """Remove every file after ``step``, damaged ones too: for a training that goes on there.

        The best may be among them; copy it first if it is to stay.
        """
        check_count("step", step, 0)
        for later, path in _files(self.folder).items():
            if later > step:
                path.unlink(missing_ok=True)
                self._metrics.pop(later, None)

    def _check(self, step: int, metrics: Mapping[str, float]) -> None:
        check_count("step", step, 0)
        newest = max(self._metrics, default=0)
        if step < newest:
            raise ValueError(
                f"step: expected {newest}, the newest checkpoint in {self.folder}, or later; got "
                f"{step}; after resuming from an older one call discard_after with its step"
            )
        if metrics and self._metric not in metrics:
            raise ValueError(
                f"metrics: expected {self._metric!r}, which decides the best, among them; got "
                f"{', '.join(metrics)}; pass Checkpoints(..., metric=...) one of these, or no "
                "metrics where nothing was measured"
            )

    def _prune(self) -> None:
        kept = {*sorted(self._metrics)[-self._keep :], *self._ranking()[:1]}
        for step in self._metrics.keys() - kept:
            self._path(step).unlink(missing_ok=True)
            del self._metrics[step]

    def _ranking(self) -> list[int]:
        """The steps that have a finite metric, the best first."""
        values = {
            step: self._sign * metrics[self._metric]
            for step, metrics in self._metrics.items()
            if math.isfinite(metrics.get(self._metric, math.nan))
        }
        return sorted(values, key=lambda step: (-values[step], step))

    def _look(self) -> dict[int, Path]:
        """All files by step; those not met whole before are read."""
        files = _files(self.folder)
        for step in sorted(files.keys() - self._metrics.keys()):
            found = self._read(step)
            if found is not None:
                self._metrics[step] = found.metrics
        return files

    def _first_whole(self, steps: Iterable[int]) -> Checkpoint | None:
        for step in steps:
            found = self._read(step)
            if found is not None:
                return found
            del self._metrics[step]  # damaged or gone since it was met
        return None

    def _read(self, step: int) -> Checkpoint | None:
        try:
            return self.load(self._path(step))
        except CheckpointError as error:
            warnings.warn(f"skipped a checkpoint: {error}", UserWarning, stacklevel=4)
        except FileNotFoundError:
            pass  # a training that writes here has removed it meanwhile
        return None

    def _path(self, step: int) -> Path:
        return self.folder / _name(step)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a folder unread, and the folder if nothing else is in it."""
    for file in [*_files(folder).values(), *_leftovers(folder)]:
        file.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _files(folder: Path) -> dict[int, Path]:
    """The checkpoints there are, by step."""
    matches = ((path, NAME.fullmatch(path.name)) for path in folder.glob("checkpoint-*.pt"))
    steps = {int(match[1]): path for path, match in matches if match}
    return {step: path for step, path in steps.items() if path.name == _name(step)}


def _name(step: int) -> str:
    return f"checkpoint-{step:08d}.pt"


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in metrics.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"metrics: expected one number under each name ({error})") from error


def _leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".checkpoint-*.pt.*.part"))
