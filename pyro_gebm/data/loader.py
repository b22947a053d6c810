"""Endless shuffled batches of a tensor that fits in memory."""

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_count, check_finite


@final
class BatchLoader:
    """Endless iterator over shuffled batches (batch_size, ...) of an in-memory tensor.

    Each epoch is a fresh permutation, taken without replacement. A last short batch is dropped;
    the next permutation makes sure that it is not always the same data. The state can be saved
    and restored, so that a resumed training sees the very same batches.

    Args:
        data: tensor (N, ...), kept by reference and left on its device.
        batch_size: number of data in a batch, at most N.
        generator: source of the permutations.

    Raises:
        ValueError: if data has no first dimension or holds a NaN or infinity (its index is named),
            or ``batch_size`` is not in 1..N.

    Example:
        >>> import torch
        >>> loader = BatchLoader(torch.arange(6.0), 4, generator=torch.Generator().manual_seed(0))
        >>> next(loader).shape
        torch.Size([4])
    """

    def __init__(self, data: Tensor, batch_size: int, *, generator: torch.Generator) -> None:
        if data.ndim == 0:
            raise ValueError("data: expected shape (N, ...); got a scalar ()")
        check_count("batch_size", batch_size)
        if batch_size > len(data):
            raise ValueError(
                f"batch_size: expected at most the number of data, {len(data)}; got {batch_size}; "
                f"take a smaller batch"
            )
        self._data = check_finite("data", data)
        self._batch_size = batch_size
        self._generator = generator
        self._position = 0
        self._order = self._shuffle()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tensor:
        if self._position + self._batch_size > len(self._order):
            self._order, self._position = self._shuffle(), 0
        chosen = self._order[self._position : self._position + self._batch_size]
        self._position += self._batch_size
        return self._data[chosen.to(self._data.device)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the batches to come: permutation, position, generator state."""
        return {
            "order": self._order.clone(),
            "position": self._position,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the loader that gave ``state`` stood; the data must be the same.

        Raises:
            ValueError: if the state was made for another number of data.
        """
        if len(state["order"]) != len(self._data):
            raise ValueError(
                f"state: expected a state for {len(self._data)} data; got one for "
                f"{len(state['order'])}; load the data the run was started with"
            )
        self._order = state["order"].clone()
        self._position = state["position"]
        self._generator.set_state(state["generator"])

    def _shuffle(self) -> Tensor:
        source = self._generator.device
        return torch.randperm(len(self._data), generator=self._generator, device=source)
