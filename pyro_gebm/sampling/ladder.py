"""Choosing the temperatures of replica exchange."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_gebm.mcmc import Kernel, Moves, Reference, warm_up
from pyro_gebm.mcmc.random import Streams
from pyro_gebm.mcmc.tempering import temper
from pyro_gebm.mcmc.transitions import transitions
from pyro_gebm.sampling.start import draw_start
from pyro_gebm.sampling.target import Target

TemperingChoice: TypeAlias = str | int | Sequence[float] | None
"""``None``, "auto", a number of replicas, or a ladder of β's from 0 or above up to 1."""

PILOT_CHAINS, PILOT_WARMUP, PILOT_STEPS, PILOT_ROUNDS = 16, 30, 40, 3
FIRST_LEVELS, MAX_LEVELS = 10, 40
PHASE = 2


def check_tempering(tempering: TemperingChoice) -> TemperingChoice:
    """The choice, a sequence as a tuple without its 0, or a ``ValueError``."""
    if tempering is None or (isinstance(tempering, str) and tempering == "auto"):
        return tempering
    if isinstance(tempering, np.ndarray | np.generic):  # such as attrs["tempering"]
        tempering = tempering.tolist()
    if isinstance(tempering, int) and not isinstance(tempering, bool) and tempering >= 2:
        return tempering
    if isinstance(tempering, Sequence) and not isinstance(tempering, str):
        ladder = tuple(tempering)
        numbers = all(isinstance(rung, Real) for rung in ladder)
        ladder = ladder[1:] if numbers and ladder[:1] == (0.0,) else ladder
        rising = numbers and list(ladder) == sorted(set(ladder))
        if rising and ladder and ladder[0] > 0 and ladder[-1] == 1:
            return tuple(float(rung) for rung in ladder)
    raise ValueError(
        'tempering: expected None, "auto", a number of replicas >= 2, or rising factors of β that '
        f"end with 1, such as (0, 0.3, 1); got {tempering!r}"
    )


def choose_ladder(
    tempering: TemperingChoice, kernel: Kernel, target: Target, seed: int
) -> tuple[float, ...]:
    """The factors λ of β, 0 < λ_1 < ... < λ_K = 1; the reference is one more replica at 0.

    Short pilot runs estimate the communication barrier Λ, the sum of the rejection rates
    between neighbours (Syed, Bouchard-Côté, Deligiannidis and Doucet 2022); λ's are placed at
    equal shares of it, and "auto" takes 2 Λ + 2 replicas, where their round trips are fastest.

    Raises:
        ValueError: the target has no reference.
    """
    if target.reference is None:
        raise ValueError(
            "tempering: expected a GEBM or a Pyro model, whose prior is the hottest replica; got "
            "a potential function"
        )
    if isinstance(tempering, tuple):
        return tempering
    ladder = _first_ladder(FIRST_LEVELS)
    for pilot in range(PILOT_ROUNDS):
        rejections = _pilot(kernel, ladder, target, target.reference, seed + pilot)
        levels = min(MAX_LEVELS, math.ceil(2 * float(rejections.sum()) + 1))
        if isinstance(tempering, int):
            levels = tempering - 1
        ladder = place(ladder, rejections, max(1, levels))
    return ladder


def _first_ladder(levels: int) -> tuple[float, ...]:
    """Factors of two: the barrier may lie anywhere."""
    return tuple(2.0 ** (k - levels + 1) for k in range(levels))


def _pilot(
    kernel: Kernel, ladder: tuple[float, ...], target: Target, reference: Reference, seed: int
) -> NDArray[np.float64]:
    """Rejection rates between neighbours, the first with the reference, (K,)."""
    moves = Moves(temper(kernel, ladder, reference), target.potential_fn)
    z = draw_start(target, PILOT_CHAINS).repeat(len(ladder), 1)
    warmed = warm_up(moves, z, PILOT_WARMUP, seed=seed)
    streams = Streams(seed, len(z), z.device, PHASE)
    stream = transitions(moves, warmed.position, warmed.tuning, streams)
    told = [next(stream).info.swap_accept_prob for _ in range(PILOT_STEPS)]
    accept = torch.stack([t for t in told if t is not None]).view(PILOT_STEPS, len(ladder), -1)
    rates: NDArray[np.float64] = 1 - accept.double().nanmean((0, 2)).cpu().numpy()
    return rates


def place(
    ladder: tuple[float, ...], rejections: NDArray[np.float64], levels: int
) -> tuple[float, ...]:
    """``levels`` factors at equal shares of the cumulated rejection rates.

    Example:
        >>> [round(rung, 3) for rung in place((0.5, 1.0), np.array([0.6, 0.2]), 4)]
        [0.167, 0.333, 0.5, 1.0]
    """
    # A rate of exactly 0 would leave the way back from shares to λ undefined.
    barrier = np.concatenate([[0.0], np.cumsum(np.maximum(rejections, 1e-3))])
    shares = np.linspace(0, barrier[-1], levels + 1)[1:]
    placed = np.interp(shares, barrier, np.array([0.0, *ladder]))
    return (*map(float, placed[:-1]), 1.0)
