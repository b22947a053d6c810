"""Whether values mix more slowly than their squares, told by how far the chains' means differ."""

from typing import NamedTuple

import torch
from torch import Tensor

AS_A_NORMAL = 0.92
"""Autocorrelation time of values over that of squares, of a standard normal that is sampled with
trajectories of 0.44 to 2.2, as ChEES's: successive values have correlation E cos t, and
successive squares E cos² t."""

MOST = 1.25
"""Trajectories are made longer by no more: the ratio is noisy."""

FARTHEST = 0.25
"""Variance of the chains' means over that of the draws from which nothing is told: chains that
have hardly mixed in the window have times that say how long it was."""

PRIOR_DRAWS, PRIOR_MEANS = 10.0, 32.0
"""Draws of a chain, and chains times components, with which the ratio counts by half."""


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


def how_far_apart(mixing: Mixing) -> Tensor:
    """Variance of the chains' means over that of their draws, of y and of y², (2,).

    The mean over components; n times that, for chains of n draws, is the autocorrelation time. Not
    a number where there are no draws, one chain only, or a component that does not vary.
    """
    groups, dim = mixing.centre.shape
    means = (mixing.sums / mixing.draws).view(groups, -1, 3, dim)
    mean = means.mean(1)
    first, second, fourth = mean.unbind(1)
    of_draws = torch.stack([second - first.square(), fourth - second.square()], 1)
    shift = (means - mean[:, None])[:, :, :2]
    of_means = shift.square().sum(1) / (means.shape[1] - 1)
    return (of_means / of_draws).mean((0, 2))


def length_factor(mixing: Mixing) -> Tensor:
    """By how much longer trajectories are to be than ChEES's criterion has them, 1 to 1.25.

    The criterion is of squares. For a normal it is largest where values and squares mix about
    alike; where the target is such that values are slower, as in networks, longer trajectories
    help. They do not where the chains stay where they are, between modes far apart.
    """
    apart, squares_apart = how_far_apart(mixing).unbind()
    groups, dim = mixing.centre.shape
    means = (len(mixing.sums) - groups) * dim
    weight = mixing.draws / (mixing.draws + PRIOR_DRAWS) * means / (means + PRIOR_MEANS)
    factor = (apart / squares_apart / AS_A_NORMAL) ** weight
    return torch.where(factor.isfinite() & (apart < FARTHEST), factor.clamp(1.0, MOST), 1.0)
