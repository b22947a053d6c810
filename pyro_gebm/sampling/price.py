"""What a potential costs, counted rather than timed, so that the same seed takes the same way."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pyro_gebm.sampling.target import Target

FEW, MANY = 16, 64
"""Rows at which operations are counted."""

GRADIENT = 2.5
"""Of a gradient, in forward passes: matrix products once more, everything else twice."""


class Rates(NamedTuple):
    """Speeds of a device, as orders of magnitude."""

    per_operation: float
    """Microseconds of launching an operation."""
    elements: float
    """Elements written per microsecond."""
    flops: float
    """Floating point operations of matrix products and convolutions per microsecond."""


CPU = Rates(10.0, 4e2, 4e4)
GPU = Rates(8.0, 1e5, 1e7)


class Line(NamedTuple):
    """Microseconds of something, by rows."""

    launch: float
    per_row: float

    def at(self, rows: int) -> float:
        """Of ``rows`` rows at once."""
        return self.launch + self.per_row * rows


class Price(NamedTuple):
    """Of a target and its reference."""

    potential: Line
    """U."""
    proposal: Line
    """A draw from the reference, and U_0 of it."""

    def gradient(self, rows: int) -> float:
        """U and its gradient."""
        return GRADIENT * self.potential.at(rows)

    def proposals(self, rows: int) -> float:
        """Draws from the reference and their weights."""
        return self.potential.at(rows) + self.proposal.at(rows)


@final
class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations and the elements that they write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations, self.elements = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(result, Tensor):
            self.elements += result.numel()
        return result


def count_cost(run: Callable[[], object], rates: Rates) -> float:
    """Microseconds that the operations of ``run`` would take."""
    count, flops = _Count(), FlopCounterMode(display=False)
    with torch.no_grad(), flops, count:
        run()
    return (
        count.operations * rates.per_operation
        + count.elements / rates.elements
        + flops.get_total_flops() / rates.flops
    )


def _line(run: Callable[[int], object], rates: Rates) -> Line:
    few, many = (count_cost(partial(run, rows), rates) for rows in (FEW, MANY))
    slope = max(0.0, (many - few) / (MANY - FEW))
    return Line(many - MANY * slope, slope)


def price_of(target: Target, z: Tensor) -> Price:
    """The price of a target with a reference, from evaluations at some rows of ``z`` (N, D)."""
    reference = target.reference
    assert reference is not None
    rates = GPU if z.is_cuda else CPU
    return Price(
        potential=_line(lambda rows: target.potential_fn(z[:rows]), rates),
        proposal=_line(lambda rows: reference.potential_fn(reference.sample(rows)), rates),
    )
