"""The loop: warm-up with adaptation, then draws into preallocated buffers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.adaptation import (
    adapt,
    close_window,
    final_tuning,
    start_adaptation,
    window_ends,
)
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, Tuning


class Draws(NamedTuple):
    """What a run returns, chains first everywhere."""

    z: Tensor
    """Positions, (C, S, D)."""
    potential_energy: Tensor
    """U at each, (C, S)."""
    info: Info
    """Of the transitions since the draw before, (C, S) each."""
    tuning: Tuning
    """What sampling used."""
    last: KernelState
    """Where the chains stand."""
    num_warmup_steps: Tensor
    """Gradient evaluations of warm-up, (C,) int64."""
    interrupted: bool
    """Ctrl-C ended the run before all draws were there."""


class Buffers(NamedTuple):
    """Room for all draws, filled from the front."""

    z: Tensor
    potential_energy: Tensor
    info: Info


def run(
    kernel: Kernel,
    potential_fn: PotentialFn,
    z: Tensor,
    *,
    num_samples: int,
    warmup_steps: int,
    thinning: int = 1,
    target_accept_prob: float = 0.8,
    tuning: Tuning | None = None,
    generator: torch.Generator,
    progress: bool = False,
) -> Draws:
    """Run all chains of a batch.

    Args:
        kernel: what moves the chains.
        potential_fn: U, (C, D) -> (C,).
        z: where the chains start, (C, D), of finite potential.
        num_samples: draws kept per chain.
        warmup_steps: transitions of warm-up before them.
        thinning: transitions per draw; the numbers of steps of a draw are summed.
        target_accept_prob: what the step size is tuned to.
        tuning: start from this tuning instead of searching for one (with
            ``warmup_steps=0``: keep it).
        generator: source of randomness, on the device of ``z``.
        progress: show a progress bar on standard error.

    Returns:
        The draws; after Ctrl-C those that were whole, all chains of equal length.

    Raises:
        KeyboardInterrupt: Ctrl-C came before the first draw.
    """
    bar = tqdm(
        total=warmup_steps + num_samples * thinning,
        desc=f"{type(kernel).__name__} x {len(z)} chains",
        disable=not progress,
        mininterval=0.3,
        leave=False,
    )
    with bar:
        runner = _Runner(kernel, potential_fn, generator, bar)
        state = kernel.init(potential_fn, z)
        if tuning is None or warmup_steps:
            state, tuning, spent = runner.warm_up(state, tuning, warmup_steps, target_accept_prob)
        else:
            spent = torch.zeros_like(state.potential_energy, dtype=torch.int64)
        state, info = runner.draw(state, tuning, thinning)
        buffers = _allocate(state, info, num_samples)
        _store(buffers, 0, state, info)
        held = (state, 1)
        try:
            for draw in range(1, num_samples):
                moved, info = runner.draw(held[0], tuning, thinning)
                _store(buffers, draw, moved, info)
                # One assignment: Ctrl-C may come anywhere, and a draw counts once it is whole.
                held = (moved, draw + 1)
        except KeyboardInterrupt:
            pass
    state, done = held
    fields = [None if field is None else field[:, :done] for field in buffers.info]
    return Draws(
        z=buffers.z[:, :done],
        potential_energy=buffers.potential_energy[:, :done],
        info=Info(*fields),  # type: ignore[arg-type]
        tuning=tuning,
        last=state,
        num_warmup_steps=spent,
        interrupted=done < num_samples,
    )


class _Runner(NamedTuple):
    """What stays the same through a run."""

    kernel: Kernel
    potential_fn: PotentialFn
    generator: torch.Generator
    bar: "tqdm[Any]"

    def warm_up(
        self,
        state: KernelState,
        given: Tuning | None,
        warmup_steps: int,
        target_accept_prob: float,
    ) -> tuple[KernelState, Tuning, Tensor]:
        """Warm-up: the state after it, the tuning found, the gradient evaluations spent (C,)."""
        kernel = self.kernel.for_warmup()
        adaptation, tuning, searched = start_adaptation(
            kernel, self.potential_fn, state, given, self.generator
        )
        spent = torch.full_like(state.potential_energy, searched, dtype=torch.int64)
        ends = window_ends(warmup_steps)
        for step in range(1, warmup_steps + 1):
            state, info = kernel.step(self.potential_fn, state, tuning, generator=self.generator)
            spent += info.num_steps
            adaptation, tuning = adapt(kernel, adaptation, tuning, state, info, target_accept_prob)
            if step in ends:
                adaptation, tuning = close_window(kernel, adaptation, tuning, state)
            self.bar.update()
        return state, final_tuning(kernel, adaptation, tuning), spent

    def draw(self, state: KernelState, tuning: Tuning, thinning: int) -> tuple[KernelState, Info]:
        """``thinning`` transitions, told of as one."""
        state, total = self._step(state, tuning)
        for count in range(2, thinning + 1):
            state, info = self._step(state, tuning)
            total = merge(total, info, count)
        return state, total

    def _step(self, state: KernelState, tuning: Tuning) -> tuple[KernelState, Info]:
        self.bar.update()
        return self.kernel.step(self.potential_fn, state, tuning, generator=self.generator)


def merge(total: Info, info: Info, count: int) -> Info:
    """What ``count`` transitions tell together, from what the first count - 1 told and the last.

    Steps are summed, acceptance is averaged, divergence and reached limits of any are told, and
    the deepest tree and the largest error are kept; energies are those of the last.
    """
    merged = info._replace(
        num_steps=total.num_steps + info.num_steps,
        diverging=total.diverging | info.diverging,
        accept_prob=total.accept_prob + (info.accept_prob - total.accept_prob) / count,
    )
    if total.tree_depth is not None and info.tree_depth is not None:
        merged = merged._replace(tree_depth=torch.maximum(total.tree_depth, info.tree_depth))
    if total.reached_max_treedepth is not None and info.reached_max_treedepth is not None:
        reached = total.reached_max_treedepth | info.reached_max_treedepth
        merged = merged._replace(reached_max_treedepth=reached)
    if total.max_energy_error is not None and info.max_energy_error is not None:
        larger = total.max_energy_error.abs() > info.max_energy_error.abs()
        error = torch.where(larger, total.max_energy_error, info.max_energy_error)
        merged = merged._replace(max_energy_error=error)
    return merged


def _allocate(state: KernelState, info: Info, num_samples: int) -> Buffers:
    def room(example: Tensor) -> Tensor:
        chains, *rest = example.shape
        return example.new_empty(chains, num_samples, *rest)

    fields = [room(field) if isinstance(field, Tensor) else None for field in info]
    return Buffers(room(state.z), room(state.potential_energy), Info(*fields))  # type: ignore[arg-type]


def _store(buffers: Buffers, draw: int, state: KernelState, info: Info) -> None:
    buffers.z[:, draw] = state.z
    buffers.potential_energy[:, draw] = state.potential_energy
    for room, field in zip(buffers.info, info, strict=True):
        if isinstance(room, Tensor) and isinstance(field, Tensor):
            room[:, draw] = field
