"""Minima of a model's potential or energy over the latent space."""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import trange

from pyro_gebm._checks import check_choice, check_count, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.model import GEBM

OBJECTIVES = ("potential", "energy")
_MEMORY = 10  # values of which a step may not exceed the largest
_DECREASE = 1e-4  # share of the linear decrease that a step must reach


class EnergyMinima(NamedTuple):
    """Where the descents from C starts ended.

    Attributes:
        z: latents (C, D).
        x: G(z), (C, ...).
        potential: U(z) (C,), in nats.
        energy: E(G(z)) (C,).
        grad_norm: Euclidean norm of the objective's gradient in z, (C,).
        converged: it is at most the tolerance, (C,).
        num_steps: gradient evaluations of the batch.
    """

    z: Tensor
    x: Tensor
    potential: Tensor
    energy: Tensor
    grad_norm: Tensor
    converged: Tensor
    num_steps: int


def energy_minima(
    gebm: GEBM,
    z0: Tensor,
    *,
    steps: int = 2000,
    objective: str = "potential",
    tolerance: float = 1e-3,
    progress: bool = False,
) -> EnergyMinima:
    """Local minima of U(z) = -log η(z) + E(G(z)), or of E(G(z)), from a batch of starts.

    Gradient descent with the step lengths of Barzilai and Borwein, a step being taken if the
    value falls enough below the largest of the last 10, else cut to a quarter (Raydan, 1997). Each
    start goes its own way, at its own step; none is held up by another. It ends where all have
    converged, or after ``steps``: look at ``converged``. Several starts may end in one minimum. The
    energy alone need not have one: its descents may leave for where the prior has no mass. A
    minimum on the wall of a bounded prior has a gradient, and does not converge.

    Args:
        gebm: the model; evaluated in eval mode, left as it was.
        z0: starts (C, D), such as latents of the samples in question.
        steps: gradient evaluations at most.
        objective: "potential" for modes of the latent law ν, "energy" for E∘G.
        tolerance: largest norm of the gradient that counts as converged, in nats per unit of z.
        progress: show a progress bar.

    Returns:
        ``EnergyMinima``.

    Raises:
        ValueError: if z0 is not (C, D) with D that of the model, the objective or its gradient is
            not finite at a start, or an option is out of its range.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> minima = energy_minima(gebm, torch.zeros(3, 2))  # a linear energy: minus its slope
        >>> slope = gebm.energy.weight @ gebm.base.generator.weight
        >>> bool(torch.allclose(minima.z, -slope.expand(3, 2), atol=1e-2))
        True
    """
    check_choice("objective", objective, OBJECTIVES)
    check_count("steps", steps)
    check_in_range("tolerance", tolerance, 0.0, open_low=True)
    if z0.ndim != 2 or z0.shape[1] != gebm.latent_dim or len(z0) == 0:
        raise ValueError(
            f"z0: expected starts (C, {gebm.latent_dim}), C >= 1; got {tuple(z0.shape)}"
        )
    function = gebm.potential_fn if objective == "potential" else gebm.latent_energy
    with gebm.frozen():
        z, grad, used = _descend(function, z0.detach(), steps, tolerance, progress)
        with torch.no_grad():
            x, energy = gebm(z)
            potential = energy - gebm.base.latent_prior.log_prob(z)
    norm = grad.norm(dim=1)
    return EnergyMinima(z, x, potential, energy, norm, norm <= tolerance, used)


def _descend(
    function: PotentialFn, z: Tensor, steps: int, tolerance: float, progress: bool
) -> tuple[Tensor, Tensor, int]:
    """The last z (C, D) of each descent, its gradient, and the evaluations of the batch."""
    state = evaluate(function, z)
    value, grad = state.potential_energy, state.z_grad
    if not bool((value.isfinite() & grad.isfinite().all(1)).all()):
        raise ValueError(
            "z0: expected starts with a finite objective and gradient; got others; start within "
            "the support of the prior"
        )
    recent = value.expand(_MEMORY, -1).clone()
    length = 1 / grad.norm(dim=1).clamp(min=1.0)  # a first move of at most one unit
    used = 1
    for step in trange(steps - 1, desc="minima", disable=not progress):
        squared = grad.square().sum(1)
        active = squared.sqrt() > tolerance
        if not active.any():
            break
        trial = z - length[:, None] * grad
        tried = evaluate(function, trial)
        used += 1
        bound = recent.amax(0) - _DECREASE * length * squared
        # NaN is not below any bound.
        taken = active & (tried.potential_energy <= bound) & tried.z_grad.isfinite().all(1)
        next_length = _barzilai_borwein(trial - z, tried.z_grad - grad, length)
        length = torch.where(taken, next_length, length / 4)
        z = torch.where(taken[:, None], trial, z)
        grad = torch.where(taken[:, None], tried.z_grad, grad)
        value = torch.where(taken, tried.potential_energy, value)
        recent[step % _MEMORY] = value
    return z, grad, used


def _barzilai_borwein(move: Tensor, change: Tensor, length: Tensor) -> Tensor:
    """|s|² / s·y, the inverse curvature along the last move; longer where it is not positive."""
    curvature = (move * change).sum(1)
    fitted = move.square().sum(1) / curvature
    return torch.where(curvature > 0, fitted.clamp(max=1e3), (4 * length).clamp(max=1e3))
