"""What would raise for one chain of a batch, made to give that chain NaN instead."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode


@contextmanager
def validation(keep: bool) -> Iterator[None]:
    """Pyro's and torch's argument checks off within, unless kept; then as they were."""
    # Pyro restores torch's flag from its own, which may differ.
    default = Distribution._validate_args
    try:
        if keep:
            yield
        else:
            with pyro.validation_enabled(False):
                yield
    finally:
        Distribution.set_default_validate_args(default)


class Unchecked(Messenger):  # type: ignore[misc]
    """Distributions made before checks were off (by a ``PyroSample``, say) do not check either."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if isinstance(msg["fn"], Distribution):
            msg["fn"] = _unchecked(msg["fn"])


def _unchecked(fn: Distribution) -> Distribution:
    """``fn`` itself, or a copy where it or a part of it insists on checks."""
    parts = {name: part for name, part in vars(fn).items() if isinstance(part, Distribution)}
    new = {name: _unchecked(part) for name, part in parts.items()}
    if not fn._validate_args and all(new[name] is parts[name] for name in parts):
        return fn
    clone = copy.copy(fn)
    vars(clone).update(new, _validate_args=False)
    return clone


AlgebraError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""What torch raises of a matrix that has no Cholesky factor or no inverse."""


class LenientAlgebra(TorchFunctionMode):
    """A matrix without a Cholesky factor, or a singular one, gives NaN in place of an error.

    So only its own chain is rejected. The other chains of the batch have the values and
    gradients that they would have without it.

    Args:
        only_look: change nothing, only note whether there is something to change.

    Attributes:
        was_used: whether such an operation was called.
    """

    def __init__(self, *, only_look: bool = False) -> None:
        super().__init__()
        self.only_look = only_look
        self.was_used = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if lenient := LENIENT.get(func):
            self.was_used = True
            func = func if self.only_look else lenient
        return func(*args, **(kwargs or {}))


def leniently(program: Callable[[], Any]) -> Any:
    """``program()`` under ``LenientAlgebra``."""
    with LenientAlgebra():
        return program()


def _cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return _nan_where(info != 0, factor, dims=2)


def _inverse(matrix: Tensor) -> Tensor:
    inverse, info = torch.linalg.inv_ex(matrix)
    return _nan_where(info != 0, inverse, dims=2)


def _solve(matrix: Tensor, right: Tensor, *, left: bool = True) -> Tensor:
    solution, info = torch.linalg.solve_ex(matrix, right, left=left)
    # As torch tells vectors from matrices.
    is_vector = right.ndim == 1 or right.shape == matrix.shape[:-1]
    return _nan_where(info != 0, solution, dims=1 if is_vector else 2)


def _nan_where(failed: Tensor, result: Tensor, dims: int) -> Tensor:
    return torch.where(failed.reshape(*failed.shape, *[1] * dims), torch.nan, result)


LENIENT: dict[Any, Callable[..., Tensor]] = {
    torch.linalg.cholesky: _cholesky,
    torch.inverse: _inverse,
    torch.linalg.inv: _inverse,
    Tensor.inverse: _inverse,
    torch.linalg.solve: _solve,
}
"""By the function of torch that raises."""
