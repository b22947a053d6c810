"""What adaptation learns and kernels read: steps, masses, and how long trajectories are."""

from typing import NamedTuple

import torch
from torch import Tensor

LONGEST_FITTED_STEP = 1.2
"""Limit of √w ε: on a normal no fitted step is ever rejected, and dual averaging would make ε
endless; but trajectories should be some steps long, for they are told in steps."""


class Strides(NamedTuple):
    """How far a step goes, (C, D) each."""

    drift: Tensor
    """z moves by this times p."""
    kick: Tensor
    """p moves by minus this times ∇U."""
    half_kick: Tensor


class Tuning(NamedTuple):
    """What adaptation owns and a kernel only reads."""

    step_size: Tensor
    """Leapfrog step ε, (C,); Langevin kernels take γ = ε²/2."""
    inverse_mass_matrix: Tensor
    """Diagonal of M⁻¹, an estimate of the posterior variances, (D,), or (C, D) by chain."""
    trajectory_length: Tensor | None = None
    """ChEES: longest L ε, a scalar."""
    curvature: Tensor | None = None
    """w that drifts are fitted to (see ``strides``), in scaled coordinates, (C,); zero and ``None``
    are leapfrog."""
    settled_values: "_Settled | None" = None
    """What the methods give, of a tuning that is ``settled``."""

    def strides(self) -> Strides:
        """How far a step moves momenta and positions of every chain."""
        if self.settled_values is not None:
            return self.settled_values.strides
        drift, kick = strides(self.step_size, self.inverse_mass_matrix, self.curvature)
        return Strides(drift, kick, 0.5 * kick)

    def curvatures(self) -> Tensor:
        """w of every chain, (C,)."""
        return torch.zeros_like(self.step_size) if self.curvature is None else self.curvature

    def typical_step(self) -> float:
        """The chains' median ε."""
        known = self.settled_values
        return float(self.step_size.median()) if known is None else known.typical_step

    def longest(self) -> float | None:
        """The longest L ε as a number."""
        if self.settled_values is not None:
            return self.settled_values.longest
        return None if self.trajectory_length is None else float(self.trajectory_length)

    def settled(self) -> "Tuning":
        """The same with all this computed, for many steps; not to be changed any more."""
        fresh = self._replace(settled_values=None)
        values = _Settled(fresh.strides(), fresh.typical_step(), fresh.longest())
        return self._replace(settled_values=values)


class _Settled(NamedTuple):
    """What comes of a tuning."""

    strides: Strides
    typical_step: float
    longest: float | None


def strides(
    step: Tensor, inverse_mass_matrix: Tensor, curvature: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Drift and kick of signed steps ε (C,), in the units of z and its gradient: (C, D) each.

    Leapfrog drifts and kicks by ε M^(-1/2). On a normal of curvature w in scaled coordinates
    that carries phase space along ellipses p² + (1 - w ε²/4) w y² = const.; with a drift of
    ε / (1 + w ε²/4) they are circles, p² + w y² = const., and H does not change. On any other
    target such a step is what leapfrog is: reversible, volume preserving and of second order.
    (Integrators of two gradients and more a step were fitted to normals before: Blanes, Casas
    and Sanz-Serna 2014.)

    Example:
        >>> y, p = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
        >>> drift, kick = strides(torch.tensor([0.8]), torch.ones(2), torch.tensor([1.0]))
        >>> half = p - kick / 2 * y
        >>> end = y + drift * half
        >>> last = half - kick / 2 * end
        >>> torch.testing.assert_close(end**2 + last**2, y**2 + p**2)
    """
    unit = inverse_mass_matrix.sqrt()
    kick = step[:, None] * unit
    if curvature is None:
        return kick, kick
    return (step / (1 + curvature * step.square() / 4))[:, None] * unit, kick


def longest_steps(curvature: Tensor) -> Tensor:
    """Limit of ε where drifts are fitted to ``curvature``; none where that is zero."""
    return LONGEST_FITTED_STEP * curvature.rsqrt()
