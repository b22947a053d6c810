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

    Several processes share the batches: given equally seeded generators all see the same
    permutations, and each takes its slice, so that the slices in the order of the ranks are the
    batch of a single process. The states of all ranks are equal, and fit any number of them.

    Args:
        data: tensor (N, ...), kept by reference and left on its device.
        batch_size: number of data in a batch of all processes together, at most N.
        generator: source of the permutations.
        rank: number of this process.
        world_size: number of processes, a divisor of ``batch_size``.
        device: where batches are to be; ``None`` leaves them beside the data. On a GPU they
            arrive while the CPU goes on.

    Raises:
        ValueError: if data has no first dimension or holds a NaN or infinity (its index is named),
            ``batch_size`` is not in 1..N or not a multiple of ``world_size``, or ``rank`` is
            not in 0..world_size - 1.

    Example:
        >>> import torch
        >>> loader = BatchLoader(torch.arange(6.0), 4, generator=torch.Generator().manual_seed(0))
        >>> next(loader).shape
        torch.Size([4])
    """

    def __init__(
        self,
        data: Tensor,
        batch_size: int,
        *,
        generator: torch.Generator,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        if data.ndim == 0:
            raise ValueError("data: expected shape (N, ...); got a scalar ()")
        check_count("batch_size", batch_size)
        if batch_size > len(data):
            raise ValueError(
                f"batch_size: expected at most the number of data, {len(data)}; got {batch_size}; "
                f"take a smaller batch"
            )
        _check_share(batch_size, rank, world_size)
        numbers = data.is_floating_point() or data.is_complex()
        self._data = check_finite("data", data) if numbers else data  # bytes are all finite
        self._batch_size = batch_size
        self._share = batch_size // world_size
        self._first = rank * self._share
        self._device = data.device if device is None else torch.device(device)
        self._generator = generator
        self._position = 0
        self._order = self._shuffle()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tensor:
        if self._position + self._batch_size > len(self._order):
            self._order, self._position = self._shuffle(), 0
        start = self._position + self._first
        self._position += self._batch_size
        return self._take(self._order[start : start + self._share])

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the batches to come: permutation, position, generator state."""
        return {
            "order": self._order.to("cpu", copy=True),
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
        self._order = state["order"].to(self._data.device, copy=True)
        self._position = state["position"]
        # A checkpoint may have been loaded to another device; generators want theirs on the CPU.
        self._generator.set_state(state["generator"].cpu())

    def _shuffle(self) -> Tensor:
        source = self._generator.device
        order = torch.randperm(len(self._data), generator=self._generator, device=source)
        return order.to(self._data.device)

    def _take(self, chosen: Tensor) -> Tensor:
        if self._device.type != "cuda" or self._data.is_cuda:
            return self._data[chosen].to(self._device)
        # Only from pinned memory does a copy run beside the CPU, and rows that are gathered
        # from a pinned tensor would not be in it. torch keeps and reuses the room once the
        # copy is done.
        shape = (len(chosen), *self._data.shape[1:])
        rows = torch.empty(shape, dtype=self._data.dtype, pin_memory=True)
        torch.index_select(self._data, 0, chosen, out=rows)
        return rows.to(self._device, non_blocking=True)


def _check_share(batch_size: int, rank: int, world_size: int) -> None:
    check_count("world_size", world_size)
    check_count("rank", rank, minimum=0)
    if rank >= world_size:
        raise ValueError(f"rank: expected one of 0..{world_size - 1}; got {rank}")
    if batch_size % world_size:
        raise ValueError(
            f"batch_size: expected a multiple of world_size, {world_size}; got {batch_size}; it is "
            "the size of all processes' batches together"
        )
