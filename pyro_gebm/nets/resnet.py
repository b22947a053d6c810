"""The residual networks of SNGAN."""

from collections.abc import Sequence
from typing import cast, final

from torch import Tensor, nn
from torch.nn import functional as F

from pyro_gebm.nets.conv_parts import (
    ACTIVATIONS,
    ImageEnergy,
    ImageGenerator,
    check_energy,
    check_generator,
    norm_of,
    pyramid,
    unnormed,
)
from pyro_gebm.nets.mlp import OUTPUTS
from pyro_gebm.nets.network import register

_LEAST_SIDE = 8
_PLAIN_BLOCKS = 2


@final
@register("resnet_generator")
class ResNetGenerator(ImageGenerator):
    """Generator z (B, D) -> x (B, channels, H, H): SNGAN's ResNet (Miyato et al., 2018, table 4).

    A linear layer to the smallest feature map, one residual block for each doubling, norm,
    activation and a 3 x 3 convolution. With D = 100 and the usual width it has 1.10 million
    parameters at 32 x 32, as the paper's.

    Args:
        latent_dim: D.
        data_shape: (channels, H, H); H is 4, 5, 6 or 7 times a power of 2.
        width: channels of all feature maps.
        norm: "batch", "group" or "none"; as in ``DCGANGenerator``.
        activation: relu, leaky_relu (slope 0.2), leaky_relu_0.1, silu, softplus, gelu or tanh.
        output: tanh for data scaled to [-1, 1], identity for unbounded data.

    Raises:
        ValueError: for a bad option; on a call, if z is not (B, latent_dim).

    Example:
        >>> network = ResNetGenerator(100, (3, 32, 32))
        >>> sum(parameter.numel() for parameter in network.parameters())
        1097219
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Sequence[int],
        width: int = 128,
        norm: str = "batch",
        activation: str = "relu",
        output: str = "tanh",
    ) -> None:
        options = check_generator(latent_dim, data_shape, width, norm, activation, output)
        channels, side, stages = pyramid(data_shape)
        layers = [
            nn.Linear(latent_dim, width * side * side),
            nn.Unflatten(1, (width, side, side)),
            *(_UpBlock(width, norm, activation) for _ in range(stages)),
            *norm_of(norm, width),
            ACTIVATIONS[activation](),
            nn.Conv2d(width, channels, 3, padding=1),
            OUTPUTS[output](),
        ]
        super().__init__("resnet_generator", options, layers)


@final
@register("resnet_energy")
class ResNetEnergy(ImageEnergy):
    """Energy x (B, channels, H, H) -> (B,): SNGAN's ResNet (Miyato et al., 2018, table 4).

    Residual blocks that halve the side down to 8 or less (one at least), two that keep it,
    activation, mean over pixels, a linear layer. 1.05 million parameters at 32 x 32, as the
    paper's.

    Args:
        data_shape: (channels, H, H); H is 4, 5, 6 or 7 times a power of 2.
        width: channels of all feature maps.
        activation: as in ``ResNetGenerator``.
        spectral_norm: divide each layer's weight by its spectral norm; see ``with_spectral_norm``.
            A block adds two paths, so that the network's slope is not bounded by 1.
        floor: soft lower bound, softplus(E + floor) - floor, in nats; 0 for none.

    Raises:
        ValueError: for a bad option; on a call, if x is not (B, *data_shape).

    Example:
        >>> network = ResNetEnergy((3, 32, 32))
        >>> sum(parameter.numel() for parameter in network.parameters())
        1053825
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        width: int = 128,
        activation: str = "relu",
        spectral_norm: bool = True,
        floor: float = 0.0,
    ) -> None:
        options = check_energy(data_shape, width, activation, spectral_norm, floor)
        channels, side, stages = pyramid(data_shape)
        full = side * 2**stages
        halvings = max(1, sum(full // 2**stage > _LEAST_SIDE for stage in range(stages)))
        layers = [
            _FirstBlock(channels, width, activation),
            *(_Block(width, activation, halve=True) for _ in range(halvings - 1)),
            *(_Block(width, activation, halve=False) for _ in range(_PLAIN_BLOCKS)),
            ACTIVATIONS[activation](),
            nn.AvgPool2d(full // 2**halvings),
            nn.Flatten(),
            nn.Linear(width, 1),
        ]
        super().__init__("resnet_energy", options, layers)


@final
class _UpBlock(nn.Module):
    """Doubles the side: nearest neighbours on both paths, two 3 x 3 convolutions on one."""

    def __init__(self, width: int, norm: str, activation: str) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *norm_of(norm, width),
            ACTIVATIONS[activation](),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1, bias=unnormed(norm)),
            *norm_of(norm, width),
            ACTIVATIONS[activation](),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, H) to (B, C, 2H, 2H)."""
        return F.interpolate(x, scale_factor=2.0) + cast(Tensor, self.path(x))


@final
class _FirstBlock(nn.Module):
    """From the image to half its side; no activation on the raw pixels."""

    def __init__(self, channels: int, width: int, activation: str) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(width, width, 3, padding=1),
            nn.AvgPool2d(2),
        )
        self.bypass = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, H) to (B, C, H/2, H/2)."""
        return cast(Tensor, self.path(x)) + cast(Tensor, self.bypass(x))


@final
class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a bypass, which has a 1 x 1 one where the side is halved."""

    def __init__(self, width: int, activation: str, *, halve: bool) -> None:
        super().__init__()
        end: list[nn.Module] = [nn.AvgPool2d(2)] if halve else []
        self.path = nn.Sequential(
            ACTIVATIONS[activation](),
            nn.Conv2d(width, width, 3, padding=1),
            ACTIVATIONS[activation](),
            nn.Conv2d(width, width, 3, padding=1),
            *end,
        )
        self.bypass = nn.Sequential(nn.Conv2d(width, width, 1), *end) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, H) to itself, or to (B, C, H/2, H/2)."""
        return cast(Tensor, self.path(x)) + cast(Tensor, self.bypass(x))
