"""Networks from their specs: registered ones by name, the user's own by import path."""

from collections.abc import Callable

from pyro_gebm.nets.imported import build_imported, check_options, is_import_path
from pyro_gebm.nets.network import Network, NetworkSpec, registered_class


def build(spec: NetworkSpec) -> Network:
    """Build a freshly initialised network from its spec.

    Args:
        spec: a registered name, or an import path that ``trust`` allows, and its constructor's
            options.

    Returns:
        The network, in train mode, on the default device and dtype.

    Raises:
        ValueError: if the name is unknown (the known ones are listed), the options are not
            those of this network, or an import path is not trusted or does not lead to one.

    Example:
        >>> import torch
        >>> energy = build(NetworkSpec("mlp_energy", {"data_shape": [2], "hidden": [8]}))
        >>> energy(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    if is_import_path(spec.name):
        return build_imported(spec)
    network = registered_class(spec.name)
    check_options(spec.name, network, spec.options)
    # The registry holds concrete classes; their options were just checked against the signature.
    factory: Callable[..., Network] = network
    return factory(**spec.options)
