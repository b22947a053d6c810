"""Value and gradient of a potential: by autograd, compiled, or replayed from a CUDA graph."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar, final

import torch
from torch import Tensor

from pyro_gebm._compiler import Compiler, Traced
from pyro_gebm._types import PotentialFn

FIRST_CALLS = 3
"""Calls of a shape before it is recorded: libraries choose their algorithms in the first."""

MAX_RECORDINGS = 4
"""Shapes that are recorded; each keeps the memory of one evaluation."""

_Kind: TypeAlias = tuple[torch.Size, torch.dtype, torch.device]
T = TypeVar("T")


class _Recording(NamedTuple):
    """A graph that reads ``z`` and writes the other two."""

    graph: Any
    z: Tensor
    value: Tensor
    gradient: Tensor


class Differentiated(ABC):
    """A potential that gives its gradient itself, faster than autograd would from outside."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """U, (C, D) -> (C,)."""

    @abstractmethod
    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """U and ∇U at ``z`` (C, D), detached: (C,) and (C, D)."""


class Wrapped(Differentiated):
    """Another potential, whose values are as they were.

    Args:
        potential_fn: (C, D) -> (C,).
    """

    def __init__(self, potential_fn: PotentialFn) -> None:
        self.potential_fn = potential_fn

    def __call__(self, z: Tensor) -> Tensor:
        """The potential itself, (C, D) -> (C,)."""
        return self.potential_fn(z)


@final
class CapturedPotential(Wrapped):
    """A potential whose value and gradient are recorded on the GPU once and then replayed.

    The networks of a GEBM are small for a GPU: launching their operations one by one from
    Python takes longer than computing them. A CUDA graph launches all of them at once. ``sample``
    wraps the potential of a GEBM in this by itself; wrap one of your own if it does the same
    operations at every call. Elsewhere than on a CUDA device, and where recording fails (a
    potential that looks at its values in Python cannot be recorded), nothing changes.

    Args:
        potential_fn: (C, D) -> (C,). What it computes may depend on ``z`` and on tensors that
            keep their place in memory; what Python decides is decided once.

    Example:
        >>> potential_fn = CapturedPotential(lambda z: 0.5 * (z**2).sum(-1))
        >>> potential_fn(torch.tensor([[3.0, 4.0]]))
        tensor([12.5000])
        >>> value_and_grad(potential_fn, torch.tensor([[3.0, 4.0]]))
        (tensor([12.5000]), tensor([[3., 4.]]))
    """

    def __init__(self, potential_fn: PotentialFn) -> None:
        super().__init__(potential_fn)
        self._calls: dict[_Kind, int] = {}
        self._recordings: dict[_Kind, _Recording | None] = {}

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """U and ∇U at ``z`` (C, D): (C,) and (C, D)."""
        recording = self._recording(z) if z.is_cuda else None
        if recording is None:
            return value_and_grad(self.potential_fn, z)
        recording.z.copy_(z)
        recording.graph.replay()
        # The next replay writes to the same place.
        return recording.value.clone(), recording.gradient.clone()

    def _recording(self, z: Tensor) -> _Recording | None:
        kind = z.shape, z.dtype, z.device
        if kind not in self._recordings:
            self._calls[kind] = self._calls.get(kind, 0) + 1
            if self._calls[kind] <= FIRST_CALLS or len(self._recordings) == MAX_RECORDINGS:
                return None
            self._recordings[kind] = _record(self.potential_fn, z)
        return self._recordings[kind]


@final
class CompiledPotential(Wrapped):
    """A potential whose value and gradient are compiled into one function.

    So is what kernels do around it: all of a step of NUTS; of HMC, ChEES and MALA a leapfrog
    step and the end of a trajectory. Pays where chains are few or networks small: compiling
    takes six to twenty seconds for each number of chains, and a C++ compiler. Results differ
    from those without in the last digits, and so do the draws. Where compiling fails, all goes
    on without it, with a warning.

    Args:
        potential_fn: (C, D) -> (C,). What it computes may depend on ``z`` and on tensors that
            keep their place in memory; what Python decides is decided once, and a potential that
            looks at its values cannot be compiled.

    Example:
        >>> potential_fn = CompiledPotential(lambda z: 0.5 * (z**2).sum(-1))
        >>> potential_fn(torch.tensor([[3.0, 4.0]]))  # a value alone is not compiled
        tensor([12.5000])
    """

    def __init__(self, potential_fn: PotentialFn) -> None:
        super().__init__(potential_fn)
        self._compiler = Compiler(True, "sampling")
        self._traceable = _Traceable(potential_fn)
        self._value_and_grad = Traced(self._traceable.value_and_grad, self._compiler)
        self._steps: dict[Callable[..., Any], Traced] = {}

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """U and ∇U at ``z`` (C, D): (C,) and (C, D)."""
        z = z.detach()
        fast = self._value_and_grad.at(z)
        if fast is None:
            return _differentiate(self.potential_fn, z)
        energy, gradient = fast(z)
        return energy, gradient

    def step(self, function: Callable[..., Any]) -> Traced:
        """A function of a potential and tensors, with this potential; one for all runs."""
        if function not in self._steps:
            self._steps[function] = Traced(partial(function, self._traceable), self._compiler)
        return self._steps[function]


def uncompiled(potential_fn: PotentialFn) -> PotentialFn:
    """For a few evaluations that are not worth compiling anything: what was to be compiled."""
    inner = potential_fn
    if isinstance(potential_fn, CapturedPotential):
        inner = potential_fn.potential_fn
    return inner.potential_fn if isinstance(inner, CompiledPotential) else potential_fn


def compiled_step(
    potential_fn: PotentialFn, function: Callable[..., Any], inputs: Sequence[Tensor]
) -> Callable[..., Any] | None:
    """A function of a potential and tensors, compiled with a ``CompiledPotential``.

    Args:
        potential_fn: the potential.
        function: gives a tuple of tensors.
        inputs: tensors of the kind that it will be called with.

    Returns:
        It as a function of the tensors; ``None`` for any other potential, and where compiling
        fails.
    """
    if not isinstance(potential_fn, CompiledPotential):
        return None
    return potential_fn.step(function).at(*inputs)


def step_with(
    potential_fn: PotentialFn, function: Callable[..., Any], inputs: Sequence[Tensor]
) -> Callable[..., Any]:
    """What ``compiled_step`` gives of the same arguments, or the function as it is."""
    return compiled_step(potential_fn, function, inputs) or partial(function, potential_fn)


@final
class _Traceable(Wrapped):
    """U and ∇U as a transformation, which can be traced."""

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """U and ∇U at ``z`` (C, D): (C,) and (C, D)."""

        def summed(z: Tensor) -> tuple[Tensor, Tensor]:
            energy = self.potential_fn(z)
            return energy.sum(), energy

        gradient, (_, energy) = torch.func.grad_and_value(summed, has_aux=True)(z)
        return energy.detach(), gradient.detach()


def value_and_grad(potential_fn: PotentialFn, z: Tensor) -> tuple[Tensor, Tensor]:
    """U and its gradient at ``z`` (C, D), detached; no parameter's ``.grad`` is touched.

    A potential that does not depend on ``z`` has gradient zero.
    """
    if isinstance(potential_fn, Differentiated):
        return potential_fn.value_and_grad(z)
    return _differentiate(potential_fn, z)


def _differentiate(potential_fn: PotentialFn, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        position = z.detach().requires_grad_(True)
        energy = potential_fn(position)
        if not isinstance(energy, Tensor) or energy.dtype is not position.dtype:
            raise ValueError(
                f"model: expected a potential of {position.dtype}, as its positions; got "
                f"{getattr(energy, 'dtype', type(energy).__name__)}; convert it there, or start "
                "from positions of that type"
            )
        if not energy.requires_grad:
            return energy, torch.zeros_like(position)
        # Of the sum over chains, without summing: two operations less.
        (gradient,) = torch.autograd.grad(
            energy,
            position,
            torch.ones_like(energy),
            allow_unused=True,
            materialize_grads=True,
        )
    return energy.detach(), gradient


def _record(potential_fn: PotentialFn, z: Tensor) -> _Recording | None:
    """A recording at the shape of ``z``; ``None`` where the potential cannot be recorded."""
    place = z.detach().clone()

    def work() -> tuple[Tensor, Tensor]:
        return value_and_grad(potential_fn, place)

    with torch.cuda.device(z.device):
        recorded = record(work, rehearsal=work)
    return None if recorded is None else _Recording(recorded[0], place, *recorded[1])


def record(work: Callable[[], T], rehearsal: Callable[[], object]) -> tuple[Any, T] | None:
    """``work`` as a CUDA graph on the current device, and the tensors that a replay writes to.

    Args:
        work: what is recorded; it is not carried out.
        rehearsal: the same on tensors that may change; it is carried out twice.

    Returns:
        ``None`` where that is impossible.
    """
    graph = torch.cuda.CUDAGraph()
    # A recording that fails half way may leave another stream in place of the current one.
    with torch.cuda.stream(torch.cuda.current_stream()):
        try:
            rehearsal()  # kernels are built, and algorithms chosen, at the first call
            if not _is_asynchronous(rehearsal):
                return None
            with torch.cuda.graph(graph):
                written = work()
        except Exception:  # whatever else a user's potential does that a graph cannot
            torch.cuda.synchronize()
            return None
    return graph, written


def _is_asynchronous(work: Callable[[], object]) -> bool:
    """Whether the CPU never waits for a value.

    Found out beforehand, since a recording that breaks on it leaves torch's random generators
    unusable.
    """
    before = torch.cuda.get_sync_debug_mode()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):  # as torch's manual has it for what is recorded next
            work()
    except RuntimeError:
        return False
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.current_stream().wait_stream(stream)
    return True
