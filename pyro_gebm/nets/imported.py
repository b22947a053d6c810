"""Networks of the user's own code, named by import path, and who may have them imported."""

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast, final

from torch import Tensor, nn

from pyro_gebm.nets.network import Network, NetworkSpec

_NAMES = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_PATH = re.compile(f"{_NAMES}:{_NAMES}")
_TRUSTED: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


@final
class ImportedNetwork(Network):
    """A module of the user's own code, wrapped so that a checkpoint can name it.

    Made by ``import_network``, or by ``build`` and ``pyro_gebm.load`` within ``trust``.

    Args:
        path: package.module:Name of a class of modules.
        options: of its constructor, as JSON can hold them.

    Attributes:
        module: the user's module.

    Raises:
        ValueError: as ``import_network``.
    """

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        kind = import_class(path)
        check_options(path, kind, options)
        super().__init__(NetworkSpec(path, dict(options)))
        try:
            self.module = kind(**options)
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"{path}: cannot be built with {dict(options)}: {_told(error)}"
            ) from error

    def forward(self, inputs: Tensor) -> Tensor:
        """What the user's module makes of a batch (B, ...)."""
        return cast(Tensor, self.module(inputs))


def import_network(path: str, /, **options: Any) -> ImportedNetwork:
    """Import a class of modules by its path and build one: this runs the code of its module.

    The network's spec names path and options, so that a file written by ``pyro_gebm.save`` says
    what to import; ``pyro_gebm.load`` does so within ``trust`` only.

    Args:
        path: package.module:Name, where ``import package.module`` finds the module.
        options: of the constructor; what JSON can hold, for a checkpoint to keep them.

    Raises:
        ValueError: the path is none, module or name is not there, it is no class of modules, or
            the options do not fit; the message names the path.

    Example:
        >>> import torch
        >>> network = import_network("torch.nn:Linear", in_features=3, out_features=1)
        >>> network(torch.zeros(5, 3)).shape, network.spec.name
        (torch.Size([5, 1]), 'torch.nn:Linear')
    """
    return ImportedNetwork(path, options)


@contextmanager
def trust(*paths: str) -> Iterator[None]:
    """Within the block, ``build`` and ``pyro_gebm.load`` import the networks of these paths.

    A checkpoint is data, and may come from anyone: it can name a network to import, but it is
    imported only if you name the same path here. Importing a module runs its code.

    Args:
        paths: each package.module:Name.

    Raises:
        ValueError: one is no import path.

    Example:
        >>> spec = NetworkSpec("torch.nn:Linear", {"in_features": 3, "out_features": 1})
        >>> with trust("torch.nn:Linear"):
        ...     network = build_imported(spec)
        >>> build_imported(spec)
        Traceback (most recent call last):
        ValueError: torch.nn:Linear: not imported, for nobody has said that its code may run; ...
    """
    for path in paths:
        check_path(path)
    token = _TRUSTED.set(_TRUSTED.get() | set(paths))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def is_import_path(name: str) -> bool:
    """Whether a network's name is an import path; registered names have no colon."""
    return ":" in name


def is_trusted(path: str) -> bool:
    """Whether the code of an import path may run here."""
    return path in _TRUSTED.get()


def build_imported(spec: NetworkSpec) -> ImportedNetwork:
    """The network of a spec that names an import path, if ``trust`` allows it.

    Raises:
        ValueError: it does not, or as ``import_network``.
    """
    check_path(spec.name)
    if not is_trusted(spec.name):
        raise ValueError(
            f"{spec.name}: not imported, for nobody has said that its code may run; if you trust "
            f"it, do this within pyro_gebm.nets.trust({spec.name!r}), or give --trust {spec.name} "
            "on the command line"
        )
    return ImportedNetwork(spec.name, spec.options)


def import_class(path: str) -> type[nn.Module]:
    """The class of modules at an import path.

    Raises:
        ValueError: as ``import_network``.
    """
    check_path(path)
    module_name, _, attribute = path.partition(":")
    found: object = _import_module(path, module_name)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ValueError(f"{path}: {module_name} has no {attribute}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        what = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise ValueError(f"{path}: expected a class derived from torch.nn.Module; got {what}")
    return found


def check_path(path: str) -> str:
    """Return ``path`` if it has the form of an import path, else raise ``ValueError``."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"{path}: expected an import path, package.module:Name")
    return path


def check_options(name: str, kind: type[nn.Module], options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless a network's constructor takes these options."""
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        known = ", ".join(inspect.signature(kind).parameters)
        raise ValueError(
            f"{name}: expected options among {known}; got {sorted(options)} ({error})"
        ) from error


def _import_module(path: str, name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Of the module itself or of a package above it, not of something that it imports.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{path}: there is no module {error.name} to import; install it, or put its "
                "folder on PYTHONPATH"
            ) from error
        raise ValueError(f"{path}: importing {name} failed: {_told(error)}") from error
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"{path}: importing {name} failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
