"""A curve in R^d whose law is known exactly: data on a one-dimensional manifold."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_batch, check_count, check_in_range

OSCILLATIONS = 3.9
"""Of the second coordinate, from one end of the curve to the other."""

SOFTENING = 0.11
"""The amplitude at position x is SOFTENING/(x + SOFTENING): 1 at the start, 0.10 at the end."""

_GRID_POINTS = 4001
_GOLDEN = (math.sqrt(5) - 1) / 2
_REFINEMENTS = 40  # a bracket of two grid steps shrinks to 2e-12
_CHUNK = 1024


class Projection(NamedTuple):
    """The nearest point of a curve to each of some points."""

    position: Tensor
    """Its first coordinate in [0, 1], (N,), float64."""
    distance: Tensor
    """Euclidean, (N,), float64."""


@final
class Curve:
    """A curve that is a graph over its first coordinate, with a U-shaped law along it.

    The position t in [0, 1] is the first coordinate; coordinate j = 2..d is

        X_j(t) = a(t) sin(2π f_j t)/√(d - 1),  a(t) = 0.11/(t + 0.11),

    with frequencies f_j evenly spaced from 3.9 (j = 2) to half of it (j = d), so that in R² the
    second coordinate oscillates 3.9 times under a falling amplitude, and in any dimension the
    curve fits into the same amplitude. The law is that of t = τ(z), z ~ U(0, 1), with

        τ(z) = ½ + arctan(k (2z - 1))/(2 arctan k),
        τ⁻¹(t) = ½ + tan((2t - 1) arctan k)/(2k),
        p(t) = dτ⁻¹/dt = (arctan k/k) (1 + tan²((2t - 1) arctan k)),

    a bounded density that is 1 + k² times as high at the ends as in the middle. After the toy of
    the slides of Arbel, Zhou and Gretton, *Generalized Energy Based Models* (ICLR 2021), whose
    exact τ and curve are not published: this one has the shape of theirs.

    Args:
        dim: d >= 2.
        steepness: k > 0; 3 makes the ends ten times as likely as the middle.

    Raises:
        ValueError: ``dim`` is no whole number >= 2, or ``steepness`` no number > 0.

    Example:
        >>> import torch
        >>> curve = Curve(2)
        >>> x = curve.sample(5, generator=torch.Generator().manual_seed(0))
        >>> x.shape, bool(curve.project(x).distance.max() < 1e-6)
        (torch.Size([5, 2]), True)
        >>> curve.log_prob(torch.tensor([0.0, 0.5])).exp()
        tensor([4.1635, 0.4163])
    """

    def __init__(self, dim: int, *, steepness: float = 3.0) -> None:
        check_count("dim", dim, minimum=2)
        check_in_range("steepness", steepness, 0.0, open_low=True)
        self.dim, self.steepness = dim, float(steepness)
        self._half_angle = math.atan(self.steepness)
        self._frequencies = torch.linspace(
            OSCILLATIONS, OSCILLATIONS / (1 if dim == 2 else 2), dim - 1, dtype=torch.float64
        )

    def points(self, position: Tensor) -> Tensor:
        """The curve at positions (N,) in [0, 1]: points (N, d), of the positions' dtype.

        Raises:
            ValueError: the positions are not (N,), or leave [0, 1].
        """
        return self._points(_check_positions(position))

    def speed(self, position: Tensor) -> Tensor:
        """Length of the curve per unit of position, |dX/dt|, (N,) -> (N,).

        The density per unit of length is p(t)/|dX/dt|.

        Raises:
            ValueError: as ``points``.
        """
        t = _check_positions(position)[:, None]
        angle, amplitude = self._angles(t), SOFTENING / (t + SOFTENING)
        rate = angle.cos() * (2 * math.pi * self._frequencies.to(t))
        slope = amplitude * (rate - angle.sin() / (t + SOFTENING))
        return (1 + slope.square().sum(1) / (self.dim - 1)).sqrt()

    def log_prob(self, position: Tensor) -> Tensor:
        """log p(t) of positions, in nats per unit of position; -inf outside [0, 1]. (N,) -> (N,).

        Raises:
            ValueError: the positions are not (N,).
        """
        t = check_batch("position", position, ())
        tangent = ((2 * t - 1) * self._half_angle).tan()
        value = math.log(self._half_angle / self.steepness) + tangent.square().log1p()
        return torch.where((t >= 0) & (t <= 1), value, -torch.inf)

    def cdf(self, position: Tensor) -> Tensor:
        """τ⁻¹(t), the share of the law below a position, (N,) -> (N,).

        Raises:
            ValueError: as ``points``.
        """
        t = _check_positions(position)
        return 0.5 + ((2 * t - 1) * self._half_angle).tan() / (2 * self.steepness)

    def quantile(self, share: Tensor) -> Tensor:
        """τ(z), the position below which a share z of the law lies, (N,) -> (N,).

        Raises:
            ValueError: the shares are not (N,), or leave [0, 1].
        """
        z = _check_positions(share, "share")
        return 0.5 + (self.steepness * (2 * z - 1)).atan() / (2 * self._half_angle)

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Tensor:
        """Independent exact draws (num_samples, d), in the default dtype.

        Args:
            num_samples: N >= 1.
            generator: source of all randomness; the draws are on its device.

        Raises:
            ValueError: ``num_samples`` is no whole number >= 1.
        """
        check_count("num_samples", num_samples)
        z = torch.rand(num_samples, generator=generator, device=generator.device)
        return self._points(self.quantile(z))

    def project(self, x: Tensor) -> Projection:
        """The nearest point of the curve to each x, (N, d): how far off the manifold, and where.

        The nearest of a fine grid, then golden-section search around it, in float64. Where two
        places of the curve are equally near to within 1e-6, either may be found: the distance is
        right all the same.

        Raises:
            ValueError: x is not (N, d).
        """
        check_batch("x", x, (self.dim,))
        found = [self._project(part) for part in torch.split(x.detach().double(), _CHUNK)]
        if not found:
            return Projection(*(torch.zeros(0, dtype=torch.float64, device=x.device),) * 2)
        return Projection(*(torch.cat(part) for part in zip(*found, strict=True)))

    def _project(self, x: Tensor) -> Projection:
        grid = torch.linspace(0, 1, _GRID_POINTS, dtype=x.dtype, device=x.device)
        nearest = grid[torch.cdist(x, self._points(grid)).argmin(1)]
        step = 1 / (_GRID_POINTS - 1)
        low, high = (nearest - step).clamp(min=0), (nearest + step).clamp(max=1)

        def squared(t: Tensor) -> Tensor:
            return (x - self._points(t)).square().sum(1)

        for _ in range(_REFINEMENTS):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            go_left = squared(left) < squared(right)
            low, high = torch.where(go_left, low, left), torch.where(go_left, right, high)
        position = (low + high) / 2
        return Projection(position, squared(position).sqrt())

    def _points(self, position: Tensor) -> Tensor:
        t = position[:, None]
        amplitude = SOFTENING / (t + SOFTENING) / math.sqrt(self.dim - 1)
        return torch.cat([t, amplitude * self._angles(t).sin()], dim=1)

    def _angles(self, t: Tensor) -> Tensor:
        return 2 * math.pi * self._frequencies.to(t) * t


def _check_positions(position: Tensor, name: str = "position") -> Tensor:
    check_batch(name, position, ())
    outside = ~((position >= 0) & (position <= 1))  # NaN is outside too
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(
            f"{name}: expected numbers in [0, 1]; got {position[index].item()} at index {index}; "
            "give first coordinates of points of the curve (project finds them)"
        )
    return position
