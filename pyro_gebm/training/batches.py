"""What a loader may yield, and how it is read without end."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from torch import Tensor

Batch: TypeAlias = Tensor | Sequence[Any]
"""Data (B, ...), or a sequence whose first item they are, as a torch ``DataLoader`` yields."""


def endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a loader, started again whenever it ends.

    Raises:
        ValueError: it has none.
    """
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError("loader: expected at least one batch; got none, or a used-up iterator")


def data_of(batch: Batch) -> Tensor:
    """The data of a batch, without labels or what else comes behind them.

    Raises:
        ValueError: they are not a tensor.
    """
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        raise ValueError(
            f"loader: expected tensors, or tuples or lists that start with one; got "
            f"{type(x).__name__}"
        )
    return x
