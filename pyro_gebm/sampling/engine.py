"""The run behind ``sample``: kernel, global moves and replicas on a target."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_gebm.mcmc import (
    Draws,
    GlobalMoves,
    Kernel,
    Moves,
    PyroKernel,
    Warmed,
    draw,
    run_pyro,
    warm_up,
)
from pyro_gebm.mcmc.tempering import temper
from pyro_gebm.sampling.ladder import choose_ladder
from pyro_gebm.sampling.pilot import (
    first_moves,
    missing_mass,
    run_pilot,
    settled_moves,
    suits_global_moves,
)
from pyro_gebm.sampling.price import price_of
from pyro_gebm.sampling.ready import Ready
from pyro_gebm.sampling.resume import load_state, save_state
from pyro_gebm.sampling.settings import Settings
from pyro_gebm.sampling.start import draw_start
from pyro_gebm.sampling.target import Target


class Run(NamedTuple):
    """Draws, and what was chosen and found on the way."""

    draws: Draws
    ready: Ready
    state: dict[str, Any] | None
    """What a later run needs to go on."""
    problems: list[str]
    """Warnings beyond those that the draws themselves give."""


def run_kernel(
    settings: Settings, target: Target, start: Tensor | None, seed: int, resume: Any, is_gebm: bool
) -> Run:
    """A run of one of our kernels or of Pyro's, in memory.

    Args:
        settings: of ``sample``.
        target: what is sampled.
        start: unconstrained starts (C, D'); ``None`` with ``resume``.
        seed: of the run.
        resume: the result of an earlier run, or ``None``.
        is_gebm: the reference is a base that the energy was trained on: where global moves
            from it are of no use, say so.
    """
    kernel = settings.kernel
    if not isinstance(kernel, Kernel):
        assert start is not None
        return _run_pyro(settings, kernel, target, start, seed)
    ready = get_ready(settings, kernel, target, start, seed, resume, is_gebm)
    draws = draw(
        ready.moves(kernel, target),
        ready.warmed,
        settings.num_samples,
        thinning=settings.thinning,
        seed=ready.seed,
        progress=settings.progress,
        dtype=settings.storage_dtype,
    )
    missed = missing_mass(ready.pilot, draws.z, draws.potential_energy, target)
    return Run(draws, ready, save_state(draws.last, ready), [*ready.problems, *missed])


def _run_pyro(
    settings: Settings, kernel: PyroKernel, target: Target, start: Tensor, seed: int
) -> Run:
    draws = run_pyro(
        kernel,
        target.potential_fn,
        start,
        num_samples=settings.num_samples,
        warmup_steps=settings.warmup_steps,
        thinning=settings.thinning,
        target_accept_prob=settings.target_accept_prob,
        seed=seed,
        progress=settings.progress,
    )
    warmed = Warmed(draws.last, draws.tuning, draws.num_warmup_steps)
    return Run(draws, Ready(warmed, seed), None, [])


def get_ready(
    settings: Settings,
    kernel: Kernel,
    target: Target,
    start: Tensor | None,
    seed: int,
    resume: Any,
    is_gebm: bool,
) -> Ready:
    """What the draws start from: warm-up, or where an earlier run has ended.

    Args:
        settings: of ``sample``.
        kernel: of the settings.
        target: as in ``run_kernel``.
        start: as in ``run_kernel``.
        seed: as in ``run_kernel``.
        resume: as in ``run_kernel``.
        is_gebm: as in ``run_kernel``.
    """
    if resume is not None:
        return load_state(resume, target, settings)
    assert start is not None
    if settings.tempering is not None:
        return _warm_up_tempered(settings, kernel, target, start, seed, is_gebm)
    return _warm_up_local(settings, kernel, target, start, seed, is_gebm)


def _warm_up_local(
    settings: Settings, kernel: Kernel, target: Target, start: Tensor, seed: int, is_gebm: bool
) -> Ready:
    problems: tuple[str, ...] = ()
    automatic = settings.global_moves == "auto" and suits_global_moves(kernel)
    pilot = run_pilot(target, seed, settings.chunk_size) if automatic or is_gebm else None
    moves = settings.global_moves if isinstance(settings.global_moves, GlobalMoves) else None
    if automatic and pilot is not None:
        price = price_of(target, pilot.z)
        moves = first_moves(pilot, kernel, price, len(start))
    bound = kernel.bind(target.reference)
    warmed = _warm_up(
        settings, Moves(bound, target.potential_fn, target.reference, moves), start, seed
    )
    if automatic and pilot is not None:
        moves = settled_moves(pilot, warmed, target, price, kernel)
        if moves is None and is_gebm:
            problems = (_TOO_FAR,)
    return Ready(warmed, seed, moves, None, pilot if is_gebm else None, problems)


_TOO_FAR = (
    "global moves are off: fewer than 0.1 % of them would be accepted, base and model hardly "
    'overlap; where chains may have to cross between modes, take tempering="auto"'
)


def _warm_up_tempered(
    settings: Settings, kernel: Kernel, target: Target, start: Tensor, seed: int, is_gebm: bool
) -> Ready:
    kernel = kernel.bind(target.reference)
    ladder = choose_ladder(settings.tempering, kernel, target, seed)
    assert target.reference is not None
    replicas = temper(kernel, ladder, target.reference)
    hotter = [draw_start(target, len(start)) for _ in ladder[1:]]
    moves = Moves(replicas, target.potential_fn)
    warmed = _warm_up(settings, moves, torch.cat([*hotter, start]), seed)
    pilot = run_pilot(target, seed, settings.chunk_size) if is_gebm else None
    return Ready(warmed, seed, None, ladder, pilot)


def _warm_up(settings: Settings, moves: Moves, start: Tensor, seed: int) -> Warmed:
    return warm_up(
        moves,
        start,
        settings.warmup_steps,
        target_accept_prob=settings.target_accept_prob,
        seed=seed,
        progress=settings.progress,
        keep=settings.include_warmup,
        dtype=settings.storage_dtype,
    )
