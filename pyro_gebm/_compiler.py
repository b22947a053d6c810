"""``torch.compile`` with a way back."""

import warnings
from collections.abc import Callable
from types import FunctionType
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
        self.works = wanted
        """Functions are compiled, as far as is known."""
        self._what, self._dynamic = what, dynamic

    def compiled(self, function: F, otherwise: F | None = None) -> F:
        """The function, compiled at its first call.

        Args:
            function: what is compiled. It may change tensors in place: compiling ends before it
                does so for the first time.
            otherwise: the same in a form that is better left alone; ``None``: ``function``.
        """
        plain = otherwise or function
        if not self.works:
            return plain
        fast: list[Callable[..., Any]] = []

        def run(*inputs: Any) -> Any:
            if not self.works:
                return plain(*inputs)
            try:
                if not fast:
                    fast.append(torch.compile(function, dynamic=self._dynamic))
                return fast[0](*inputs)
            except Exception as error:
                # An error of the function itself comes again, as its own, from the line below.
                value = plain(*inputs)
                self.works = False
                warnings.warn(
                    f"torch.compile failed ({type(error).__name__}); {self._what} goes on without "
                    "it; a C++ compiler may be missing",
                    stacklevel=2,
                )
                return value

        return run  # type: ignore[return-value]


def with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function anew.

    Of a piece of code torch keeps eight compiled forms, whoever wants them, and runs the ninth
    as it is. What it compiles leaves names among the globals: these are its own, too.
    """
    assert isinstance(function, FunctionType)
    code, names = function.__code__.replace(), dict(function.__globals__)
    return FunctionType(code, names, function.__name__, None, function.__closure__)
