"""What every writer of figures has in common, and figures as plain numbers."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Protocol

from torch import Tensor

Figure = Tensor | float | str | None
"""A number, a tensor of one, a word, or nothing."""


class StepWriter(Protocol):
    """Takes the figures of a training step by step."""

    def write(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Note the figures of one step."""

    def truncate_after(self, step: int) -> None:
        """Forget what was written of later steps, for a training that goes on from ``step``."""

    def flush(self) -> None:
        """See all of it to the disk; to be called before a checkpoint is written."""

    def close(self) -> None:
        """Flush, and write no more."""


def plain_figure(name: str, value: Figure) -> float | str | None:
    """``value`` as a number of Python, or the word or nothing that it is.

    Raises:
        ValueError: it is something else, or a tensor of more than one number.
    """
    given: object = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if given is None or isinstance(given, bool | str):
        return given
    if isinstance(given, Integral):
        return int(given)
    if isinstance(given, Real):  # NumPy's too
        return float(given)
    shape = f" of shape {tuple(given.shape)}" if isinstance(given, Tensor) else ""
    raise ValueError(
        f"{name}: expected one number, text or None; got a {type(given).__name__}{shape}"
    )
