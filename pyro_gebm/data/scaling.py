"""Affine maps between the data's units and those that a model sees."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_dims

_CONSTANT = 1e-10
"""Spread, relative to the values' size, at which nothing but rounding is left."""
_DEPENDENT = 1e-12
"""The same for the least of the singular values, relative to the largest."""


class AffineMap(NamedTuple):
    """y = (x - loc) matrix: from the data's units to those that a model sees, and back.

    With log p_y the model's log density, log p(x) = log p_y(y) + ``log_det``: a mean NLL in the
    data's own units is that of the model less ``log_det``.
    """

    loc: Tensor
    """(D,), float64."""
    matrix: Tensor
    """(D, D), float64, diagonal for a standardisation."""

    @property
    def log_det(self) -> float:
        """log |det dy/dx|, nats."""
        return float(torch.linalg.slogdet(self.matrix).logabsdet)

    def apply(self, x: Tensor) -> Tensor:
        """y of x (N, D), float64."""
        return (x.double() - self.loc) @ self.matrix

    def invert(self, y: Tensor) -> Tensor:
        """x of y (N, D), float64."""
        back: Tensor = torch.linalg.solve(self.matrix.T, y.double().T)
        return back.T + self.loc


def fit_standardization(x: Tensor) -> AffineMap:
    """The map that gives each column of x (N, D) mean 0 and mean square 1.

    Fit it on the training part: fitted on all data, it tells the model something of the test part.

    Raises:
        ValueError: there are fewer than two rows, or a column is constant.

    Example:
        >>> x = torch.tensor([[1.0, 10.0], [3.0, 50.0]])
        >>> scaling = fit_standardization(x)
        >>> scaling.apply(x).tolist(), round(scaling.log_det, 4)  # -log(1 · 20)
        ([[-1.0, -1.0], [1.0, 1.0]], -2.9957)
    """
    x = check_rows(x).double()
    loc, scale = x.mean(0), x.std(0, correction=0)
    refuse_constant(x, scale)
    return AffineMap(loc, torch.diag(1 / scale))


def fit_whitening(x: Tensor, rows: int | None = None) -> AffineMap:
    """The map that gives x (N, D) mean 0 and covariance I, by the SVD of what is centred.

    The new coordinates are principal components, whose signs are arbitrary.

    Args:
        x: data; the training part.
        rows: the covariance is that of so many first rows, about the mean of all; ``None`` for all.

    Raises:
        ValueError: there are too few rows, or some direction is constant.

    Example:
        >>> x = torch.randn(100, 3) @ torch.randn(3, 3)
        >>> y = fit_whitening(x).apply(x)
        >>> torch.cov(y.T, correction=0).allclose(torch.eye(3).double(), atol=1e-5)
        True
    """
    x = check_rows(x).double()
    loc = x.mean(0)
    centred = (x - loc)[:rows]
    refuse_constant(x, centred.square().mean(0).sqrt())
    singular, directions = torch.linalg.svd(centred, full_matrices=False)[1:]
    if len(singular) < x.shape[1] or singular[-1] <= _DEPENDENT * singular[0]:
        raise ValueError(
            f"x: expected columns of which none is a combination of others, in at least "
            f"{x.shape[1]} rows; got shape {tuple(centred.shape)} and singular values from "
            f"{float(singular[0]):.3g} to {float(singular[-1]):.3g}; drop some"
        )
    return AffineMap(loc, directions.T / singular * len(centred) ** 0.5)


def check_rows(x: Tensor) -> Tensor:
    """Return x (N, D) if it has at least two rows, else raise ``ValueError``."""
    check_dims("x", x, 2, "(N, D)")
    if len(x) < 2:
        raise ValueError(f"x: expected at least two rows; got {len(x)}")
    return x


def refuse_constant(x: Tensor, spread: Tensor) -> None:
    """Raise ``ValueError`` if a column of x (N, D) has a spread, (D,), of rounding's size only."""
    constant = (spread <= _CONSTANT * x.abs().amax(0)).nonzero()
    if len(constant):
        place = int(constant[0])
        raise ValueError(
            f"column {place} (from 0): expected numbers that differ; got {float(x[0, place]):g} "
            f"{len(x)} times; drop it"
        )
