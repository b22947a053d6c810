"""The reference law that a target is compared with: for a GEBM, its base."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pyro_gebm._types import PotentialFn


class Reference(NamedTuple):
    """A law that can be drawn from exactly, and its potential, in the target's coordinates.

    For a GEBM it is the base: latents z ~ η. Global moves and the IMH kernel propose from it;
    replica exchange runs from it to the target along U_λ = U_0 + λ (U - U_0).
    """

    sample: Callable[[int], Tensor]
    """n -> independent draws (n, D), from torch's global generator."""
    potential_fn: PotentialFn
    """U_0, minus its log density up to a constant: (C, D) -> (C,)."""
