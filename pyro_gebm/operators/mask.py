"""Inpainting: the pixels that are seen."""

from typing import final

import torch
from torch import Tensor, nn


@final
class Mask(nn.Module):
    """The observed entries of x side by side, (..., *shape) -> (..., K).

    What is not observed is not in y, so that nothing has to be filled in.

    Args:
        mask: True where x is observed, bool, of the shape of a datum.

    Raises:
        ValueError: ``mask`` is not bool, or observes nothing.

    Example:
        >>> mask = Mask(torch.tensor([[True, False], [False, True]]))
        >>> mask(torch.arange(8.0).reshape(2, 2, 2))
        tensor([[0., 3.],
                [4., 7.]])
        >>> mask.fill(torch.tensor([1.0, 2.0]), 0.0)
        tensor([[1., 0.],
                [0., 2.]])
    """

    mask: Tensor
    index: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise ValueError(
                f"mask: expected torch.bool, True where x is observed; got {mask.dtype}; write "
                "mask > 0"
            )
        if not bool(mask.any()):
            raise ValueError(
                f"mask: expected something to be observed; got False at all {mask.numel()} "
                "entries; without an observation the posterior is the GEBM itself"
            )
        self.register_buffer("mask", mask.clone())
        # Not x[mask], whose size vmap would have to read from values.
        self.register_buffer("index", mask.flatten().nonzero()[:, 0])

    @property
    def num_observed(self) -> int:
        """K."""
        return len(self.index)

    def forward(self, x: Tensor) -> Tensor:
        """The observed entries of x, in the order of memory."""
        flat = x.reshape(*batch_shape("x", x, tuple(self.mask.shape)), -1)
        return flat[..., self.index]

    def fill(self, y: Tensor, value: float = torch.nan) -> Tensor:
        """Observations (..., K) where they were made, and ``value`` elsewhere: for pictures."""
        batch = batch_shape("y", y, (self.num_observed,))
        whole = y.new_full((*batch, self.mask.numel()), value)
        whole[..., self.index] = y
        return whole.reshape(*batch, *self.mask.shape)


def batch_shape(name: str, x: Tensor, datum_shape: tuple[int, ...]) -> torch.Size:
    """The dimensions before those of a datum, or a ``ValueError``."""
    # Integer comparisons only: operators are called under vmap.
    dims = len(datum_shape)
    if x.ndim < dims or tuple(x.shape[x.ndim - dims :]) != datum_shape:
        wanted = ", ".join(["...", *map(str, datum_shape)])
        raise ValueError(f"{name}: expected shape ({wanted}); got {tuple(x.shape)}")
    return x.shape[: x.ndim - dims]
