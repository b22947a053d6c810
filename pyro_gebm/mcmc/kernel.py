"""What every kernel shares: State for the next step, Info for the reader, and its settings."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_gebm._checks import check_choice, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.gradients import value_and_grad
from pyro_gebm.mcmc.random import Generator
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.mcmc.tuning import Tuning

INTEGRATORS = ("fitted", "leapfrog")

DIVERGENCE_THRESHOLD = 1000.0
"""Energy error (nats) from which a trajectory counts as diverging, as in Stan and Pyro."""


class KernelState(NamedTuple):
    """A position and everything computed at it; accept/reject selects all of it at once."""

    z: Tensor
    """Position, (C, D)."""
    potential_energy: Tensor
    """U(z), minus the log density up to a constant, (C,)."""
    z_grad: Tensor
    """Gradient of U at z, (C, D)."""
    momentum: Tensor | None = None
    """Of kernels that keep one between steps, in units where its energy is |p|²/2, (C, D)."""


class Info(NamedTuple):
    """What one transition tells the reader; ``None`` where a kernel has no such thing."""

    accept_prob: Tensor
    """Metropolis acceptance probability (mean over the tree for NUTS), (C,), in [0, 1]."""
    diverging: Tensor
    """The proposal was non-finite or its energy error exceeded 1,000 nats, (C,) bool."""
    num_steps: Tensor
    """Gradient evaluations that the transition used, (C,) int64."""
    hamiltonian: Tensor | None = None
    """H = U(z) + |p|²/2 at the start of the trajectory, (C,), nats."""
    energy_error: Tensor | None = None
    """H(proposal) - H(start), (C,), nats."""
    tree_depth: Tensor | None = None
    """NUTS: completed doublings, (C,) int64."""
    max_energy_error: Tensor | None = None
    """NUTS: energy error of largest size met in the tree, (C,), nats."""
    reached_max_treedepth: Tensor | None = None
    """NUTS: the tree stopped at its depth limit, (C,) bool."""
    trajectory_length: Tensor | None = None
    """HMC and ChEES: L ε of the transition, (C,), in scaled coordinates."""
    length_gradient: Tensor | None = None
    """ChEES in warm-up: d/d log τ of its criterion, the same for all chains, (C,)."""
    global_accept_prob: Tensor | None = None
    """Probability of leaving by a global move, (C,); NaN where none was tried."""
    swap_accept_prob: Tensor | None = None
    """Replica exchange: acceptance of the exchange with the next hotter level, (C,)."""


@dataclass(frozen=True, kw_only=True)
class Kernel(ABC):
    """A Markov kernel that knows only a potential: its settings, ``init`` and ``step``.

    A kernel holds no state and no cache. All chains advance in one batch; each accepts or
    rejects for itself.

    Args:
        step_size: leapfrog step ε to start from; ``None`` searches for one.
        adapt_step_size: let warm-up change the step size (dual averaging).
        adapt_mass_matrix: let warm-up estimate the diagonal mass matrix.
        step_size_per_chain: adapt a step size for each chain by itself instead of one for all.
        integrator: "leapfrog", or "fitted": towards the end of warm-up drifts are made shorter than
            kicks by what makes steps exact for a normal of the curvature that the potential has
            there, wherever steps can be so much longer then that it pays. Needs
            ``adapt_step_size``.

    Raises:
        ValueError: ``step_size`` is not a positive finite number; no such integrator.
    """

    target_accept_prob: ClassVar[float] = 0.8
    """What warm-up tunes the mean acceptance to unless the caller says otherwise."""
    least_growth: ClassVar[float] = 1.05
    """What drifts must gain by for steps to be fitted to the curvature."""

    step_size: float | None = None
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    step_size_per_chain: bool = False
    integrator: str = "leapfrog"

    def __post_init__(self) -> None:
        check_choice("integrator", self.integrator, INTEGRATORS)
        if self.step_size is not None:
            check_in_range("step_size", self.step_size, 0.0, open_low=True)

    @property
    def name(self) -> str:
        """What tables and attributes call it."""
        return type(self).__name__

    @property
    def num_levels(self) -> int:
        """Chains of the batch per chain of the result: those of the last level are kept."""
        return 1

    def init(self, potential_fn: PotentialFn, z: Tensor) -> KernelState:
        """State at ``z`` (C, D): one evaluation of the potential and its gradient."""
        return evaluate(potential_fn, z)

    def for_warmup(self) -> "Kernel":
        """The kernel that warm-up runs in place of this one: itself, unless said otherwise."""
        return self

    def bind(self, reference: Reference | None) -> "Kernel":
        """The kernel with the reference that it proposes from, if it does: most do not."""
        return self

    def level_potential(self, potential_fn: PotentialFn) -> PotentialFn:
        """What trajectories see: the target, unless a kernel has levels of its own."""
        return potential_fn

    def first_length(self, step_size: Tensor) -> Tensor | None:
        """The trajectory length that warm-up starts to learn from; ``None``: nothing to learn."""
        return None

    @abstractmethod
    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """One transition of every chain; leaves exp(-potential_fn) invariant."""


@dataclass(frozen=True, kw_only=True)
class Around(Kernel):
    """A kernel around another one, which is tuned as that is.

    Args:
        local: the kernel within.
    """

    local: Kernel

    @property
    def target_accept_prob(self) -> float:  # type: ignore[override]
        """That of the local kernel."""
        return self.local.target_accept_prob

    @property
    def least_growth(self) -> float:  # type: ignore[override]
        """That of the local kernel."""
        return self.local.least_growth

    def for_warmup(self) -> Kernel:
        """The same around what the local kernel warms up with."""
        return replace(self, local=self.local.for_warmup())

    def first_length(self, step_size: Tensor) -> Tensor | None:
        """That of the local kernel."""
        return self.local.first_length(step_size)


def shared_settings(kernel: Kernel) -> dict[str, Any]:
    """What every kernel is made with: for another that is to be tuned alike."""
    return {setting.name: getattr(kernel, setting.name) for setting in fields(Kernel)}


def evaluate(potential_fn: PotentialFn, z: Tensor) -> KernelState:
    """U and its gradient at ``z`` (C, D), detached; no parameter's ``.grad`` is touched.

    A potential that does not depend on ``z`` has gradient zero.

    Example:
        >>> state = evaluate(lambda z: 0.5 * (z**2).sum(-1), torch.tensor([[3.0, 4.0]]))
        >>> state.potential_energy, state.z_grad
        (tensor([12.5000]), tensor([[3., 4.]]))
    """
    return KernelState(z.detach(), *value_and_grad(potential_fn, z))


S = TypeVar("S", bound=tuple)  # type: ignore[type-arg]  # any NamedTuple of (nested) tensors


def select(mask: Tensor, chosen: S, other: S) -> S:
    """Per chain, every field of ``chosen`` where ``mask`` (C,) holds, else of ``other``.

    Fields are (C,) or (C, D).
    """
    by_row = mask.unsqueeze(-1)

    def pick(a: object, b: object) -> object:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return torch.where(mask if a.ndim == 1 else by_row, a, b)
        return a

    return _rebuilt(chosen, map(pick, chosen, other))


def take_rows(values: S, rows: Tensor) -> S:
    """Every field of some chains."""
    return _rebuilt(values, (None if v is None else v[rows] for v in values))


def put_rows(values: S, rows: Tensor, chosen: S) -> S:
    """Every field, with that of some chains replaced: a copy."""
    pairs = zip(values, chosen, strict=True)
    return _rebuilt(values, (v if v is None else v.index_copy(0, rows, c) for v, c in pairs))


def put_rows_(values: S, rows: Tensor, chosen: S) -> None:
    """The same in place."""
    for value, given in zip(values, chosen, strict=True):
        if value is not None:
            value.index_copy_(0, rows, given)


def join_rows(parts: Sequence[S]) -> S:
    """Every field of several batches, one after another."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)
    return _rebuilt(parts[0], (None if c[0] is None else torch.cat(c) for c in columns))


