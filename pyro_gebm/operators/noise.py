"""Noise: the law of y given what an operator makes of x, as Pyro distributions."""

from typing import Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_gebm.operators.recorded import ClippedNormal, QuantisedNormal

Law: TypeAlias = Any
"""A Pyro distribution, whose methods are not annotated."""


def observe(name: str, law: Law, y: Tensor | None) -> Tensor:
    """``pyro.sample(name, law, obs=y)``, where y must have the shape of an event of ``law``.

    Pyro itself broadcasts: one number would be taken for every pixel.

    Args:
        name: of the site.
        law: of y, of this module or any other of Pyro.
        y: what was observed, (*batch, *event); ``None`` draws it.

    Raises:
        ValueError: y is no tensor, or has another event shape.

    Example:
        >>> law = gaussian_noise(torch.zeros(3), 1.0, event_dim=1)
        >>> observe("y", law, torch.ones(1))
        Traceback (most recent call last):
        ValueError: site 'y': expected an observation of shape (..., 3); got (1,)
    """
    event = tuple(law.event_shape)
    if y is not None and not isinstance(y, Tensor):
        raise ValueError(f"site {name!r}: expected a tensor or None; got {type(y).__name__}")
    if y is not None and tuple(y.shape[max(0, y.ndim - len(event)) :]) != event:
        wanted = ", ".join(["...", *map(str, event)])
        raise ValueError(
            f"site {name!r}: expected an observation of shape ({wanted}); got {tuple(y.shape)}"
        )
    value: Tensor = pyro.sample(name, law, obs=y)
    return value


def gaussian_noise(mean: Tensor, scale: Tensor | float, *, event_dim: int) -> Law:
    """y ~ N(mean, scale²), independent entries.

    Args:
        mean: what would be seen without noise, (*batch, *event).
        scale: σ > 0, a number or (*batch): one for each event.
        event_dim: how many dimensions an observation has, as of ``.to_event``: 3 for (C, H, W).

    Raises:
        ValueError: ``event_dim`` is more than ``mean`` has, or ``scale`` does not fit.

    Example:
        >>> gaussian_noise(torch.zeros(3, 1, 8, 8), 0.1, event_dim=3)
        Independent(Normal(loc: torch.Size([3, 1, 8, 8]), scale: torch.Size([3, 1, 8, 8])), 3)
    """
    return dist.Normal(mean, _per_event("scale", scale, mean, event_dim)).to_event(event_dim)


def poisson_noise(
    x: Tensor,
    peak: Tensor | float,
    *,
    background: float = 0.0,
    low: float = -1.0,
    high: float = 1.0,
    event_dim: int,
) -> Law:
    """Counts of photons: y ~ Poisson(peak (x - low)/(high - low) + background).

    An x below ``low`` may have a negative rate, which no count has: its log density is NaN, and
    samplers reject it. Generators that end in tanh or sigmoid stay within.

    Args:
        x: intensities, of a range from ``low`` (dark) to ``high``.
        peak: mean count at ``high``, a number or one for each event.
        background: mean count at ``low``; above zero, no count is impossible.
        low: see above.
        high: see above.
        event_dim: as in ``gaussian_noise``.

    Raises:
        ValueError: ``low`` is not below ``high``, or the event does not fit.

    Example:
        >>> poisson_noise(torch.tensor([-1.0, 1.0]), 50.0, background=1.0, event_dim=1).mean
        tensor([ 1., 51.])
    """
    if not low < high:
        raise ValueError(f"high: expected a number above low = {low}; got {high}")
    rate = _per_event("peak", peak, x, event_dim) * (x - low) / (high - low) + background
    return dist.Poisson(rate).to_event(event_dim)


def clipped_noise(
    mean: Tensor,
    scale: Tensor | float,
    *,
    low: float = -1.0,
    high: float = 1.0,
    event_dim: int,
) -> Law:
    """Saturated data: Gaussian noise, clipped to [low, high]; see ``ClippedNormal``.

    Args:
        mean: as in ``gaussian_noise``.
        scale: as in ``gaussian_noise``.
        low: what smaller values are recorded as.
        high: what larger values are recorded as.
        event_dim: as in ``gaussian_noise``.

    Example:
        >>> clipped_noise(torch.zeros(2), 1.0, event_dim=1).log_prob(torch.ones(2))  # 2 log Φ(-1)
        tensor(-3.6820)
    """
    spread = _per_event("scale", scale, mean, event_dim)
    return ClippedNormal(mean, spread, low, high).to_event(event_dim)


def quantised_noise(
    mean: Tensor,
    scale: Tensor | float,
    levels: int,
    *,
    low: float = -1.0,
    high: float = 1.0,
    event_dim: int,
) -> Law:
    """Rounded data: Gaussian noise, rounded to levels of [low, high]; see ``QuantisedNormal``.

    Args:
        mean: as in ``gaussian_noise``.
        scale: as in ``gaussian_noise``.
        levels: how many, evenly spread from ``low`` to ``high``.
        low: the lowest level.
        high: the highest level.
        event_dim: as in ``gaussian_noise``.

    Example:
        >>> quantised_noise(torch.zeros(1), 1.0, 2, event_dim=1).log_prob(torch.ones(1))
        tensor(-0.6931)
    """
    spread = _per_event("scale", scale, mean, event_dim)
    return QuantisedNormal(mean, spread, levels, low, high).to_event(event_dim)


def _per_event(name: str, value: Tensor | float, mean: Tensor, dims: int) -> Tensor:
    """A number per event, of the shape of ``mean``."""
    if not 0 <= dims <= mean.ndim:
        raise ValueError(
            f"event_dim: expected 0 to {mean.ndim} for shape {tuple(mean.shape)}; got {dims}"
        )
    batch = mean.shape[: mean.ndim - dims]
    given = torch.as_tensor(value, dtype=mean.dtype, device=mean.device)
    if given.ndim > len(batch):
        raise ValueError(
            f"{name}: expected a number, or one for each event, {tuple(batch)}; got "
            f"{tuple(given.shape)}; event_dim says how many dimensions an observation has"
        )
    return given[(...,) + (None,) * dims].expand_as(mean)
