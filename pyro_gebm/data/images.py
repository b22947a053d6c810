"""Batches of images that are kept as bytes."""

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_choice, check_count, check_dims
from pyro_gebm.data.loader import BatchLoader


def scale_pixels(
    pixels: Tensor, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Bytes 0..255 to numbers in [-1, 1], x = p/127.5 - 1, on the device asked for.

    Args:
        pixels: uint8, any shape.
        device: where the numbers are to be; ``None`` leaves them beside the bytes.
        dtype: floating-point.

    Returns:
        Numbers of the same shape.

    Raises:
        ValueError: the pixels are not uint8.

    Example:
        >>> scale_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([-1.0000, -0.6000,  1.0000])
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"pixels: expected uint8, 0 to 255; got {pixels.dtype}; scaled images need no scaling"
        )
    # The bytes travel, a quarter of the numbers.
    return pixels.to(device).to(dtype) / 127.5 - 1


def scaled(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Data as networks see them: bytes scaled, numbers as they are."""
    return scale_pixels(x, dtype=dtype) if x.dtype == torch.uint8 else x


@final
class ImageLoader:
    """Endless shuffled batches (batch_size, C, H, W) in [-1, 1] of images kept as bytes.

    The order, the state and the shares of processes are those of ``BatchLoader``. Bytes are moved
    to the device, scaled and, if asked for, flipped left to right there, each image with
    probability 1/2 each time it is seen. Flips belong to the state too, and all processes draw
    those of the whole batch, so that their slices are still the batch of a single process.

    Args:
        pixels: uint8 (N, C, H, W), kept by reference.
        batch_size: number of images in a batch of all processes together, at most N.
        generator: source of the permutations; the flips have a stream of their own, whose seed
            it gives.
        flip: mirror at random; right for scenes and faces, wrong for digits and letters.
        rank: number of this process.
        world_size: number of processes, a divisor of ``batch_size``.
        device: where batches are to be; ``None`` leaves them beside the pixels.
        dtype: of the batches.

    Raises:
        ValueError: the pixels are not uint8 (N, C, H, W), or as in ``BatchLoader``.

    Example:
        >>> pixels = torch.full((6, 1, 2, 2), 255, dtype=torch.uint8)
        >>> loader = ImageLoader(pixels, 4, generator=torch.Generator().manual_seed(0))
        >>> batch = next(loader)
        >>> batch.shape, batch.unique()
        (torch.Size([4, 1, 2, 2]), tensor([1.]))
    """

    def __init__(
        self,
        pixels: Tensor,
        batch_size: int,
        *,
        generator: torch.Generator,
        flip: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_dims("pixels", pixels, 4, "(N, C, H, W)")
        scale_pixels(pixels[:0])  # refuses what is not bytes
        check_choice("flip", flip, (False, True))
        check_count("batch_size", batch_size)
        check_count("world_size", world_size)
        self._flip, self._dtype = flip, dtype
        self._flips = _spawned(generator)
        self._batch_size, share = batch_size, batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        self._batches = BatchLoader(
            pixels,
            batch_size,
            generator=generator,
            rank=rank,
            world_size=world_size,
            device=device,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tensor:
        x = scale_pixels(next(self._batches), dtype=self._dtype)
        if not self._flip:
            return x
        flipped = torch.rand(self._batch_size, generator=self._flips) < 0.5
        mine = flipped[self._mine].to(x.device, non_blocking=True)
        return torch.where(mine[:, None, None, None], x.flip(-1), x)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the batches to come: those of the bytes, and the flips."""
        return {"batches": self._batches.state_dict(), "flips": self._flips.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the loader that gave ``state`` stood; the pixels must be the same.

        Raises:
            ValueError: if the state was made for another number of images.
        """
        self._batches.load_state_dict(state["batches"])
        # A checkpoint may have been loaded to another device; generators want theirs on the CPU.
        self._flips.set_state(state["flips"].cpu())


def _spawned(generator: torch.Generator) -> torch.Generator:
    """A stream on the CPU, seeded by another."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))
