"""The run folder, its files, and JSON that appears whole or not at all."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from pyro_gebm._files import write_whole
from pyro_gebm.training.checkpoints import remove_checkpoints

PICTURES = (
    "training",
    "samples",
    "energies",
    "curves",
    "latent",
    "ranks",
    "traces",
    "autocorrelation",
    "energy_transitions",
    "compare_curves",
    "compare_occupancy",
    "compare_transitions",
)
"""All pictures that commands draw."""


@final
class RunFolder:
    """A folder that holds everything of one run, under fixed names.

    ``config.json``, ``metrics.jsonl`` (training, a line per logged step), ``flow.jsonl`` (of a
    flow's maximum likelihood), ``checkpoints/`` (of a training that can go on), ``tensorboard/``,
    ``gebm.pt``, ``idata.nc``, ``metrics.json`` (scores), ``report.html`` (the same as a page),
    pictures, ``chains.gif``, and ``compare.json`` and ``compare.html`` of a comparison.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.training_log = self.path / "metrics.jsonl"
        self.flow_log = self.path / "flow.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoint = self.path / "gebm.pt"
        self.idata = self.path / "idata.nc"
        self.metrics = self.path / "metrics.json"
        self.page = self.path / "report.html"
        self.film = self.path / "chains.gif"
        self.comparison = self.path / "compare.json"
        self.comparison_page = self.path / "compare.html"

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
        remove_checkpoints(self.checkpoints)
        for events in self.tensorboard.glob("events.out.tfevents.*"):
            events.unlink(missing_ok=True)
        products = [
            self.training_log,
            self.flow_log,
            self.checkpoint,
            self.idata,
            self.metrics,
            self.page,
        ]
        products += [self.film, self.comparison, self.comparison_page]
        for product in [*products, *map(self.picture, PICTURES)]:
            product.unlink(missing_ok=True)

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
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def write_text(path: Path, content: str) -> None:
    """Write text that appears whole or not at all."""
    write_whole(path, content.encode())
