"""Spectral normalisation: layers that stretch no vector, and so a bound on an energy's slope."""

from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

ModuleT = TypeVar("ModuleT", bound=nn.Module)

NORMALISED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def with_spectral_norm(module: ModuleT) -> ModuleT:
    """Divide the weight of every linear and convolutional layer by its spectral norm, in place.

    W becomes W/σ(W), with σ the largest singular value: an affine layer then stretches no
    distance (Miyato et al., 2018, arXiv 1802.05957). A network of such layers has at most the
    slope of its activations: 1 for tanh, softplus and leaky ReLU, 1.10 for SiLU, 1.13 for GELU,
    multiplied over the hidden layers. σ comes from power iterations, one at each forward pass in
    train mode and none in eval mode; it is low until they have converged, and the bound is then
    exceeded by as much.

    A convolution's W is its kernel as a matrix with one row per output channel. That bounds its
    slope by the square root of the number of patches that share an input (9 kernel positions at
    stride 1: by 3), not by 1. Layers of other kinds are left alone.

    The names in the state dict change, and the spec of a built-in network does not: give ``load``
    a normalised one, or use the option of that name where the network has it.

    Args:
        module: a network, or a single layer; changed in place.

    Returns:
        ``module``.

    Raises:
        ValueError: there is no such layer; one is parametrised already, by this function or
            another; or the weights of one are all zero. Nothing is changed then.

    Example:
        >>> import torch
        >>> layer = with_spectral_norm(nn.Linear(3, 5))
        >>> for _ in range(100):
        ...     _ = layer(torch.zeros(1, 3))
        >>> round(torch.linalg.matrix_norm(layer.weight, ord=2).item(), 4)
        1.0
    """
    layers = {name: m for name, m in module.named_modules() if isinstance(m, NORMALISED)}
    if not layers:
        raise ValueError(
            f"module: expected a linear or convolutional layer in it; got {type(module).__name__} "
            "without any"
        )
    for name, layer in layers.items():
        _check_plain(name or type(module).__name__, layer)
    for layer in layers.values():
        spectral_norm(layer)
    return module


def _check_plain(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose weight is not a parameter of its own, or is zero."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None:
        raise ValueError(
            f"module: expected layers with plain weights; that of {name} is parametrised already; "
            "apply spectral norm once, and no other norm of weights with it"
        )
    if not weight.any():
        raise ValueError(
            f"module: expected layers with weights; those of {name} are all zero, which no "
            "division can bring to norm 1; initialise them otherwise"
        )
