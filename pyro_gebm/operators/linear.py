"""Linear operators on images and vectors: blur, downsampling, random projections."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_gebm._checks import check_choice, check_count, check_in_range, check_sizes
from pyro_gebm.operators.mask import batch_shape

PADDINGS = ("reflect", "replicate", "zeros", "valid")
WIDTHS = 3.0
"""Standard deviations to either side after which the kernel is cut."""


@final
class Blur(nn.Module):
    """Convolution of every channel with a Gaussian, (..., C, H, W) -> (..., C, H', W').

    The kernel is exp(-k²/(2 σ²)) at whole k, cut at ``radius`` and normalised to sum 1, along
    rows and columns. Beyond the border stands what ``padding`` says; with "valid" there is no
    border, and H' = H - 2 radius, W' = W - 2 radius. Otherwise H' = H and W' = W.

    Args:
        sigma: σ in pixels, > 0.
        radius: pixels to either side of the middle; ``None`` is 3 σ, rounded up.
        padding: "reflect" (without repeating the border), "replicate", "zeros" or "valid".

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> Blur(1.0, radius=1, padding="zeros")(torch.ones(1, 3, 3))
        tensor([[[0.5270, 0.7259, 0.5270],
                 [0.7259, 1.0000, 0.7259],
                 [0.5270, 0.7259, 0.5270]]])
    """

    weights: Tensor

    def __init__(self, sigma: float, radius: int | None = None, padding: str = "reflect") -> None:
        super().__init__()
        check_in_range("sigma", sigma, 0.0, open_low=True)
        self.padding = check_choice("padding", padding, PADDINGS)
        reach = math.ceil(WIDTHS * sigma) if radius is None else check_count("radius", radius)
        self.sigma, self.radius = float(sigma), reach
        steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weights = torch.softmax(-0.5 * (steps / sigma).square(), 0)
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        """The blurred images.

        Raises:
            ValueError: x has no (C, H, W), or is smaller than the kernel allows.
        """
        self._check(x)
        flat = x.reshape(-1, 1, *x.shape[-2:])
        if self.padding != "valid":
            mode = "constant" if self.padding == "zeros" else self.padding
            flat = functional.pad(flat, 4 * [self.radius], mode=mode)
        weights = self.weights.to(x)
        flat = functional.conv2d(flat, weights[None, None, :, None])
        flat = functional.conv2d(flat, weights[None, None, None, :])
        return flat.reshape(*x.shape[:-2], *flat.shape[-2:])

    def _check(self, x: Tensor) -> None:
        least = {"reflect": self.radius + 1, "valid": 2 * self.radius + 1}.get(self.padding, 1)
        if x.ndim < 3 or min(x.shape[-2:]) < least:
            raise ValueError(
                f"x: expected images (..., C, H, W) of at least {least} x {least} pixels for "
                f"radius {self.radius} and padding {self.padding!r}; got {tuple(x.shape)}"
            )


@final
class Downsample(nn.Module):
    """Means over blocks of ``factor`` x ``factor`` pixels, (..., H, W) -> (..., H/f, W/f).

    Raises:
        ValueError: ``factor`` is not a whole number >= 1.

    Example:
        >>> Downsample(2)(torch.arange(16.0).reshape(1, 4, 4))
        tensor([[[ 2.5000,  4.5000],
                 [10.5000, 12.5000]]])
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = check_count("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """The smaller images.

        Raises:
            ValueError: the sides of x are no multiples of ``factor``.
        """
        f = self.factor
        if x.ndim < 2 or x.shape[-2] % f or x.shape[-1] % f:
            raise ValueError(
                f"x: expected (..., H, W) with H and W multiples of {f}; got {tuple(x.shape)}; "
                "crop it, or take another factor"
            )
        height, width = x.shape[-2] // f, x.shape[-1] // f
        return x.reshape(*x.shape[:-2], height, f, width, f).mean((-3, -1))


@final
class RandomProjection(nn.Module):
    """Compressed sensing: y = A x, A_ij ~ N(0, 1/m), (..., *shape) -> (..., m).

    |y|² is |x|² on average over A.

    Args:
        shape: of a datum.
        num_measurements: m.
        generator: source of A; the same seed gives the same A.

    Raises:
        ValueError: ``shape`` or ``num_measurements`` are no sizes.

    Example:
        >>> seeded = torch.Generator().manual_seed(0)
        >>> RandomProjection((1, 8, 8), 16, generator=seeded)(torch.ones(3, 1, 8, 8)).shape
        torch.Size([3, 16])
    """

    matrix: Tensor

    def __init__(
        self, shape: Sequence[int], num_measurements: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.shape = tuple(check_sizes("shape", shape, 1))
        check_count("num_measurements", num_measurements)
        size = (num_measurements, math.prod(self.shape))
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", noise / math.sqrt(num_measurements))

    def forward(self, x: Tensor) -> Tensor:
        """The measurements."""
        flat = x.reshape(*batch_shape("x", x, self.shape), -1)
        y: Tensor = flat @ self.matrix.T.to(x)
        return y
