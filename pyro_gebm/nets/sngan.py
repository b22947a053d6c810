"""The convolutional networks of SNGAN, in the form of the paper's experiments."""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from torch import nn

from pyro_gebm.nets.conv_parts import (
    ACTIVATIONS,
    ImageEnergy,
    ImageGenerator,
    check_energy,
    check_generator,
    normed,
    pyramid,
    unnormed,
    widths,
)
from pyro_gebm.nets.mlp import OUTPUTS
from pyro_gebm.nets.network import register


@final
@register("sngan_generator")
class SNGANGenerator(ImageGenerator):
    """Generator z (B, D) -> x (B, channels, H, H): SNGAN's ConvNet (Miyato et al., 2018, table 3).

    A linear layer to the smallest feature map, transposed convolutions of stride 2, and a 3 x 3
    convolution to the image. With D = 100 and the usual width it has 3.58 million parameters at
    32 x 32, as the paper's.

    Args:
        latent_dim: D.
        data_shape: (channels, H, H); H is 4, 5, 6 or 7 times a power of 2.
        width: channels of the finest feature map; they double towards the smallest, up to 8 times.
        norm: "batch", "group" or "none"; as in ``DCGANGenerator``.
        activation: relu, leaky_relu (slope 0.2), leaky_relu_0.1, silu, softplus, gelu or tanh.
        output: tanh for data scaled to [-1, 1], identity for unbounded data.

    Raises:
        ValueError: for a bad option; on a call, if z is not (B, latent_dim).

    Example:
        >>> network = SNGANGenerator(100, (3, 32, 32))
        >>> sum(parameter.numel() for parameter in network.parameters())
        3575363
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Sequence[int],
        width: int = 64,
        norm: str = "batch",
        activation: str = "relu",
        output: str = "tanh",
    ) -> None:
        options = check_generator(latent_dim, data_shape, width, norm, activation, output)
        channels, side, stages = pyramid(data_shape)
        sizes = widths(width, stages)[::-1]
        biased = unnormed(norm)
        first = nn.Linear(latent_dim, sizes[0] * side * side, bias=biased)
        start = nn.Unflatten(1, (sizes[0], side, side))
        layers = [first, *normed(start, sizes[0], norm, activation)]
        for wide, narrow in pairwise(sizes):
            up = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=biased)
            layers += normed(up, narrow, norm, activation)
        layers.append(nn.Conv2d(width, channels, 3, padding=1))
        super().__init__("sngan_generator", options, [*layers, OUTPUTS[output]()])


@final
@register("sngan_energy")
class SNGANEnergy(ImageEnergy):
    """Energy x (B, channels, H, H) -> (B,): SNGAN's ConvNet, as wide as in the paper's experiments.

    A 3 x 3 convolution; for each halving a 4 x 4 one of stride 2, which doubles the channels, and
    a 3 x 3 one; a linear layer. 5.86 million parameters at 32 x 32, as the paper's. (In Miyato et
    al. the 3 x 3 ones double them, which makes 2.94 million.)

    Args:
        data_shape: (channels, H, H); H is 4, 5, 6 or 7 times a power of 2.
        width: channels of the first layer; they double at each halving, up to 8 times.
        activation: as in ``SNGANGenerator``.
        spectral_norm: divide each layer's weight by its spectral norm; see ``with_spectral_norm``.
        floor: soft lower bound, softplus(E + floor) - floor, in nats; 0 for none.

    Raises:
        ValueError: for a bad option; on a call, if x is not (B, *data_shape).

    Example:
        >>> network = SNGANEnergy((3, 32, 32))
        >>> sum(parameter.numel() for parameter in network.parameters())
        5860865
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        width: int = 64,
        activation: str = "leaky_relu_0.1",
        spectral_norm: bool = True,
        floor: float = 0.0,
    ) -> None:
        options = check_energy(data_shape, width, activation, spectral_norm, floor)
        channels, side, stages = pyramid(data_shape)
        act = ACTIVATIONS[activation]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), act()]
        sizes = widths(width, stages)
        for narrow, wide in pairwise(sizes):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), act()]
            layers += [nn.Conv2d(wide, wide, 3, padding=1), act()]
        layers += [nn.Flatten(), nn.Linear(sizes[-1] * side * side, 1)]
        super().__init__("sngan_energy", options, layers)
