"""Monotone maps of single numbers, whose parameters a network gives: affine, rational spline."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_SCALE_BOUND = 3.0  # a layer stretches by e^-3 to e^3: a single one cannot blow up
_LEAST_BIN = 1e-3  # share of the whole width or height
_LEAST_SLOPE = 1e-3


class Bijection(ABC):
    """A map of each coordinate by itself, from data (..., ) to latents, increasing."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """P, of each coordinate; all zero is the identity."""

    @abstractmethod
    def to_latent(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """x (...) under parameters (..., P) -> z (...) and log dz/dx (...)."""

    @abstractmethod
    def to_data(self, z: Tensor, raw: Tensor) -> Tensor:
        """The inverse."""


@final
class Affine(Bijection):
    """x = t + z e^s, with |s| < 3."""

    @property
    def num_parameters(self) -> int:
        """s before its soft bound, and t."""
        return 2

    def to_latent(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """(x - t) e^-s, and -s."""
        log_scale = _log_scale(raw)
        return (x - raw[..., 1]) * torch.exp(-log_scale), -log_scale

    def to_data(self, z: Tensor, raw: Tensor) -> Tensor:
        """The inverse."""
        return raw[..., 1] + z * torch.exp(_log_scale(raw))


def _log_scale(raw: Tensor) -> Tensor:
    return _LOG_SCALE_BOUND * torch.tanh(raw[..., 0] / _LOG_SCALE_BOUND)


class _Piece(NamedTuple):
    """The bin of each number: its lower corner, its sides, and the slopes at its two ends."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    slope: Tensor
    next_slope: Tensor

    @property
    def steepness(self) -> Tensor:
        """Height over width."""
        return self.height / self.width

    @property
    def bend(self) -> Tensor:
        """How far the slopes at the ends are from those of a straight line."""
        return self.slope + self.next_slope - 2 * self.steepness


@final
class RationalQuadratic(Bijection):
    """A monotone rational-quadratic spline on [-bound, bound]², the identity outside.

    Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019 (arXiv 1906.04032):
    widths and heights of K bins are softmaxes, slopes at the inner knots softplus, and 1 at the
    outer ones, so that the map has a continuous slope everywhere.

    Args:
        bins: K.
        bound: half the side of the square, in units of the data.
    """

    def __init__(self, bins: int, bound: float) -> None:
        self.bins, self.bound = bins, bound

    @property
    def num_parameters(self) -> int:
        """Widths, heights, inner slopes."""
        return 3 * self.bins - 1

    def to_latent(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 4 of the paper, and the log of equation 5."""
        inside = x.abs() < self.bound
        # A place whose formula is harmless, so that no gradient of what is dropped is NaN.
        place = torch.where(inside, x, torch.zeros_like(x))
        piece = self._piece(raw, place, by_height=False)
        t = (place - piece.x) / piece.width
        steep, tent = piece.steepness, t * (1 - t)
        below = steep + piece.bend * tent
        y = piece.y + piece.height * (steep * t.square() + piece.slope * tent) / below
        above = piece.next_slope * t.square() + 2 * steep * tent + piece.slope * (1 - t).square()
        log_slope = 2 * steep.log() + above.log() - 2 * below.log()
        return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(x))

    def to_data(self, z: Tensor, raw: Tensor) -> Tensor:
        """Equations 6 to 8 of the paper: the root in [0, 1] of a quadratic."""
        inside = z.abs() < self.bound
        place = torch.where(inside, z, torch.zeros_like(z))
        piece = self._piece(raw, place, by_height=True)
        rise, steep = place - piece.y, piece.steepness
        a = piece.height * (steep - piece.slope) + rise * piece.bend
        b = piece.height * piece.slope - rise * piece.bend
        c = -steep * rise
        # b² - 4ac > 0 for a monotone piece; this form of the root does not cancel.
        t = 2 * c / (-b - torch.sqrt(b.square() - 4 * a * c))
        return torch.where(inside, piece.x + t * piece.width, z)

    def _piece(self, raw: Tensor, place: Tensor, *, by_height: bool) -> _Piece:
        """The bin of each place (...), by its abscissa or its ordinate."""
        wide, high, inner = torch.split(raw, [self.bins, self.bins, self.bins - 1], dim=-1)
        x, y = self._knots(wide), self._knots(high)
        # At zero the slope is one: softplus(log(e^a - 1)) = a.
        start = math.log(math.expm1(1 - _LEAST_SLOPE))
        slopes = F.pad(_LEAST_SLOPE + F.softplus(inner + start), (1, 1), value=1.0)
        # No searchsorted, which has no rule for vmap.
        beyond = (place[..., None] >= (y if by_height else x)[..., 1:-1]).sum(-1, keepdim=True)
        x0, y0, slope = (_pick(values, beyond) for values in (x, y, slopes))
        x1, y1, next_slope = (_pick(values, beyond + 1) for values in (x, y, slopes))
        return _Piece(x0, y0, x1 - x0, y1 - y0, slope, next_slope)

    def _knots(self, raw: Tensor) -> Tensor:
        """(..., K) -> (..., K + 1) rising from -bound to bound."""
        shares = _LEAST_BIN + (1 - _LEAST_BIN * self.bins) * raw.softmax(-1)
        inner = self.bound * (2 * shares.cumsum(-1)[..., :-1] - 1)
        # The ends as given: rounding would open a gap to the identity outside.
        inner = F.pad(inner, (1, 0), value=-self.bound)
        return F.pad(inner, (0, 1), value=self.bound)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index).squeeze(-1)
