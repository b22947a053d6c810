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
from pyro_gebm.sampling.resume import Resumed, check_resumed, load_state, save_state
from pyro_gebm.sampling.settings import Settings, kernel_name
from pyro_gebm.sampling.start import draw_start
from pyro_gebm.sampling.target import Target


class Run(NamedTuple):
    """Draws, and what was chosen and found on the way."""

    draws: Draws
    seed: int
    """Of the noise: the run's own, or that of the run that was resumed."""
    state: dict[str, Any] | None
    """What a later run needs to go on."""
    global_moves: GlobalMoves | None
    ladder: tuple[float, ...] | None
    problems: list[str]
    """Warnings beyond those that the draws themselves give."""


def run_kernel(
    settings: Settings, target: Target, start: Tensor | None, seed: int, resume: Any, is_gebm: bool
) -> Run:
    """A run of one of our kernels or of Pyro's.

    Args:
        settings: of ``sample``.
        target: what is sampled.
        start: unconstrained starts (C, D'); ``None`` with ``resume``.
        seed: of the run.
        resume: the result of an earlier run, or ``None``.
        is_gebm: the reference is a base that the energy was trained on: where global moves
            from it are of no use, say so.
    """
    if not isinstance(settings.kernel, Kernel):
        assert start is not None
        return _run_pyro(settings, settings.kernel, target, start, seed)
    if resume is not None:
        return _resume(settings, settings.kernel, target, resume)
    assert start is not None
    if settings.tempering is not None:
        return _run_tempered(settings, settings.kernel, target, start, seed, is_gebm)
    return _run_local(settings, settings.kernel, target, start, seed, is_gebm)


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
    return Run(draws, seed, None, None, None, [])


def _run_local(
    settings: Settings, kernel: Kernel, target: Target, start: Tensor, seed: int, is_gebm: bool
) -> Run:
    problems: list[str] = []
    automatic = settings.global_moves == "auto" and suits_global_moves(kernel)
    pilot = run_pilot(target, seed, settings.chunk_size) if automatic or is_gebm else None
    first = settings.global_moves if isinstance(settings.global_moves, GlobalMoves) else None
    if automatic and pilot is not None:
        price = price_of(target, pilot.z)
        first = first_moves(pilot, kernel, price, len(start))
    moves = Moves(kernel.bind(target.reference), target.potential_fn, target.reference, first)
    warmed = _warm_up(settings, moves, start, seed)
    if automatic and pilot is not None:
        settled = settled_moves(pilot, warmed, target, price, kernel)
        moves = moves._replace(global_moves=settled)
        if settled is None and is_gebm:
            problems.append(_TOO_FAR)
    draws = _draw(settings, moves, warmed, seed)
    if pilot is not None and is_gebm and (missed := missing_mass(pilot, draws, target)):
        problems.append(missed)
    state = save_state(draws, moves.global_moves, None)
    return Run(draws, seed, state, moves.global_moves, None, problems)


_TOO_FAR = (
    "global moves are off: fewer than 0.1 % of them would be accepted, base and model hardly "
    'overlap; where chains may have to cross between modes, take tempering="auto"'
)


def _run_tempered(
    settings: Settings, kernel: Kernel, target: Target, start: Tensor, seed: int, is_gebm: bool
) -> Run:
    kernel = kernel.bind(target.reference)
    ladder = choose_ladder(settings.tempering, kernel, target, seed)
    assert target.reference is not None
    replicas = temper(kernel, ladder, target.reference)
    hotter = [draw_start(target, len(start)) for _ in ladder[1:]]
    moves = Moves(replicas, target.potential_fn)
    warmed = _warm_up(settings, moves, torch.cat([*hotter, start]), seed)
    draws = _draw(settings, moves, warmed, seed)
    pilot = run_pilot(target, seed, settings.chunk_size) if is_gebm else None
    missed = "" if pilot is None else missing_mass(pilot, draws, target)
    state = save_state(draws, None, ladder)
    return Run(draws, seed, state, None, ladder, [missed] if missed else [])


def _resume(settings: Settings, kernel: Kernel, target: Target, resume: Any) -> Run:
    resumed = load_state(resume, target, kernel_name(kernel), settings.num_chains)
    check_resumed(settings, resumed)
    moves = _moves_again(kernel, target, resumed)
    draws = _draw(settings, moves, resumed.warmed, resumed.seed)
    state = save_state(draws, resumed.global_moves, resumed.ladder)
    return Run(draws, resumed.seed, state, resumed.global_moves, resumed.ladder, [])


def _moves_again(kernel: Kernel, target: Target, resumed: Resumed) -> Moves:
    kernel = kernel.bind(target.reference)
    if resumed.ladder is None:
        return Moves(kernel, target.potential_fn, target.reference, resumed.global_moves)
    assert target.reference is not None
    return Moves(temper(kernel, resumed.ladder, target.reference), target.potential_fn)


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


def _draw(settings: Settings, moves: Moves, warmed: Warmed, seed: int) -> Draws:
    return draw(
        moves,
        warmed,
        settings.num_samples,
        thinning=settings.thinning,
        seed=seed,
        progress=settings.progress,
        dtype=settings.storage_dtype,
    )
