"""Figures for TensorBoard, where it is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from pyro_gebm._checks import check_count
from pyro_gebm.report.writer import Figure, plain_figure

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@final
class TensorBoardLog:
    """Writes every number of a step as a scalar of its name; text and ``None`` are left out.

    Args:
        folder: where the event files go, to be shown by ``tensorboard --logdir``.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._writer = _open(self._folder)

    def write(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Note the numbers of one step.

        Raises:
            ValueError: a figure is neither a number, nor text or ``None``.
        """
        for name, value in figures.items():
            plain = plain_figure(name, value)
            if plain is not None and not isinstance(plain, str):
                self._writer.add_scalar(name, plain, step)

    def truncate_after(self, step: int) -> None:
        """Tell TensorBoard to show nothing of later steps that was written until now."""
        check_count("step", step, 0)
        self.close()
        self._writer = _open(self._folder, purge_step=step + 1)

    def flush(self) -> None:
        """See all of it to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush, and write no more."""
        self._writer.close()


def _open(folder: Path, purge_step: int | None = None) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard: expected the package of that name; got none that can be imported "
            f"({error}); pip install tensorboard, or do without its event files"
        ) from error
    return SummaryWriter(str(folder), purge_step=purge_step)
