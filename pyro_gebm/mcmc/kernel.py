"""What every kernel shares: State for the next step, Info for the reader, Tuning for adaptation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_gebm._checks import check_in_range
from pyro_gebm._types import PotentialFn

DIVERGENCE_THRESHOLD = 1000.0
"""Energy error (nats) from which a trajectory counts as diverging, as in Stan and Pyro."""


class KernelState(NamedTuple):
    """A position and everything computed at it; accept/reject selects all three at once."""

    z: Tensor
    """Position, (C, D)."""
    potential_energy: Tensor
    """U(z), minus the log density up to a constant, (C,)."""
    z_grad: Tensor
    """Gradient of U at z, (C, D)."""


class Info(NamedTuple):
    """What one transition tells the reader; ``None`` where a kernel has no such thing."""

    accept_prob: Tensor
    """Metropolis acceptance probability (mean over the tree for NUTS), (C,), in [0, 1]."""
    diverging: Tensor
    """The proposal was non-finite or its energy error exceeded 1,000 nats, (C,) bool."""
    num_steps: Tensor
    """Gradient evaluations that the transition used, (C,) int64."""
    hamiltonian: Tensor | None = None
    """H = U(z) + rᵀM⁻¹r/2 at the start of the trajectory, (C,), nats."""
    energy_error: Tensor | None = None
    """H(proposal) - H(start), (C,), nats."""
    tree_depth: Tensor | None = None
    """NUTS: completed doublings, (C,) int64."""
    max_energy_error: Tensor | None = None
    """NUTS: energy error of largest size met in the tree, (C,), nats."""
    reached_max_treedepth: Tensor | None = None
    """NUTS: the tree stopped at its depth limit, (C,) bool."""


class Tuning(NamedTuple):
    """What adaptation owns and a kernel only reads."""

    step_size: Tensor
    """Leapfrog step ε, (C,); Langevin kernels take γ = ε²/2."""
    inverse_mass_matrix: Tensor
    """Diagonal of M⁻¹, an estimate of the posterior variances, (D,)."""


@dataclass(frozen=True, kw_only=True)
class Kernel(ABC):
    """A Markov kernel that knows only a potential: its settings, ``init`` and ``step``.

    A kernel holds no state and no cache. All chains advance in one batch; each accepts or
    rejects for itself.

    Args:
        step_size: leapfrog step ε to start from; ``None`` searches for one.
        adapt_step_size: let warm-up change the step size (dual averaging).
        adapt_mass_matrix: let warm-up estimate the diagonal mass matrix.

    Raises:
        ValueError: ``step_size`` is not a positive finite number.
    """

    target_accept_prob: ClassVar[float] = 0.8
    """What warm-up tunes the mean acceptance to unless the caller says otherwise."""

    step_size: float | None = None
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True

    def __post_init__(self) -> None:
        if self.step_size is not None:
            check_in_range("step_size", self.step_size, 0.0, open_low=True)

    def init(self, potential_fn: PotentialFn, z: Tensor) -> KernelState:
        """State at ``z`` (C, D): one evaluation of the potential and its gradient."""
        return evaluate(potential_fn, z)

    def for_warmup(self) -> "Kernel":
        """The kernel that warm-up runs in place of this one: itself, unless said otherwise."""
        return self

    @abstractmethod
    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: torch.Generator,
    ) -> tuple[KernelState, Info]:
        """One transition of every chain; leaves exp(-potential_fn) invariant."""


def evaluate(potential_fn: PotentialFn, z: Tensor) -> KernelState:
    """U and its gradient at ``z`` (C, D), detached; no parameter's ``.grad`` is touched.

    A potential that does not depend on ``z`` has gradient zero.

    Example:
        >>> state = evaluate(lambda z: 0.5 * (z**2).sum(-1), torch.tensor([[3.0, 4.0]]))
        >>> state.potential_energy, state.z_grad
        (tensor([12.5000]), tensor([[3., 4.]]))
    """
    with torch.enable_grad():
        position = z.detach().requires_grad_(True)
        energy = potential_fn(position)
        if energy.requires_grad:
            (gradient,) = torch.autograd.grad(
                energy.sum(), position, allow_unused=True, materialize_grads=True
            )
        else:
            gradient = torch.zeros_like(position)
    return KernelState(position.detach(), energy.detach(), gradient)


S = TypeVar("S", bound=tuple)  # type: ignore[type-arg]  # any NamedTuple of (nested) tensors


def select(mask: Tensor, chosen: S, other: S) -> S:
    """Per chain, every field of ``chosen`` where ``mask`` (C,) holds, else of ``other``."""

    def pick(a: object, b: object) -> object:
        if isinstance(a, tuple):
            return type(a)(*map(pick, a, b))  # type: ignore[call-overload]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)
        return a

    return pick(chosen, other)  # type: ignore[return-value]


def draw_momentum(state: KernelState, tuning: Tuning, generator: torch.Generator) -> Tensor:
    """Momentum r ~ N(0, M), (C, D)."""
    noise = torch.randn(
        state.z.shape, generator=generator, dtype=state.z.dtype, device=state.z.device
    )
    return noise * tuning.inverse_mass_matrix.rsqrt()


def hamiltonian(potential_energy: Tensor, momentum: Tensor, inverse_mass: Tensor) -> Tensor:
    """H(z, r) = U(z) + rᵀ M⁻¹ r / 2, (C,)."""
    return potential_energy + 0.5 * (momentum.square() * inverse_mass).sum(-1)


def draw_seed(generator: torch.Generator) -> int:
    """A seed for another generator, which then draws without moving this one any further."""
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """U(0, 1) noise of the shape, dtype and device of ``like``."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def acceptance(energy_error: Tensor, end: KernelState) -> tuple[Tensor, Tensor]:
    """Acceptance probability min(1, exp(-ΔH)) and the divergence flag, (C,) each.

    A NaN or infinite position, potential or gradient at ``end`` has probability 0 and counts
    as diverging, and so does an energy error above 1,000 nats.
    """
    # A sum is non-finite as soon as one term is: one pass instead of three.
    finite = torch.isfinite(end.potential_energy + end.z.sum(-1) + end.z_grad.sum(-1))
    diverging = ~(energy_error <= DIVERGENCE_THRESHOLD) | ~finite
    return torch.where(diverging, 0.0, (-energy_error).exp().clamp(max=1.0)), diverging
