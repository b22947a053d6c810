"""``torch.compile`` with a way back."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar, final

import torch

F = TypeVar("F", bound=Callable[..., Any])


@final
class Compiler:
    """``torch.compile`` of functions, until it fails for one; then none is compiled.

    Args:
        wanted: compile at all.
        what: what goes on without it, for the warning.
        dynamic: of ``torch.compile``.
    """

    def __init__(self, wanted: bool, what: str, dynamic: bool | None = None) -> None:
        self._wanted, self._what, self._dynamic = wanted, what, dynamic

    def compiled(self, function: F, otherwise: F | None = None) -> F:
        """The function, compiled at its first call.

        Args:
            function: what is compiled. If it changes tensors in place, it does so after that.
            otherwise: the same in a form that is better left alone; ``None``: ``function``.
        """
        plain = otherwise or function
        if not self._wanted:
            return plain
        fast: list[Callable[..., Any]] = []

        def run(*inputs: Any) -> Any:
            if not self._wanted:
                return plain(*inputs)
            try:
                if not fast:
                    fast.append(torch.compile(function, dynamic=self._dynamic))
                return fast[0](*inputs)
            except Exception as error:
                # An error of the function itself comes again, as its own, from the line below.
                value = plain(*inputs)
                self._wanted = False
                warnings.warn(
                    f"torch.compile failed ({type(error).__name__}); {self._what} goes on without "
                    "it; a C++ compiler may be missing",
                    stacklevel=2,
                )
                return value

        return run  # type: ignore[return-value]
