"""The energy class for which KALE is a convex problem: a ball of an approximate RKHS."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from pyro_gebm._checks import (
    check_batch,
    check_choice,
    check_count,
    check_finite,
    check_in_range,
    check_sizes,
)
from pyro_gebm.nets.network import Network, NetworkSpec, OptionValue, register

LEAST_SLACK = 1e-4
"""Share of the radius that ``set_weight`` leaves to the slack, on the sphere too."""


@final
@register("fourier_energy")
class FourierEnergy(Network):
    """Energy x (B, *data_shape) -> (B,): E(x) = <w, φ(x)> with |w| <= radius.

    φ are m random Fourier features (Rahimi and Recht, 2007) of the Gaussian kernel
    k(x, y) = exp(-|x - y|²/2ℓ²): φ(x) = sqrt(2/m) (cos(ω_j·x/ℓ), sin(ω_j·x/ℓ)) with m/2
    frequencies ω_j ~ N(0, I), so that <φ(x), φ(y)> has mean k(x, y). The energies are a ball of
    an approximate RKHS, and for a fixed bandwidth the likelihood behind KALE is concave in w:
    ``solve_energy`` of ``pyro_gebm.training`` finds its optimum. As |φ| = 1, no energy exceeds
    the radius.

    Cosines come with their sines rather than with a random phase, sqrt(2/m) cos(ω_j·x/ℓ + b_j):
    the variance of <φ(x), φ(y)> is then (1 - k²)²/m instead of (1 - k² + k⁴/2)/m, so it is never
    larger, and zero at x = y (Sutherland and Schneider, 2015, arXiv 1506.02785).

    The ball is the shadow of a sphere with one more dimension: the parameter ``direction`` =
    (a, s) gives w = radius · a/|(a, s)|. The obvious w·min(1, radius/|w|) has no radial gradient
    outside the ball, so that an optimiser which once left it would stay at full norm, whatever
    the base learns later.

    Args:
        data_shape: shape of one datum, such as (2,) or (1, 8, 8).
        num_features: m, an even number; the error of the kernel falls as 1/sqrt(m).
        bandwidth: ℓ, in units of the data.
        radius: of the ball, in nats.
        train_bandwidth: learn log ℓ too; the problem is then no longer convex.
        seed: of the frequencies, which do not touch the global generator. Weights start at
            random, at norm 1/2 (radius/2 if that is less): at 0, ℓ would have no gradient.

    Attributes:
        direction: (a, s), a parameter (m + 1,); its length is immaterial.
        frequencies: ω, a buffer (m/2, number of entries of a datum).
        log_bandwidth: log ℓ, a parameter () if it is trained, else a buffer.

    Raises:
        ValueError: for a bad option; on a call, if x is not (B, *data_shape).

    Example:
        >>> energy = FourierEnergy((1, 8, 8), num_features=64, bandwidth=4.0)
        >>> energy(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3])
    """

    frequencies: Tensor
    log_bandwidth: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        num_features: int = 512,
        bandwidth: float = 1.0,
        radius: float = 10.0,
        train_bandwidth: bool = False,
        seed: int = 0,
    ) -> None:
        shape = check_sizes("data_shape", data_shape, min_length=1)
        check_count("num_features", num_features, minimum=2)
        if num_features % 2:
            raise ValueError(
                "num_features: expected an even number, as each cosine comes with its sine; got "
                f"{num_features}"
            )
        check_in_range("bandwidth", bandwidth, 0.0, open_low=True)
        check_in_range("radius", radius, 0.0, open_low=True)
        check_choice("train_bandwidth", train_bandwidth, (False, True))
        check_count("seed", seed, minimum=0)
        options: dict[str, OptionValue] = {
            "data_shape": shape,
            "num_features": num_features,
            "bandwidth": bandwidth,
            "radius": radius,
            "train_bandwidth": train_bandwidth,
            "seed": seed,
        }
        super().__init__(NetworkSpec("fourier_energy", options))
        self.data_shape = tuple(shape)
        self.num_features = num_features
        self.radius = float(radius)
        start = nn.functional.normalize(torch.randn(num_features), dim=0)
        self.direction = nn.Parameter(self._on_sphere(start * min(1.0, self.radius) / 2))
        drawn = _frequencies(num_features // 2, math.prod(shape), seed)
        self.register_buffer("frequencies", drawn.to(start))
        log_bandwidth = torch.tensor(math.log(bandwidth)).to(start)
        if train_bandwidth:
            self.log_bandwidth = nn.Parameter(log_bandwidth)
        else:
            self.register_buffer("log_bandwidth", log_bandwidth)

    @property
    def weight(self) -> Tensor:
        """The vector w, (m,), of norm <= radius; differentiable in ``direction``."""
        return self.radius * nn.functional.normalize(self.direction, dim=0)[:-1]

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Put ``weight`` in the place of w.

        One on the sphere |w| = radius is drawn in by 5e-9 of its length: there the gradient of
        the slack is zero, and training could not go on from it to a smaller norm.

        Args:
            weight: (m,), of norm <= radius; its dtype and device may differ.

        Raises:
            ValueError: if the shape is another, an entry is not finite, or the norm is larger.
        """
        if weight.shape != (self.num_features,):
            raise ValueError(
                f"weight: expected shape ({self.num_features},), one entry per feature; got "
                f"{tuple(weight.shape)}"
            )
        check_finite("weight", weight)
        norm = weight.double().norm().item()
        if norm > self.radius * (1 + 1e-6):  # an optimum on the sphere may be of float32
            raise ValueError(
                f"weight: expected a norm <= {self.radius}, the radius; got {norm}; scale it, or "
                "build the energy with a larger radius"
            )
        self.direction.copy_(self._on_sphere(weight))

    def features(self, x: Tensor) -> Tensor:
        """φ(x), (B, *data_shape) -> (B, m), each of norm 1.

        Raises:
            ValueError: if x is not (B, *data_shape).
        """
        check_batch("x", x, self.data_shape)
        angles = x.flatten(1) @ self.frequencies.T * torch.exp(-self.log_bandwidth)
        return torch.cat([angles.cos(), angles.sin()], dim=1) * math.sqrt(2 / self.num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map data (B, *data_shape) to energies (B,)."""
        return self.features(x) @ self.weight

    def _on_sphere(self, weight: Tensor) -> Tensor:
        """The ``direction`` (m + 1,) of length ~ radius whose shadow is ``weight`` (m,)."""
        # In double: the slack of a weight near the sphere is a small difference.
        left = self.radius**2 - weight.double().square().sum()
        slack = left.clamp(min=(LEAST_SLACK * self.radius) ** 2).sqrt()
        return torch.cat([weight, slack.to(weight).reshape(1)])


def _frequencies(count: int, dim: int, seed: int) -> Tensor:
    """Standard normal frequencies (count, dim), the same on every machine and for every dtype."""
    # Named device: the generator is of the CPU whatever the default device is.
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64, device="cpu")
