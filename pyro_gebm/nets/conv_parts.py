"""What the convolutional networks share: pyramids of resolutions, norms, activations, the floor."""

import math
from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast, final

from torch import Tensor, nn
from torch.nn import functional as F

from pyro_gebm._checks import (
    check_batch,
    check_choice,
    check_count,
    check_in_range,
    check_sizes,
)
from pyro_gebm.nets.mlp import ACTIVATIONS as SMOOTH
from pyro_gebm.nets.mlp import OUTPUTS
from pyro_gebm.nets.network import Network, NetworkSpec, OptionValue
from pyro_gebm.nets.spectral import with_spectral_norm

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    **SMOOTH,
    "relu": nn.ReLU,
    "leaky_relu_0.1": partial(nn.LeakyReLU, 0.1),
}
NORMS = ("batch", "group", "none")
WIDEST = 8
"""Channels of the widest layer over ``width``."""
_GROUPS = 8
_SMALLEST = 4


class Pyramid(NamedTuple):
    """Square images of one size, halved until the side is 4 to 7."""

    channels: int
    side: int
    """Side of the smallest feature map."""
    stages: int
    """How often it doubles on the way to the image."""


def pyramid(data_shape: Sequence[int]) -> Pyramid:
    """The pyramid of images (channels, H, W): 28 = 7·2², 32 = 4·2³, 64 = 4·2⁴.

    Raises:
        ValueError: they are not square images whose side can be halved down to 4..7.
    """
    shape = check_sizes("data_shape", data_shape)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"data_shape: expected (channels, H, W) of square images; got {tuple(shape)}; crop or "
            "resize them"
        )
    side, stages = shape[1], 0
    while side % 2 == 0 and side >= 2 * _SMALLEST:
        side, stages = side // 2, stages + 1
    if stages == 0 or not _SMALLEST <= side < 2 * _SMALLEST:
        raise ValueError(
            "data_shape: expected a side that is 4, 5, 6 or 7 times a power of 2, such as 28, 32 "
            f"or 64; got {shape[1]}; crop, pad or resize the images"
        )
    return Pyramid(shape[0], side, stages)


def widths(width: int, stages: int) -> list[int]:
    """Channels from the finest feature map to the coarsest: doubling, at most 8 times the first."""
    return [width * min(2**stage, WIDEST) for stage in range(stages + 1)]


def normed(layer: nn.Module, channels: int, norm: str, activation: str) -> list[nn.Module]:
    """A layer with ``channels`` outputs, its norm and its activation.

    A batch norm has a bias of its own: build the layer with ``bias=unnormed(norm)``.
    """
    return [layer, *norm_of(norm, channels), ACTIVATIONS[activation]()]


def norm_of(norm: str, channels: int) -> list[nn.Module]:
    """The layer of a norm, none for "none"."""
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "group":
        return [nn.GroupNorm(math.gcd(channels, _GROUPS), channels)]
    return []


def unnormed(norm: str) -> bool:
    """A layer needs a bias, for no norm behind it has one."""
    return norm == "none"


@final
class SoftFloor(nn.Module):
    """Energies (B, 1) -> (B,), kept above -floor: softplus(E + floor) - floor; as they are at 0.

    Without a lower bound a flexible energy can fall without end on data that the base misses;
    then all weights of the base are equal and it gets no gradient. (The authors' code has
    max(E, -10), which is flat below.)

    Args:
        floor: nats.
    """

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = float(floor)

    def forward(self, energy: Tensor) -> Tensor:
        """Bound energies."""
        flat = energy.squeeze(1)
        return F.softplus(flat + self.floor) - self.floor if self.floor else flat


class ImageGenerator(Network, ABC):
    """A generator made of layers in a row; subclasses are final and build these.

    Args:
        name: under which it is registered.
        options: from ``check_generator``.
        layers: from latents (B, D) to images.
    """

    def __init__(
        self, name: str, options: dict[str, OptionValue], layers: Sequence[nn.Module]
    ) -> None:
        super().__init__(NetworkSpec(name, options))
        self.latent_dim = cast(int, options["latent_dim"])
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (B, D) to images (B, channels, H, H)."""
        check_batch("z", z, (self.latent_dim,))
        return cast(Tensor, self.layers(z))


class ImageEnergy(Network, ABC):
    """An energy made of layers in a row, with spectral norm and a soft floor if asked for.

    Args:
        name: under which it is registered.
        options: from ``check_energy``.
        layers: from images to (B, 1).
    """

    def __init__(
        self, name: str, options: dict[str, OptionValue], layers: Sequence[nn.Module]
    ) -> None:
        super().__init__(NetworkSpec(name, options))
        self.data_shape = tuple(cast(list[int], options["data_shape"]))
        body = nn.Sequential(*layers)
        self.layers = with_spectral_norm(body) if options["spectral_norm"] else body
        self.bound = SoftFloor(cast(float, options["floor"]))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, H) to energies (B,)."""
        check_batch("x", x, self.data_shape)
        return cast(Tensor, self.bound(self.layers(x)))


def check_generator(
    latent_dim: int,
    data_shape: Sequence[int],
    width: int,
    norm: str,
    activation: str,
    output: str,
) -> dict[str, OptionValue]:
    """The options of a generator's spec, checked.

    Raises:
        ValueError: one is out of its range.
    """
    check_count("latent_dim", latent_dim)
    pyramid(data_shape)
    check_count("width", width)
    check_choice("norm", norm, NORMS)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("output", output, OUTPUTS)
    return {
        "latent_dim": latent_dim,
        "data_shape": list(data_shape),
        "width": width,
        "norm": norm,
        "activation": activation,
        "output": output,
    }


def check_energy(
    data_shape: Sequence[int], width: int, activation: str, spectral_norm: bool, floor: float
) -> dict[str, OptionValue]:
    """The options of an energy's spec, checked.

    Raises:
        ValueError: one is out of its range.
    """
    pyramid(data_shape)
    check_count("width", width)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("spectral_norm", spectral_norm, (False, True))
    check_in_range("floor", floor, 0.0)
    return {
        "data_shape": list(data_shape),
        "width": width,
        "activation": activation,
        "spectral_norm": spectral_norm,
        "floor": floor,
    }
