"""Where the draws of a run start, and what was chosen on the way there."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_gebm.mcmc import GlobalMoves, Kernel, KernelState, Moves, Position, Tuning, Warmed
from pyro_gebm.mcmc.kernel import take_rows
from pyro_gebm.mcmc.tempering import temper
from pyro_gebm.sampling.pilot import Pilot
from pyro_gebm.sampling.target import Target

T = TypeVar("T", KernelState, Tuning)


class Ready(NamedTuple):
    """All that the draws need, after warm-up or from an earlier run."""

    warmed: Warmed
    seed: int
    """Of the noise: the run's own, or that of the run that is resumed."""
    global_moves: GlobalMoves | None = None
    ladder: tuple[float, ...] | None = None
    pilot: Pilot | None = None
    """Base draws that the run is compared with."""
    problems: tuple[str, ...] = ()
    """Warnings beyond those that the draws themselves give."""

    def moves(self, kernel: Kernel, target: Target) -> Moves:
        """What moves the chains."""
        kernel = kernel.bind(target.reference)
        if self.ladder is None:
            return Moves(kernel, target.potential_fn, target.reference, self.global_moves)
        assert target.reference is not None
        return Moves(temper(kernel, self.ladder, target.reference), target.potential_fn)


def take_chains(warmed: Warmed, chains: slice, levels: int) -> Warmed:
    """The same for some chains, at all levels of the batch."""
    position, tuning = warmed.position, warmed.tuning
    every = torch.arange(len(position.step), device=position.step.device).view(levels, -1)
    rows = every[:, chains].flatten()
    masses = tuning.inverse_mass_matrix
    tuning = tuning._replace(
        step_size=tuning.step_size[rows],
        inverse_mass_matrix=masses if masses.ndim == 1 else masses[rows],
        curvature=None if tuning.curvature is None else tuning.curvature[rows],
    )
    state = take_rows(position.state, rows)
    position = Position(state, position.step[rows], position.transitions[rows])
    return warmed._replace(position=position, tuning=tuning, spent=warmed.spent[rows])


def put_chains(parts: list[Position], levels: int) -> Position:
    """Where all chains stand, from where those of each part do."""

    def join(fields: tuple[Any, ...]) -> Any:
        if fields[0] is None:
            return None
        by_level = [field.reshape(levels, -1, *field.shape[1:]) for field in fields]
        return torch.cat(by_level, 1).flatten(0, 1)

    columns = zip(*(part.state for part in parts), strict=True)
    counts = (tuple(part.step for part in parts), tuple(part.transitions for part in parts))
    return Position(KernelState(*map(join, columns)), *map(join, counts))


def move_position(position: Position, device: torch.device) -> Position:
    """The same on another device."""
    counts = position.step.to(device), position.transitions.to(device)
    return Position(_move(position.state, device), *counts)


def move_ready(ready: Ready, device: torch.device) -> Ready:
    """The same on another device, but for the pilot and the draws of warm-up: without them."""
    warmed = Warmed(
        move_position(ready.warmed.position, device),
        _move(ready.warmed.tuning, device),
        ready.warmed.spent.to(device),
    )
    return ready._replace(warmed=warmed, pilot=None)


def _move(values: T, device: torch.device) -> T:
    fields: list[Any] = [f.to(device) if isinstance(f, Tensor) else f for f in values]
    return type(values)(*fields)
