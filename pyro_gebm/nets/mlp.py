"""Fully connected networks, for toys, tables and small images."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast, final

from torch import Tensor, nn

from pyro_gebm._checks import check_batch, check_choice, check_count, check_sizes
from pyro_gebm.nets.network import Network, NetworkSpec, OptionValue, register
from pyro_gebm.nets.spectral import with_spectral_norm

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
OUTPUTS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "identity": nn.Identity}


@final
@register("mlp_generator")
class MLPGenerator(Network):
    """Generator z (B, D) -> x (B, *data_shape): affine layers with an activation between them.

    Prefer a smooth activation: the samplers follow the gradient of E(G(z)).

    Args:
        latent_dim: D.
        data_shape: shape of one datum, such as (2,) or (1, 8, 8).
        hidden: widths of the hidden layers; empty for an affine generator.
        activation: silu, softplus, leaky_relu (slope 0.2), gelu or tanh.
        output: tanh for data scaled to [-1, 1], identity for unbounded data.

    Raises:
        ValueError: for a bad option; on a call, if z is not (B, latent_dim).

    Example:
        >>> import torch
        >>> MLPGenerator(4, (1, 8, 8), hidden=(16,))(torch.zeros(3, 4)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        latent_dim: int,
        data_shape: Sequence[int],
        hidden: Sequence[int] = (256, 256),
        activation: str = "silu",
        output: str = "tanh",
    ) -> None:
        check_count("latent_dim", latent_dim)
        shape = check_sizes("data_shape", data_shape, min_length=1)
        widths = check_sizes("hidden", hidden)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("output", output, OUTPUTS)
        options: dict[str, OptionValue] = {
            "latent_dim": latent_dim,
            "data_shape": shape,
            "hidden": widths,
            "activation": activation,
            "output": output,
        }
        super().__init__(NetworkSpec("mlp_generator", options))
        self.latent_dim = latent_dim
        self.data_shape = tuple(shape)
        self.layers = _stack([latent_dim, *widths, math.prod(shape)], activation)
        self.output = OUTPUTS[output]()

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (B, D) to data (B, *data_shape)."""
        check_batch("z", z, (self.latent_dim,))
        return cast(Tensor, self.output(self.layers(z))).reshape(len(z), *self.data_shape)


@final
@register("mlp_energy")
class MLPEnergy(Network):
    """Energy x (B, *data_shape) -> (B,): affine layers on the flattened datum, last one linear.

    Args:
        data_shape: shape of one datum, such as (2,) or (1, 8, 8).
        hidden: widths of the hidden layers; empty for a linear energy.
        activation: silu, softplus, leaky_relu (slope 0.2), gelu or tanh.
        spectral_norm: divide each layer's weight by its spectral norm, so that the slope |∇E| is
            at most 1 (with silu 1.1, with gelu 1.13 to the number of hidden layers); see
            ``with_spectral_norm``.

    Raises:
        ValueError: for a bad option; on a call, if x is not (B, *data_shape).

    Example:
        >>> import torch
        >>> MLPEnergy((1, 8, 8), hidden=(16,))(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        hidden: Sequence[int] = (256, 256),
        activation: str = "silu",
        spectral_norm: bool = False,
    ) -> None:
        shape = check_sizes("data_shape", data_shape, min_length=1)
        widths = check_sizes("hidden", hidden)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("spectral_norm", spectral_norm, (False, True))
        options: dict[str, OptionValue] = {
            "data_shape": shape,
            "hidden": widths,
            "activation": activation,
            "spectral_norm": spectral_norm,
        }
        super().__init__(NetworkSpec("mlp_energy", options))
        self.data_shape = tuple(shape)
        layers = _stack([math.prod(shape), *widths, 1], activation)
        self.layers = with_spectral_norm(layers) if spectral_norm else layers

    def forward(self, x: Tensor) -> Tensor:
        """Map data (B, *data_shape) to energies (B,)."""
        check_batch("x", x, self.data_shape)
        return cast(Tensor, self.layers(x.flatten(1))).squeeze(1)


def _stack(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Affine layers through ``sizes``, with an activation between any two of them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
