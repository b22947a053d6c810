"""Train and eval modes of modules, changed for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Whatever mode a module and its parts are put into within, the ones before come back."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode within; the modes before are restored after."""
    with modes_kept(module):
        module.eval()
        yield
