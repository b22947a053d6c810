"""The networks of DCGAN, for images of 28, 32 or 64 pixels; narrow ones train on a CPU."""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from torch import nn

from pyro_gebm._checks import check_count
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
@register("dcgan_generator")
class DCGANGenerator(ImageGenerator):
    """Generator z (B, D) -> x (B, channels, H, H) of DCGAN (Radford, Metz and Chintala, 2016).

    A linear layer to the smallest feature map (7 x 7 for 28 pixels, 4 x 4 for 32 and 64), then
    transposed convolutions of stride 2, each with a norm and an activation but for the last.

    Args:
        latent_dim: D.
        data_shape: (channels, H, H); H is 4, 5, 6 or 7 times a power of 2.
        width: channels before the last layer; they double towards the smallest map, up to 8 times.
        norm: "batch" (statistics of the batch in train mode, fixed ones in eval mode), "group"
            or "none", which never couple rows.
        activation: relu, leaky_relu (slope 0.2), leaky_relu_0.1, silu, softplus, gelu or tanh.
            Smooth ones suit samplers that follow the gradient of E(G(z)).
        output: tanh for data scaled to [-1, 1], identity for unbounded data.
        hidden: units of a hidden layer between the latents and the smallest feature map, with
            the activation and no norm; 0 for none.

    Raises:
        ValueError: for a bad option; on a call, if z is not (B, latent_dim).

    Example:
        >>> import torch
        >>> DCGANGenerator(16, (1, 28, 28), width=4)(torch.zeros(3, 16)).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Sequence[int],
        width: int = 64,
        norm: str = "batch",
        activation: str = "relu",
        output: str = "tanh",
        hidden: int = 0,
    ) -> None:
        options = check_generator(latent_dim, data_shape, width, norm, activation, output)
        options["hidden"] = check_count("hidden", hidden, minimum=0)
        channels, side, stages = pyramid(data_shape)
        sizes = widths(width, stages - 1)[::-1]
        biased = unnormed(norm)
        layers = _hidden(latent_dim, hidden, activation)
        layers.append(nn.Linear(hidden or latent_dim, sizes[0] * side * side, bias=biased))
        layers += normed(nn.Unflatten(1, (sizes[0], side, side)), sizes[0], norm, activation)
        for wide, narrow in pairwise(sizes):
            up = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=biased)
            layers += normed(up, narrow, norm, activation)
        layers.append(nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1))
        super().__init__("dcgan_generator", options, [*layers, OUTPUTS[output]()])


@final
@register("dcgan_energy")
class DCGANEnergy(ImageEnergy):
    """Energy x (B, channels, H, H) -> (B,) after DCGAN's discriminator, without its batch norm.

    Convolutions of stride 2 down to the smallest feature map, then one linear layer. Batch norm
    would couple the rows, and has no place beside a gradient penalty. At 28 pixels a unit of the
    smallest map sees 10 pixels across, so that only a hidden layer behind it sees a whole digit.

    Args:
        data_shape: (channels, H, H); H is 4, 5, 6 or 7 times a power of 2.
        width: channels of the first layer; they double from layer to layer, up to 8 times.
        activation: as in ``DCGANGenerator``.
        spectral_norm: divide each layer's weight by its spectral norm; see ``with_spectral_norm``.
        floor: soft lower bound, softplus(E + floor) - floor, in nats; 0 for none.
        hidden: units of a hidden layer before the last; 0 for none.

    Raises:
        ValueError: for a bad option; on a call, if x is not (B, *data_shape).

    Example:
        >>> import torch
        >>> DCGANEnergy((1, 28, 28), width=4)(torch.zeros(3, 1, 28, 28)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        width: int = 64,
        activation: str = "leaky_relu",
        spectral_norm: bool = False,
        floor: float = 0.0,
        hidden: int = 0,
    ) -> None:
        options = check_energy(data_shape, width, activation, spectral_norm, floor)
        options["hidden"] = check_count("hidden", hidden, minimum=0)
        channels, side, stages = pyramid(data_shape)
        layers: list[nn.Module] = []
        before = channels
        for after in widths(width, stages - 1):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), ACTIVATIONS[activation]()]
            before = after
        flat = before * side * side
        layers += [nn.Flatten(), *_hidden(flat, hidden, activation)]
        super().__init__("dcgan_energy", options, [*layers, nn.Linear(hidden or flat, 1)])


def _hidden(fan_in: int, units: int, activation: str) -> list[nn.Module]:
    """A linear layer and its activation, or nothing for no units."""
    return [nn.Linear(fan_in, units), ACTIVATIONS[activation]()] if units else []
