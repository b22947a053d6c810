"""A tensor program as a list of operations, replayed without the Python code that made it."""

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

COMPUTED = object()
"""What stands in a register until its step has run."""


class Step(NamedTuple):
    """``registers[out] = call(*registers[arguments], **kwargs)``."""

    call: Callable[..., Any]
    arguments: tuple[int, ...]
    kwargs: dict[str, Any]
    out: int


@final
class Tape:
    """A program from tensors to tensors, for inputs of one shape, dtype and device each.

    Args:
        steps: operations in their order; ``arguments`` and ``out`` are numbers of registers.
        values: what every register holds at the start; the first ones are the inputs.
        outputs: registers of the results.
        checks: registers of steps that are taken though nothing depends on them.
        num_inputs: of the program.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        values: Sequence[Any],
        outputs: Sequence[int],
        checks: Sequence[int] = (),
        num_inputs: int = 1,
    ) -> None:
        needed = _needed(steps, [*outputs, *checks])
        places, self._constants = _allocate(needed, values, outputs, num_inputs)
        self._steps = [
            (step.call, _taker([places[r] for r in step.arguments]), step.kwargs, places[step.out])
            for step in needed
        ]
        self._outputs = [places[register] for register in outputs]

    def __len__(self) -> int:
        """How many operations a replay takes."""
        return len(self._steps)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results at inputs that are like those that it was recorded at."""
        registers = [plain(u) for u in inputs] + self._constants
        for call, take, kwargs, out in self._steps:
            registers[out] = call(*take(registers), **kwargs)
        return tuple(registers[place] for place in self._outputs)


def plain(u: Tensor) -> Tensor:
    """u at the beginning of its memory and without gaps, as ``as_strided`` wants it."""
    u = u.detach()
    return u if u.is_contiguous() and not u.storage_offset() else u.clone().contiguous()


def _needed(steps: Sequence[Step], outputs: Iterable[int]) -> list[Step]:
    """The steps that the results depend on."""
    wanted, kept = set(outputs), list[Step]()
    for step in reversed(steps):
        if step.out in wanted:
            wanted.update(step.arguments)
            kept.append(step)
    return kept[::-1]


def _allocate(
    steps: Sequence[Step], values: Sequence[Any], outputs: Sequence[int], num_inputs: int
) -> tuple[dict[int, int], list[Any]]:
    """Places of registers, used again once nobody reads them, so that memory is freed.

    Returns:
        The place of each register, and what stands in the places after the inputs at the start.
    """
    last = {register: place for place, step in enumerate(steps) for register in step.arguments}
    last |= dict.fromkeys(outputs, len(steps))
    places, constants, free = {r: r for r in range(num_inputs)}, list[Any](), list[int]()
    for place, step in enumerate(steps):
        for register in step.arguments:
            if register not in places:  # a constant
                places[register] = num_inputs + len(constants)
                constants.append(values[register])
        if free:
            places[step.out] = free.pop()
        else:
            places[step.out] = num_inputs + len(constants)
            constants.append(COMPUTED)
        read = [r for r in dict.fromkeys(step.arguments) if values[r] is COMPUTED]
        free += [places[r] for r in read if last[r] == place]
    return places, constants


def _taker(places: list[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """registers -> those at some places, a tuple."""
    if len(places) == 1:
        (only,) = places
        return lambda registers: (registers[only],)
    return itemgetter(*places)
