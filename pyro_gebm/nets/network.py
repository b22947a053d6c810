"""What every network with a name shares: a spec that rebuilds it, and the registry of names."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

from torch import Tensor, nn

from pyro_gebm._checks import check_choice

OptionValue: TypeAlias = int | float | str | bool | list[int]


class NetworkSpec(NamedTuple):
    """A name and the constructor's options: enough to rebuild an architecture.

    The name is a registered one, or the import path package.module:Name of a class of the user's.
    Name and options survive JSON: ``NetworkSpec(*json.loads(json.dumps(spec))) == spec``.
    """

    name: str
    options: dict[str, OptionValue]


class Network(nn.Module, ABC):
    """A module that can say how to rebuild itself, so that a checkpoint needs no pickle.

    Subclasses are final, carry ``@register(name)`` (but for ``ImportedNetwork``), and pass
    ``super().__init__`` the spec that ``build`` turns into the same architecture (the weights are
    the state dict's business).

    Attributes:
        spec: name and options of this network.
    """

    spec: NetworkSpec

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Map a batch (B, ...) to one output per row; in eval mode rows do not interact."""


NetworkT = TypeVar("NetworkT", bound=Network)
_REGISTRY: dict[str, type[Network]] = {}


def register(name: str) -> Callable[[type[NetworkT]], type[NetworkT]]:
    """Class decorator: let ``build`` find a ``Network`` under ``name``.

    Raises:
        ValueError: if the name is taken, or has a colon, as import paths do.
    """
    if name in _REGISTRY or ":" in name:
        told = "is taken" if name in _REGISTRY else "looks like an import path"
        raise ValueError(f"register: the name {name!r} {told}; choose another")

    def enter(network: type[NetworkT]) -> type[NetworkT]:
        _REGISTRY[name] = network
        return network

    return enter


def registered_names() -> list[str]:
    """Names that ``build`` knows, in alphabetical order."""
    return sorted(_REGISTRY)


def registered_class(name: str) -> type[Network]:
    """The class that is registered under a name.

    Raises:
        ValueError: there is none; the known names are listed.
    """
    return _REGISTRY[check_choice("network name", name, registered_names())]
