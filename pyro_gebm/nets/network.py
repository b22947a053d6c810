"""What every built-in network shares: a spec that rebuilds it, and the registry of names."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

from torch import Tensor, nn

from pyro_gebm._checks import check_choice

OptionValue: TypeAlias = int | float | str | bool | list[int]


class NetworkSpec(NamedTuple):
    """The registered name and the constructor's options: enough to rebuild an architecture.

    Both survive JSON: ``NetworkSpec(*json.loads(json.dumps(spec))) == spec``.
    """

    name: str
    options: dict[str, OptionValue]


class Network(nn.Module, ABC):
    """A module that can say how to rebuild itself, so that a checkpoint needs no pickle.

    Subclasses are final, carry ``@register(name)``, and pass ``super().__init__`` the spec that
    ``build`` turns into the same architecture (the weights are the state dict's business).

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
        ValueError: if the name is taken.
    """
    if name in _REGISTRY:
        raise ValueError(f"register: the name {name!r} is taken; choose another")

    def enter(network: type[NetworkT]) -> type[NetworkT]:
        _REGISTRY[name] = network
        return network

    return enter


def registered_names() -> list[str]:
    """Names that ``build`` knows, in alphabetical order."""
    return sorted(_REGISTRY)


def build(spec: NetworkSpec) -> Network:
    """Build a freshly initialised network from its spec.

    Args:
        spec: a registered name and its constructor's options.

    Returns:
        The network, in train mode, on the default device and dtype.

    Raises:
        ValueError: if the name is unknown (the known ones are listed), or the options are not
            those of this network.

    Example:
        >>> import torch
        >>> energy = build(NetworkSpec("mlp_energy", {"data_shape": [2], "hidden": [8]}))
        >>> energy(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    check_choice("network name", spec.name, registered_names())
    network = _REGISTRY[spec.name]
    try:
        inspect.signature(network).bind(**spec.options)
    except TypeError as error:
        known = ", ".join(inspect.signature(network).parameters)
        raise ValueError(
            f"{spec.name}: expected options among {known}; got {sorted(spec.options)} ({error})"
        ) from error
    # The registry holds concrete classes; their options were just checked against the signature.
    factory: Callable[..., Network] = network
    return factory(**spec.options)
