"""Normal noise as instruments record it: clipped to a range, or rounded to levels."""

import math
from typing import Any, final

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from pyro_gebm._checks import check_count, check_in_range

FAR = 1e4
"""Standard deviations beyond which a bin at the end of the range reaches."""


@final
class ClippedNormal(TorchDistribution):  # type: ignore[misc]
    """y = clip(v, low, high) with v ~ N(loc, scale²).

    Within the range p(y) is the density of v; at its ends it is a probability, Φ((low - loc)/σ)
    and 1 - Φ((high - loc)/σ). The tails are computed by their logarithm and do not underflow.

    Args:
        loc: mean of v.
        scale: σ > 0.
        low: what smaller values are recorded as.
        high: what larger values are recorded as, above ``low``.

    Raises:
        ValueError: ``high`` is not above ``low``.

    Example:
        >>> ClippedNormal(torch.zeros(1), 1.0, -1.0, 1.0).log_prob(torch.tensor([-1.0, 0.0]))
        tensor([-1.8410, -0.9189])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | float,
        low: float,
        high: float,
        validate_args: bool | None = None,
    ) -> None:
        check_in_range("high", high, low, open_low=True)
        self.loc, self.scale = broadcast_all(loc, scale)
        self.low, self.high = float(low), float(high)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """[low, high]."""
        interval: Any = constraints.interval
        return interval(self.low, self.high)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ClippedNormal":
        """The same with more batch dimensions."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return ClippedNormal(loc, scale, self.low, self.high, validate_args=False)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, from torch's global generator."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            return torch.normal(self.loc.expand(shape), self.scale.expand(shape)).clamp(
                self.low, self.high
            )

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(y), in nats; -inf outside of the range."""
        if self._validate_args:
            self._validate_sample(value)
        inside = -0.5 * ((value - self.loc) / self.scale).square()
        inside = inside - self.scale.log() - 0.5 * math.log(2 * math.pi)
        below = log_cdf((self.low - self.loc) / self.scale)
        above = log_cdf((self.loc - self.high) / self.scale)
        found = torch.where(value == self.low, below, inside)
        found = torch.where(value == self.high, above, found)
        outside = (value < self.low) | (value > self.high)
        return torch.where(outside, -torch.inf, found)


@final
class QuantisedNormal(TorchDistribution):  # type: ignore[misc]
    """v ~ N(loc, scale²), rounded to the nearest of K levels from low to high.

    With h = (high - low)/(K - 1), p(y) = Φ((y + h/2 - loc)/σ) - Φ((y - h/2 - loc)/σ), and the
    levels at the ends take all that is beyond them. A value between levels is taken to be the
    nearest one only up to h/1000, for rounding; else its probability is zero.

    Args:
        loc: mean of v.
        scale: σ > 0.
        levels: K >= 2.
        low: the lowest level.
        high: the highest level.

    Raises:
        ValueError: ``high`` is not above ``low``, or there are not two levels.

    Example:
        >>> levels = torch.linspace(-1, 1, 5)
        >>> law = QuantisedNormal(torch.zeros(5), 0.5, 5, -1.0, 1.0)
        >>> law.log_prob(levels).exp()
        tensor([0.0668, 0.2417, 0.3829, 0.2417, 0.0668])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | float,
        levels: int,
        low: float,
        high: float,
        validate_args: bool | None = None,
    ) -> None:
        check_in_range("high", high, low, open_low=True)
        self.levels = check_count("levels", levels, minimum=2)
        self.loc, self.scale = broadcast_all(loc, scale)
        self.low, self.high = float(low), float(high)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def step(self) -> float:
        """h, from one level to the next."""
        return (self.high - self.low) / (self.levels - 1)

    @property
    def support(self) -> Any:
        """[low, high]; that y is a level is seen by ``log_prob``."""
        interval: Any = constraints.interval
        return interval(self.low - 0.01 * self.step, self.high + 0.01 * self.step)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "QuantisedNormal":
        """The same with more batch dimensions."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return QuantisedNormal(loc, scale, self.levels, self.low, self.high, validate_args=False)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, from torch's global generator."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            value = torch.normal(self.loc.expand(shape), self.scale.expand(shape))
            place = ((value - self.low) / self.step).round().clamp(0, self.levels - 1)
            return self.low + place * self.step

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(y), in nats; -inf where y is no level."""
        if self._validate_args:
            self._validate_sample(value)
        place = (value - self.low) / self.step
        level = place.round()
        centre = self.low + level * self.step - self.loc
        left = torch.where(level == 0, -FAR, (centre - 0.5 * self.step) / self.scale)
        right = torch.where(level == self.levels - 1, FAR, (centre + 0.5 * self.step) / self.scale)
        known = (place - level).abs() < 1e-3
        known = known & (level >= 0) & (level < self.levels)
        return torch.where(known, log_interval(left, right), -torch.inf)


def log_cdf(x: Tensor) -> Tensor:
    """log Φ(x), the log of the standard normal's distribution function, far into its tail.

    As torch.special.log_ndtr, which vmap takes row by row: in the lower half
    erfcx(-x/√2)/2 · exp(-x²/2), in the upper 1 - erfc(x/√2)/2.
    """
    # Each formula sees its own half only: the other's gradient would be inf · 0.
    lower = torch.where(x < 0, x, 0.0) / math.sqrt(2)
    upper = torch.where(x < 0, 0.0, x) / math.sqrt(2)
    tail = torch.special.erfcx(-lower).log() - lower.square() - math.log(2)
    return torch.where(x < 0, tail, torch.log1p(-0.5 * torch.erfc(upper)))


def log_interval(left: Tensor, right: Tensor) -> Tensor:
    """log(Φ(right) - Φ(left)), right > left, from the tail that is nearer."""
    mirrored = left + right > 0
    low = torch.where(mirrored, -right, left)
    high = torch.where(mirrored, -left, right)
    whole = log_cdf(high)
    return whole + torch.log(-torch.expm1(log_cdf(low) - whole))
