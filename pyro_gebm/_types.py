"""Types that every floor shares.

Shape letters used in all docstrings: ``B`` data in a batch, ``C`` chains, ``S`` draws per
chain, ``D`` latent dimensions, ``K`` features.
"""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

PotentialFn: TypeAlias = Callable[[Tensor], Tensor]
"""A potential, minus a log density up to a constant: positions (C, D) -> values (C,)."""
