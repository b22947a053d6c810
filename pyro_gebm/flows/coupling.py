"""Coupling flows by name: RealNVP and the neural spline flow, rebuilt by a checkpoint."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast, final

import torch
from torch import Tensor, nn

from pyro_gebm._checks import check_batch, check_choice, check_count, check_in_range, check_sizes
from pyro_gebm.flows.bijections import Affine, Bijection, RationalQuadratic
from pyro_gebm.flows.flow import Flow, Inverted
from pyro_gebm.nets.mlp import ACTIVATIONS
from pyro_gebm.nets.network import Network, NetworkSpec, OptionValue, register

_START = 0.01
"""Of the usual size, for the last weights: at zero the layers before had no gradient."""


class CouplingFlow(Network, Flow):
    """What ``NVP`` and ``NSF`` have in common: their layers do the work."""

    layers: "Couplings"

    @property
    def dim(self) -> int:
        """D, of latents and data alike."""
        return self.layers.dim

    def forward(self, z: Tensor) -> Tensor:
        """G(z), (B, D) -> (B, D)."""
        return cast(Tensor, self.layers(z))

    def inverse(self, x: Tensor) -> Inverted:
        """G⁻¹(x) and log |det dz/dx|, (B, D) -> (B, D) and (B,)."""
        return self.layers.inverse(x)


@final
@register("nvp")
class NVP(CouplingFlow):
    """RealNVP z (B, D) -> x (B, D): affine coupling layers, and an affine map at the data's end.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", 2017 (arXiv
    1605.08803). Each layer shifts and stretches half of the coordinates by amounts that a
    network makes of the others. A fresh one is nearly the identity. With D = 1 there are no others,
    and it is affine: take ``NSF``.

    Args:
        dim: D.
        transforms: coupling layers.
        hidden: widths of the hidden layers of their networks.
        activation: silu, softplus, leaky_relu (slope 0.2), gelu or tanh; a smooth one, since
            samplers follow its gradient.

    Raises:
        ValueError: for a bad option; on a call, if the argument is not (B, D).

    Example:
        >>> flow = NVP(3, transforms=2, hidden=(8,))
        >>> x = torch.randn(5, 3)
        >>> bool(torch.allclose(flow(flow.inverse(x).z), x, atol=1e-5))
        True
    """

    def __init__(
        self,
        dim: int,
        transforms: int = 8,
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
    ) -> None:
        widths = _check(dim, transforms, hidden, activation)
        options: dict[str, OptionValue] = {
            "dim": dim,
            "transforms": transforms,
            "hidden": widths,
            "activation": activation,
        }
        super().__init__(NetworkSpec("nvp", options))
        self.layers = Couplings(dim, transforms, widths, activation, Affine())


@final
@register("nsf")
class NSF(CouplingFlow):
    """Neural spline flow z (B, D) -> x (B, D): as ``NVP``, with splines for the affine maps.

    Durkan, Bekasov, Murray and Papamakarios, 2019 (arXiv 1906.04032), in its coupling form.
    The splines bend numbers within [-bound, bound] and leave others alone: scale the data to
    a few units.

    Args:
        dim: D.
        transforms: coupling layers.
        hidden: widths of the hidden layers of their networks.
        bins: pieces of each spline.
        bound: half the width of the splines' domain.
        activation: silu, softplus, leaky_relu (slope 0.2), gelu or tanh.

    Raises:
        ValueError: for a bad option; on a call, if the argument is not (B, D).

    Example:
        >>> flow = NSF(3, transforms=2, hidden=(8,))
        >>> x = torch.randn(5, 3)
        >>> bool(torch.allclose(flow(flow.inverse(x).z), x, atol=1e-5))
        True
    """

    def __init__(
        self,
        dim: int,
        transforms: int = 4,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        bound: float = 5.0,
        activation: str = "silu",
    ) -> None:
        widths = _check(dim, transforms, hidden, activation)
        check_count("bins", bins, minimum=2)
        if bins > 256:
            raise ValueError(f"bins: expected at most 256, each with a least width; got {bins}")
        check_in_range("bound", bound, 0.0, open_low=True)
        options: dict[str, OptionValue] = {
            "dim": dim,
            "transforms": transforms,
            "hidden": widths,
            "bins": bins,
            "bound": float(bound),
            "activation": activation,
        }
        super().__init__(NetworkSpec("nsf", options))
        spline = RationalQuadratic(bins, float(bound))
        self.layers = Couplings(dim, transforms, widths, activation, spline)


@final
class Couplings(nn.Module):
    """Coupling layers over changing halves, then x = loc + y exp(log_scale)."""

    def __init__(
        self, dim: int, transforms: int, hidden: list[int], activation: str, bijection: Bijection
    ) -> None:
        super().__init__()
        self.dim = dim
        orders = (_order(dim, index) for index in range(transforms))
        self.parts = nn.ModuleList(
            Coupling(order, hidden, activation, bijection) for order in orders
        )
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, z: Tensor) -> Tensor:
        """Latents to data."""
        x = check_batch("z", z, (self.dim,))
        for part in self.parts:
            x = part(x)
        return self.loc + x * self.log_scale.exp()

    def inverse(self, x: Tensor) -> Inverted:
        """Data to latents."""
        check_batch("x", x, (self.dim,))
        z = (x - self.loc) * torch.exp(-self.log_scale)
        log_det = -self.log_scale.sum().expand(len(x))
        for part in reversed(self.parts):
            z, more = cast(Coupling, part).inverse(z)
            log_det = log_det + more
        return Inverted(z, log_det)


@final
class Coupling(nn.Module):
    """Maps the second half of the coordinates, in the given order, under a network of the first.

    Args:
        order: the coordinates, (D,); the first D // 2 of them are kept as they are.
        hidden: widths of the network.
        activation: of the network.
        bijection: what maps a coordinate.
    """

    order: Tensor
    back: Tensor
    kept: Tensor

    def __init__(
        self, order: Tensor, hidden: list[int], activation: str, bijection: Bijection
    ) -> None:
        super().__init__()
        self._bijection = bijection
        dim = len(order)
        self._half = dim // 2
        # In the checkpoint: another version of torch may permute otherwise.
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())
        self.register_buffer("kept", torch.zeros(dim).index_fill_(0, order[: self._half], 1.0))
        self._each = (dim - self._half, bijection.num_parameters)
        self.network = _network([dim, *hidden, math.prod(self._each)], activation)

    def forward(self, z: Tensor) -> Tensor:
        """Towards the data."""
        kept, moved = self._split(z)
        return self._join(kept, self._bijection.to_data(moved, self._raw(z)))

    def inverse(self, x: Tensor) -> Inverted:
        """Towards the latents."""
        kept, moved = self._split(x)
        z, log_slope = self._bijection.to_latent(moved, self._raw(x))
        return Inverted(self._join(kept, z), log_slope.sum(-1))

    def _raw(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, moved, P), of the kept coordinates alone."""
        raw: Tensor = self.network(x * self.kept)
        return raw.reshape(len(x), *self._each)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ordered = x[:, self.order]
        return ordered[:, : self._half], ordered[:, self._half :]

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved], dim=1)[:, self.back]


def _check(dim: int, transforms: int, hidden: Sequence[int], activation: str) -> list[int]:
    check_count("dim", dim)
    check_count("transforms", transforms)
    check_choice("activation", activation, ACTIVATIONS)
    return check_sizes("hidden", hidden)


def _order(dim: int, index: int) -> Tensor:
    """A shuffle of its own for every two layers; the second of them changes the halves' roles."""
    # Named device: the generator is of the CPU whatever the default device is.
    generator = torch.Generator("cpu").manual_seed(index // 2)
    order = torch.randperm(dim, generator=generator, device="cpu")
    return order.flip(0) if index % 2 else order


def _network(sizes: list[int], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    last = cast(nn.Linear, layers[-2])
    with torch.no_grad():
        last.weight.mul_(_START)
        last.bias.zero_()
    return nn.Sequential(*layers[:-1])
