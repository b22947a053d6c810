"""A potential that runs its Python code for a while, and then replays what that has called."""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.gradients import Differentiated, value_and_grad
from pyro_gebm.sampling.recorder import record
from pyro_gebm.sampling.tape import Tape

CALLS_BEFORE = 30
"""Calls of one shape before it is recorded, which costs about as much as ten calls."""

MAX_TAPES = 16
"""Batches of ever other sizes would fill the memory."""

TOLERANCE = 1e-5
"""Relative, off the CPU, where sums need not have the same bits twice."""

Values = tuple[Tensor, ...]
Program = Callable[..., Values]


class _Kind(NamedTuple):
    """What a tape is made for."""

    what: str
    """"value", "gradient" (and value), or "product" of gradients and weights."""
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@final
class Recorded(Differentiated):
    """The potential of a Pyro model, faster: Pyro's and vmap's own work is done only a few times.

    Most of the time of a small Pyro model goes into its handlers and into ``torch.func.vmap``,
    which do the same in every call. After some calls with one shape the operations beneath
    (those of the potential, and those of its gradient) are recorded, and from then on only they
    are called. A recording is kept only if it has the same bits as the model itself (off the
    CPU: is as near as 1e-5) at the position of the call and at others. Where it cannot be
    made, or a replay raises, the model runs as it is.

    Args:
        potential_fn: U, (C, D) -> (C,), which ``torch.func.vmap`` has made of a function of one
            chain: no Python code has seen values then. What it reads must not change.

    Attributes:
        tapes: what was recorded; ``None`` for what cannot be.

    Example:
        >>> normal = Recorded(torch.func.vmap(lambda z: 0.5 * z.square().sum()))
        >>> for _ in range(CALLS_BEFORE + 1):
        ...     value, gradient = normal.value_and_grad(torch.tensor([[3.0, 4.0]]))
        >>> value, gradient, len(normal.tapes)
        (tensor([12.5000]), tensor([[3., 4.]]), 1)
    """

    def __init__(self, potential_fn: PotentialFn) -> None:
        self.potential_fn = potential_fn
        self.tapes: dict[_Kind, Tape | None] = {}
        self.is_weighted = False
        """Gradients are asked for with weights, as of replicas at several temperatures."""
        self._calls: dict[_Kind, int] = {}
        self._programs: dict[str, Program] = {
            "value": self._value,
            "gradient": lambda u: value_and_grad(potential_fn, u),
            "product": self._product,
        }

    def __call__(self, u: Tensor) -> Tensor:
        """U(u), (C,), differentiable once."""
        # Sums over memory in another order have other bits.
        if not u.is_contiguous():
            return self.potential_fn(u)
        if u.requires_grad and torch.is_grad_enabled():
            # With a tape or without one: sums of gradients have the same order.
            value: Tensor = _Apart.apply(u, self)
            return value
        return self.run("value", u)[0]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """U and ∇U at ``z`` (C, D), detached: (C,) and (C, D)."""
        if not z.is_contiguous():
            return value_and_grad(self.potential_fn, z)
        energy, gradient = self.run("gradient", z.detach())
        return energy, gradient

    def run(self, what: str, *inputs: Tensor) -> Values:
        """What a program gives, from its tape if there is one."""
        return self.replay(what, *inputs) or self._programs[what](*inputs)

    def replay(self, what: str, *inputs: Tensor) -> Values | None:
        """The same, only from its tape."""
        tape = self._tape(what, *inputs)
        if tape is None:
            return None
        try:
            return tape(*inputs)
        except RuntimeError:
            # Such as eigenvalues that do not converge: the model itself tells it better.
            return None

    @torch.no_grad()
    def _value(self, u: Tensor) -> Values:
        return (self.potential_fn(u),)

    def _product(self, u: Tensor, weights: Tensor) -> Values:
        """Gradients times weights (C,), with the bits that autograd has."""
        with torch.enable_grad():
            position = u.detach().requires_grad_()
            return (weighted_gradient(position, self.potential_fn(position), weights),)

    def _tape(self, what: str, *inputs: Tensor) -> Tape | None:
        """The tape, made when a shape has been asked for often."""
        u = inputs[0]
        kind = _Kind(what, u.shape, u.dtype, u.device)
        if kind not in self.tapes:
            calls = self._calls[kind] = self._calls.get(kind, 0) + 1
            if calls <= CALLS_BEFORE or len(self.tapes) >= MAX_TAPES:
                return None
            detached = [x.detach() for x in inputs]
            self.tapes[kind] = _recorded(self._programs[what], detached)
        return self.tapes[kind]


class _Apart(torch.autograd.Function):
    """A potential as one operation of autograd: from a tape, or with a graph of its own."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, potential: Recorded) -> Tensor:
        ctx.potential, ctx.graph = potential, None
        if found := potential.replay("value" if potential.is_weighted else "gradient", u):
            energy, *gradient = found
            ctx.save_for_backward(u, *gradient)
            return energy
        with torch.enable_grad():
            position = u.detach().requires_grad_()
            energy = potential.potential_fn(position)
        ctx.graph = position, energy
        return energy.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        if ctx.graph is not None:
            position, energy = ctx.graph
            return weighted_gradient(position, energy, weights), None
        u, *gradient = ctx.saved_tensors
        if gradient and not u.is_cpu:  # where a look at the weights would wait for them
            return weights[:, None] * gradient[0], None
        if gradient and bool((weights == 1).all()):
            return gradient[0], None
        # Not weights · gradient, which has other bits than autograd.
        ctx.potential.is_weighted = True
        return ctx.potential.run("product", u, weights)[0], None


def weighted_gradient(position: Tensor, energy: Tensor, weights: Tensor) -> Tensor:
    """The gradient of Σ weights · energy, (C, D); zero of what does not depend on it."""
    if not energy.requires_grad:
        return torch.zeros_like(position)
    (gradient,) = torch.autograd.grad(
        energy, position, weights, allow_unused=True, materialize_grads=True
    )
    return gradient


def _recorded(program: Program, inputs: list[Tensor]) -> Tape | None:
    """The tape of a program, if it does what the program does."""
    u, *rest = inputs
    try:
        tape = record(program, *inputs)
        # Where the chains stand, where their neighbours do, and where none does.
        for at in (u, u.flip(0), 0.7 * u + 0.1, -u):
            if not _agree(tape(at, *rest), program(at, *rest)):
                return None
    except Exception:
        # Whatever it was: the model itself tells it better, or has no trouble.
        return None
    return tape


def _agree(found: Values, expected: Values) -> bool:
    return all(_equal(a, b) for a, b in zip(found, expected, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    if a.device.type != "cpu":
        return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
