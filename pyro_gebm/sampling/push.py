"""Latents through the generator, in chunks."""

import torch
from torch import Tensor

from pyro_gebm.model import GEBM

CHUNK = 1024
"""Latents that pass through the generator at once."""


def push_forward(model: GEBM, z: Tensor) -> Tensor:
    """x = G(z) in chunks, (..., D) -> (..., *data shape), without gradient, on the CPU."""
    flat = z.reshape(-1, z.shape[-1])
    with torch.no_grad():
        parts = [model.base(chunk).cpu() for chunk in torch.split(flat, CHUNK)]
    x = torch.cat(parts)
    return x.reshape(*z.shape[:-1], *x.shape[1:])
