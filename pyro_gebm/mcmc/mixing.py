"""Whether values mix more slowly than their squares, told by how far the chains' means differ."""

from typing import NamedTuple

import torch
from torch import Tensor

AS_A_NORMAL = 0.9
"""The ratio of ``imbalance`` for a normal of independent components, sampled by ChEES."""

MOST = 1.25
"""Trajectories are made longer by no more: the ratio is noisy."""

PRIOR_DRAWS = 10.0
"""Draws of a chain that would tell as much as what is known before: that a normal it is."""


class Mixing(NamedTuple):
    """Sums of y = z - centre, of y² and of y⁴ by chain, over a window of warm-up."""

    draws: int
    """Of each chain."""
    centre: Tensor
    """Of each group of chains, (G, D)."""
    sums: Tensor
    """(C, 3 D)."""


def no_mixing(centre: Tensor, num_chains: int) -> Mixing:
    """Sums of no draws, about ``centre`` (G, D)."""
    return Mixing(0, centre, centre.new_zeros(num_chains, 3 * centre.shape[1]))


def update_mixing(mixing: Mixing, z: Tensor) -> Mixing:
    """Sums with a draw more of every chain, ``z`` (C, D)."""
    y = (z.view(len(mixing.centre), -1, z.shape[1]) - mixing.centre[:, None]).view_as(z)
    square = y.square()
    sums = torch.cat([y, square, square.square()], 1).add_(mixing.sums)
    return mixing._replace(draws=mixing.draws + 1, sums=sums)


def imbalance(mixing: Mixing) -> Tensor:
    """Autocorrelation time of y over that of y², each the mean over components; a scalar.

    That time is n Var(mean of a chain's n draws) / Var(a draw). Not a number where there are
    no draws, one chain only, or a component that does not vary.
    """
    groups, dim = mixing.centre.shape
    means = (mixing.sums / float(mixing.draws)).view(groups, -1, 3, dim)
    mean = means.mean(1)
    first, second, fourth = mean.unbind(1)
    of_draws = torch.stack([second - first.square(), fourth - second.square()], 1)
    apart = (means - mean[:, None])[:, :, :2]
    of_means = apart.square().sum(1) / (means.shape[1] - 1)
    times = (of_means / of_draws).mean((0, 2))
    return times[0] / times[1]


def stretch(mixing: Mixing) -> Tensor:
    """By how much longer trajectories are to be than ChEES's criterion has them, 1 to 1.25.

    The criterion is of squares. For a normal it is largest where values and squares mix about
    alike; where the target is such that values are slower, longer trajectories help.
    """
    weight = mixing.draws / (mixing.draws + PRIOR_DRAWS)
    factor = (imbalance(mixing) / AS_A_NORMAL) ** weight
    return torch.where(factor.isfinite(), factor.clamp(1.0, MOST), 1.0)
