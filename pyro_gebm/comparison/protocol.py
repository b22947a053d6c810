"""What was measured and how, for whoever reads the figures later."""

import importlib.metadata
import platform
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_gebm._version import __version__
from pyro_gebm.comparison.judge import STATIONARY_SETS
from pyro_gebm.comparison.results import Protocol
from pyro_gebm.mcmc import GlobalMoves
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.settings import Settings

PACKAGES = ("pyro-ppl", "numpy", "arviz")


class Task(NamedTuple):
    """What was asked for, checked."""

    kernels: dict[str, Settings]
    """Of ``sample``, alike but for the kernel."""
    seeds: tuple[int, ...]
    budget: int
    checkpoints: NDArray[np.float64]
    """Gradients of the walk, ascending."""


def protocol_of(score: str, task: Task, gebm: GEBM) -> Protocol:
    """The protocol of a task."""
    settings, like = next(iter(task.kernels.values())), gebm.base.latent_prior.like
    device = str(like.device)
    if like.is_cuda:
        device += f" ({torch.cuda.get_device_name(like.device)})"
    moves = settings.global_moves
    return Protocol(
        score=score,
        budget=task.budget,
        num_chains=settings.num_chains,
        warmup_steps=settings.warmup_steps,
        beta=settings.beta,
        seeds=task.seeds,
        global_moves=repr(moves) if isinstance(moves, GlobalMoves) else str(moves or "none"),
        target_accept_prob=settings.target_accept_prob,
        stationary_sets=STATIONARY_SETS,
        device=device,
        dtype=str(like.dtype).removeprefix("torch."),
        versions=_versions(),
        notes=_notes(score, task, settings),
    )


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    python = platform.python_version()
    # torch's own word says which build it is.
    return {"pyro-gebm": __version__, "python": python, "torch": str(torch.__version__), **found}


def _notes(score: str, task: Task, settings: Settings) -> tuple[str, ...]:
    chains, seeds = settings.num_chains, len(task.seeds)
    spread = (
        f"Intervals are 95 % by Student's t over {seeds} seeds; ratios are paired by seed."
        if seeds > 1
        else "One seed, hence no intervals."
    )
    return (
        f"Score: {score} of the positions of all {chains:,} chains at one moment, as a set; lower "
        "is better.",
        f"All kernels target ν_β with β = {settings.beta:g} and start, seed by seed, from the same "
        "base samples.",
        f"The budget is {task.budget:,} gradient evaluations a chain (of chains that differ, on "
        "average). The warm-up that tunes a kernel is part of it: the curve begins where its "
        "gradients end, at the base samples, to which the chains are put back.",
        f"Stationary: mean score of up to {STATIONARY_SETS} such sets from the second half of the "
        "walk, which R-hat, ESS and the modes' figures look at, too.",
        f"Floor: score of one random half of the data against the other. The halves need not be "
        f"of {chains:,} data: where the score depends on the size, compare with care.",
        spread,
    )
