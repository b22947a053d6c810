"""What a potential costs, counted rather than timed, so that the same seed takes the same way."""

from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pyro_gebm.sampling.target import Target

COUNTED_ROWS = 64


class Rates(NamedTuple):
    """Speeds of a device, as orders of magnitude."""

    per_operation: float
    """Microseconds of launching an operation."""
    elements: float
    """Elements written per microsecond."""
    flops: float
    """Floating point operations of matrix products and convolutions per microsecond."""


CPU = Rates(5.0, 1e3, 4e4)
GPU = Rates(8.0, 1e5, 1e7)


class Price(NamedTuple):
    """Microseconds of a forward pass of U: so many to begin with, so many per row."""

    launch: float
    per_row_elements: float
    per_row_flops: float

    def forward(self, rows: int) -> float:
        """Of ``rows`` positions at once, without gradient."""
        return self.launch + rows * (self.per_row_elements + self.per_row_flops)

    def gradient(self, rows: int) -> float:
        """With the gradient: matrix products once more, everything else about twice more."""
        rest = self.launch + rows * self.per_row_elements
        return 3 * rest + 2 * rows * self.per_row_flops


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


def price_of(target: Target, z: Tensor) -> Price:
    """The price of a target's potential, from one evaluation at some rows of ``z`` (N, D)."""
    some = z[:COUNTED_ROWS]
    rates = GPU if z.is_cuda else CPU
    count, flops = _Count(), FlopCounterMode(display=False)
    with torch.no_grad(), flops, count:
        target.potential_fn(some)
    rows = len(some)
    return Price(
        launch=count.operations * rates.per_operation,
        per_row_elements=count.elements / rows / rates.elements,
        per_row_flops=flops.get_total_flops() / rows / rates.flops,
    )
