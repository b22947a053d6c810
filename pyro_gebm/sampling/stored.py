"""A run whose draws go to a file while they are made, by one process or by several."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm.inference_data import Attribute, InferenceData, Store
from pyro_gebm.mcmc import Info, Kernel, Position
from pyro_gebm.mcmc.draws import Buffers
from pyro_gebm.mcmc.free_jumps import moves_tried
from pyro_gebm.mcmc.run import fill, position_at
from pyro_gebm.sampling.destination import unfinished_path
from pyro_gebm.sampling.pilot import missing_mass
from pyro_gebm.sampling.ready import Ready, move_position, move_ready, put_chains, take_chains
from pyro_gebm.sampling.result import attributes_of, posterior_of, statistics_of, warmup_of
from pyro_gebm.sampling.resume import same_potential, save_state
from pyro_gebm.sampling.settings import Settings, kernel_name
from pyro_gebm.sampling.target import Target
from pyro_gebm.sampling.team import Team

CPU = torch.device("cpu")


class _Run(NamedTuple):
    """What all steps of a run know."""

    settings: Settings
    kernel: Kernel
    target: Target
    team: Team
    path: Path


class _Part(NamedTuple):
    """What a process has drawn."""

    path: Path
    draws: int
    position: Position
    """Where its chains stand, on the CPU."""
    interrupted: bool
    is_free: bool
    last_step: int
    """The step that its batch has come to."""


def run_stored(
    settings: Settings,
    kernel: Kernel,
    target: Target,
    get_ready: Callable[[], Ready],
    device: torch.device,
    started: float,
) -> tuple[InferenceData, list[str]]:
    """A run into ``settings.store``, read lazily from there, and what is wrong with it.

    Args:
        settings: of ``sample``.
        kernel: of the settings.
        target: what is sampled.
        get_ready: warms up, or loads the state of an earlier run; the first process calls it.
        device: of the model in this process.
        started: by ``time.perf_counter``.

    Raises:
        ValueError: the processes have different settings or models.
        RuntimeError: another process has failed.
    """
    assert settings.store is not None
    run = _Run(settings, kernel, target, Team(settings.distributed), settings.store)
    ready = _prepare(run, get_ready, device)
    parts = run.team.all(lambda: _draw(run, ready))
    run.team.first(lambda: _finish(run, ready, parts, started))
    idata = inference_data.open_lazily(run.path)
    return idata, _problems(run, ready, idata) if run.team.leads else []


def _prepare(run: _Run, get_ready: Callable[[], Ready], device: torch.device) -> Ready:
    """Where the draws start, from the first process."""
    _check_settings(run)
    own: list[Ready] = []

    def work() -> Ready:
        ready = get_ready()
        own.append(ready)
        return move_ready(ready, CPU)

    told = run.team.first(work)
    ready = own[0] if own else move_ready(told, device)
    run.team.all(lambda: _check_model(run, ready))
    return ready


def _check_settings(run: _Run) -> None:
    plain = run.settings._replace(progress=False)._asdict() | {"kernel": kernel_name(run.kernel)}
    told = run.team.all(lambda: {name: str(value) for name, value in plain.items()})
    differing = {name: [each[name] for each in told] for name in plain}
    listed = [f"{n}: {', '.join(v)}" for n, v in differing.items() if len(set(v)) > 1]
    if listed:
        raise ValueError(
            f"distributed: expected the same settings in all processes; got {'; '.join(listed)}"
        )


def _check_model(run: _Run, ready: Ready) -> None:
    state = ready.warmed.position.state
    if not same_potential(state, run.target, run.settings.num_chains):
        raise ValueError(
            "distributed: expected the same model and data in all processes; got a potential that "
            "differs from the first one's where its chains stand; load one checkpoint in all"
        )


def _draw(run: _Run, ready: Ready) -> _Part:
    """Fill this process's file."""
    settings, team = run.settings, run.team
    levels = _levels(ready)
    chains = team.chains(settings.num_chains)
    warmed, size = take_chains(ready.warmed, chains, levels), chains.stop - chains.start
    path = unfinished_path(run.path, team.rank if team.size > 1 else None)
    store = _new_store(run, ready, path, (size, settings.num_samples), whole=team.size == 1)
    sink = _Sink(store, run.target, settings.include_x, warmed.tuning.step_size[-size:])
    buffers = Buffers(size, settings.num_samples, settings.storage_dtype, sink)
    try:
        ended = fill(
            buffers,
            ready.moves(run.kernel, run.target),
            warmed,
            thinning=settings.thinning,
            seed=ready.seed,
            progress=settings.progress and team.leads,
            blocks=None if team.size == 1 else team.blocks(settings.num_chains, levels),
        )
        buffers.flush()
    finally:
        store.close()
    last_step = int(warmed.position.step.min()) + ended.batch_steps
    position = move_position(ended.position, CPU)
    return _Part(path, buffers.whole(), position, ended.interrupted, ended.is_free, last_step)


