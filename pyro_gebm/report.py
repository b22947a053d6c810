"""The run folder, its files, and the table of a comparison as text."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, final

PICTURES = ("samples", "ranks", "energies", "curves")
"""The pictures of an evaluation."""


@final
class RunFolder:
    """A folder that holds everything of one run, under fixed names.

    ``config.json``, ``metrics.jsonl`` (training, a line per logged step), ``gebm.pt``,
    ``idata.nc``, ``metrics.json`` (scores), and pictures.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.training_log = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "gebm.pt"
        self.idata = self.path / "idata.nc"
        self.metrics = self.path / "metrics.json"

    def create(self) -> None:
        """Make the folder, and see that it can be written to.

        Raises:
            ValueError: it cannot be; the message names it and says why.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ValueError(
                f"--out: cannot write to {self.path} ({error.strerror}); name another folder"
            ) from error

    def clear(self) -> None:
        """Remove what an earlier run left here, so that nothing stale stands beside new files."""
        for product in (self.training_log, self.checkpoint, self.idata, self.metrics):
            product.unlink(missing_ok=True)
        for picture in PICTURES:
            self.picture(picture).unlink(missing_ok=True)

    def read_config(self) -> dict[str, Any]:
        """The settings of the run.

        Raises:
            ValueError: the folder is not a run, or its config is damaged.
        """
        try:
            config: dict[str, Any] = json.loads(self.config.read_text())
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.path}: expected a run folder with a config.json; make one with "
                "'pyro-gebm train'"
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.config}: not JSON ({error})") from error
        return config

    def picture(self, name: str) -> Path:
        """Where the picture called ``name`` goes."""
        return self.path / f"{name}.png"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that appears whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def write_json_line(file: TextIO, record: Mapping[str, Any]) -> None:
    """Append one record to a ``.jsonl`` file."""
    file.write(json.dumps(record) + "\n")


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right.

    Example:
        >>> print(format_table(["kernel", "R-hat"], [["HMC", "1.002"], ["NUTS", "1.01"]]))
        kernel  R-hat
        -------------
        HMC     1.002
        NUTS     1.01
    """
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