def last_rows(values: S, count: int) -> S:
    """Every field of the last chains of a batch."""
    return _rebuilt(values, (None if v is None else v[-count:] for v in values))


def zero_rows(values: S, count: int) -> S:
    """Zeros of the kind of every field, for ``count`` chains."""
    rooms = (None if v is None else v.new_zeros(count, *v.shape[1:]) for v in values)
    return _rebuilt(values, rooms)


def _rebuilt(like: S, fields: Iterable[Any]) -> S:
    return type(like)(*fields)


def kinetic_energy(momentum: Tensor) -> Tensor:
    """|p|²/2, (C,), of momenta scaled to p = M^(-1/2) r ~ N(0, I)."""
    energy: Tensor = 0.5 * torch.linalg.vecdot(momentum, momentum)
    return energy


def total_energy(potential_energy: Tensor, momentum: Tensor) -> Tensor:
    """H = U + |p|²/2, (C,)."""
    size = torch.linalg.vector_norm(momentum, dim=-1)
    return torch.addcmul(potential_energy, size, size, value=0.5)


def acceptance(energy_error: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Acceptance probability min(1, exp(-ΔH)) and the divergence flag, (C,) each.

    A NaN or infinite position, potential or gradient has probability 0 and counts as
    diverging, and so does an energy error above 1,000 nats. The momentum has gone through the
    gradient and the error through both, so that position and error tell of all.
    """
    # NaN if the position or the error is not finite, since 0 · inf is NaN.
    error = torch.add(energy_error, z.sum(-1) + energy_error, alpha=0)
    diverging = (error <= DIVERGENCE_THRESHOLD).logical_not_()
    return error.neg_().exp_().clamp_(max=1.0).masked_fill_(diverging, 0.0), diverging
