"""Batches in parts, for what does not fit at once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm.objectives import interpolate


class Part(NamedTuple):
    """A part of a batch, worked through at once."""

    x: Tensor
    fake: Tensor
    u: Tensor | None
    """Where on the way from fake to x the penalty is taken; ``None`` without one."""
    share: float
    """Of the batch."""
    last: bool


class Seen(NamedTuple):
    """What a part's forward pass gave."""

    real: Tensor
    base: Tensor
    penalty: Tensor
    loss: Tensor
    share: float
    """Of the batch."""


class Sums(NamedTuple):
    """A batch put together again from its parts, without gradient."""

    real: Tensor
    base: Tensor
    means: tuple[Tensor, ...]
    """Mean energy of data and base, penalty and loss, scalars."""


def put_together(parts: list[Seen]) -> Sums:
    """Energies one after the other, penalty and loss by the parts' shares; under ``no_grad``."""
    if len(parts) == 1:  # small networks would notice the copies
        (only,) = parts
        real, base, penalty, loss = only.real.detach(), only.base.detach(), only.penalty, only.loss
    else:
        real, base = (
            torch.cat([part.real for part in parts]),
            torch.cat([part.base for part in parts]),
        )
        penalty = torch.stack([part.penalty * part.share for part in parts]).sum()
        loss = torch.stack([part.loss * part.share for part in parts]).sum()
    return Sums(real, base, (real.mean(), base.mean(), penalty, loss))


def split(x: Tensor, fake: Tensor, u: Tensor | None, count: int) -> Iterator[Part]:
    """``count`` parts of near equal size, each with its share of the samples ``fake``."""
    if count == 1:
        yield Part(x, fake, u, 1.0, True)
        return
    per_datum, start = len(fake) // len(x), 0
    for own in x.tensor_split(min(count, len(x))):
        end = start + len(own)
        yield Part(
            own,
            fake[per_datum * start : per_datum * end],
            None if u is None else u[start:end],
            len(own) / len(x),
            end == len(x),
        )
        start = end


def penalty_points(part: Part, where: str) -> Tensor | None:
    """Where the slope of the energy is penalised; ``None`` without a penalty."""
    if part.u is None:
        return None
    if where == "data":
        return part.x
    # The first of each datum's samples, whatever part of the batch this is.
    fake = part.fake[:: len(part.fake) // len(part.x)].detach()
    between = interpolate(part.x, fake, part.u)
    return between if where == "interpolates" else torch.cat([between, part.x])
