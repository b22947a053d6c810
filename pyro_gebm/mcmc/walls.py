"""Walls, which reject a share of the proposals of warm-up however short steps are."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm.mcmc.averaging import spread_groups
from pyro_gebm.mcmc.kernel import Info

RATE = 0.2
"""Of the running means: a round of the batch counts so much, once chains have left their starts."""

NEARLY_ALL = 0.98
"""Acceptance of the proposals of finite energy above which shorter steps would gain nothing: steps
are then about a third of those of an acceptance of 0.8."""

MOST = 0.8
"""Share of proposals that a wall may cost: of more, steps themselves are held to be too long."""

FEW_STEPS = 2
"""A trajectory of more has its length whatever its steps; one of a step or two gets shorter, and
meets fewer walls, with them. Those of MALA are, so that nothing changes there."""


class Walls(NamedTuple):
    """Running means of each group of chains, (G,) each."""

    accepted: Tensor
    """Acceptance of the proposals of finite energy."""
    lost: Tensor
    """Share of those of infinite energy, or none."""


def no_walls(like: Tensor, groups: int) -> Walls:
    """Nothing known yet, of groups of chains like ``like`` (C, ...)."""
    return Walls(like.new_zeros(groups), like.new_zeros(groups))


def look_for_walls(walls: Walls, info: Info, awake: Tensor, target: float) -> tuple[Walls, Info]:
    """What is known of walls after one more transition of all chains, and what steps learn from.

    A proposal beyond a wall, where the potential is infinite, is rejected however short steps
    are; to dual averaging it would say that they are too long, until nothing is left of them.
    Where proposals of finite energy are accepted nearly always, and most are of that kind, those
    lost say nothing: they count as acceptance ``target``. So steps do not shrink below an
    acceptance of 0.98 of the others. Trees of NUTS end at walls with most of their leaves
    accepted, and are left as they are.

    Args:
        walls: so far.
        info: of the transitions, (C,) each.
        awake: which chains have a say, (C,) bool.
        target: the acceptance that is wanted.
    """
    if info.energy_error is None or info.tree_depth is not None:
        return walls, info
    groups = len(walls.lost)
    lost = ~torch.isfinite(info.energy_error)
    counts = ((awake & those).view(groups, -1).sum(1) for those in (~lost, lost))
    finite, gone = (count.to(walls.lost) for count in counts)
    accepted = (info.accept_prob * (awake & ~lost)).view(groups, -1).sum(1) / finite
    walls = Walls(
        torch.where(finite > 0, torch.lerp(walls.accepted, accepted, RATE), walls.accepted),
        torch.where(finite + gone > 0, walls.lost.lerp(gone / (finite + gone), RATE), walls.lost),
    )
    useless = (walls.accepted > NEARLY_ALL) & (walls.lost < MOST)
    excused = lost & spread_groups(useless, lost) & (info.num_steps > FEW_STEPS)
    return walls, info._replace(accept_prob=info.accept_prob.masked_fill(excused, target))