def _levels(ready: Ready) -> int:
    return 1 if ready.ladder is None else len(ready.ladder)


def _new_store(run: _Run, ready: Ready, path: Path, shape: tuple[int, int], whole: bool) -> Store:
    """A file for some chains, or for the whole run with its state and warm-up."""
    pending: dict[str, Attribute] = {"sampling_time": np.nan, "interrupted": 1, "batch_steps": 0}
    about = attributes_of(run.settings, ready, run.target) | pending
    groups = {}
    if whole:
        state = save_state(ready.warmed.position, ready)
        groups["state"] = {name: np.zeros_like(array) for name, array in state.items()}
        groups |= warmup_of(run.target, ready)
    return Store(path, shape, about, groups)


@final
class _Sink:
    """Turns what buffers hand on into pieces of a file."""

    def __init__(self, store: Store, target: Target, include_x: bool, step_size: Tensor) -> None:
        self._store, self._target = store, target
        self._include_x, self._step_size = include_x, step_size

    def __call__(self, chains: slice, first: int, fields: dict[str, Tensor]) -> None:
        told = dict(fields)
        z, energy = told.pop("z"), told.pop("potential_energy")
        posterior = posterior_of(self._target, z, self._include_x)
        statistics = statistics_of(energy, Info(**told), self._step_size[chains])
        self._store.write(chains, first, posterior, statistics)


def _finish(run: _Run, ready: Ready, parts: list[_Part], started: float) -> None:
    """Make the parts one whole file."""
    draws = min(part.draws for part in parts)
    interrupted = any(part.interrupted for part in parts)
    unfinished = unfinished_path(run.path)
    if len(parts) > 1:
        store = _new_store(run, ready, unfinished, (run.settings.num_chains, draws), whole=True)
        inference_data.join([part.path for part in parts], store, draws)
        store.close()
    steps, in_step = inference_data.count_steps(unfinished, draws)
    position = _last_position(run, ready, parts, interrupted, steps)
    start, made = ready.warmed.position, draws * run.settings.thinning
    tried = moves_tried(ready.global_moves, start.transitions, start.transitions + made)
    last_step = max(part.last_step for part in parts)
    batch_steps = last_step - int(start.step.min()) + int(tried.max())
    found: dict[str, Attribute] = {
        "sampling_time": time.perf_counter() - started,
        "interrupted": int(interrupted),
        "batch_steps": batch_steps if parts[0].is_free else in_step,
    }
    state = None if position is None else save_state(position, ready)
    inference_data.finish(unfinished, run.path, draws, found, state)
    for part in parts:
        part.path.unlink(missing_ok=True)


def _last_position(
    run: _Run,
    ready: Ready,
    parts: list[_Part],
    interrupted: bool,
    steps: NDArray[np.int64],
) -> Position | None:
    """Where a later run goes on; unknown where processes were interrupted at different places."""
    if not interrupted:
        return put_chains([part.position for part in parts], _levels(ready))
    if len(parts) > 1:
        return None
    (part,) = parts
    if not part.is_free:
        return part.position
    last = inference_data.last_draw(part.path, part.draws)
    like = ready.warmed.position.state.z
    sites = {name: torch.as_tensor(last[name]).to(like) for name in run.target.shapes}
    moves, u = ready.moves(run.kernel, run.target), run.target.from_sites(sites)
    made = part.draws * run.settings.thinning
    return position_at(moves, ready.warmed.position, u, torch.as_tensor(steps), made)


def _problems(run: _Run, ready: Ready, idata: InferenceData) -> list[str]:
    """What the checks say, which read a bounded share of a long run."""
    missed = []
    if ready.pilot is not None:
        step = inference_data.stride(idata)
        flat = {
            name: torch.as_tensor(inference_data.every(idata, name, step)).to(ready.pilot.z)
            for name in run.target.shapes
        }
        shape = next(iter(flat.values())).shape[:2]
        u = run.target.from_sites({name: value.flatten(0, 1) for name, value in flat.items()})
        lp = inference_data.every(idata, "lp", step, "sample_stats")
        missed = missing_mass(ready.pilot, u.view(*shape, -1), -torch.as_tensor(lp), run.target)
    found = inference_data.problems(inference_data.abridged(idata))
    return [*ready.problems, *missed, *found]
