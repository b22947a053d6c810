"""What makes a generator a flow: it can be inverted, and says how it stretches volume."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Inverted(NamedTuple):
    """Where data come from, and how much denser they are than their latents."""

    z: Tensor
    """G⁻¹(x), (B, D)."""
    log_det: Tensor
    """log |det dz/dx|, (B,), nats."""


class Flow(nn.Module, ABC):
    """A generator G: z (B, D) -> x (B, D) with an inverse and its Jacobian.

    With it ``Base(flow, latent_prior)`` has the density h(x) = η(z) |det dz/dx| at z = G⁻¹(x),
    which ``log_prob`` evaluates. Rows do not interact in eval mode.
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, of latents and data alike."""

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """G(z), (B, D) -> (B, D)."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Inverted:
        """G⁻¹(x) and log |det dz/dx|, (B, D) -> (B, D) and (B,)."""
