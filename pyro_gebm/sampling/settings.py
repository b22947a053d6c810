"""What ``sample`` was asked for, checked."""

import math
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import torch

from pyro_gebm._checks import check_choice, check_count, check_in_range, check_seed
from pyro_gebm.mcmc import HMC, KERNELS, ChEES, GlobalMoves, Kernel, PyroKernel, is_pyro_kernel
from pyro_gebm.mcmc.random import BLOCK
from pyro_gebm.model import check_beta
from pyro_gebm.sampling.destination import check_store
from pyro_gebm.sampling.ladder import TemperingChoice, check_tempering
from pyro_gebm.sampling.team import check_team

MANY_CHAINS = 16
"""From here on "auto" takes ChEES, which learns across chains."""

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class Settings(NamedTuple):
    """The arguments of ``sample`` that do not depend on the model."""

    kernel: Kernel | PyroKernel
    num_samples: int
    warmup_steps: int
    num_chains: int
    beta: float
    thinning: int
    target_accept_prob: float | None
    global_moves: str | GlobalMoves | None
    tempering: TemperingChoice
    seed: int | None
    progress: bool
    include_x: bool
    include_warmup: bool
    include_prior: bool
    chunk_size: int | None
    storage_dtype: torch.dtype | None
    store: Path | None
    distributed: bool
    compile: bool


def check_settings(
    kernel: str | Kernel | PyroKernel,
    num_samples: int,
    warmup_steps: int | None,
    num_chains: int,
    beta: float,
    thinning: int,
    target_accept_prob: float | None,
    global_moves: str | GlobalMoves | None,
    tempering: TemperingChoice,
    seed: int | None,
    progress: bool,
    include_x: bool,
    include_warmup: bool,
    include_prior: bool,
    chunk_size: int | None,
    storage_dtype: str | None,
    store: str | Path | None,
    distributed: bool,
    compile: bool,
) -> Settings:
    """The settings, or a ``ValueError`` that names the first that is wrong."""
    many = num_chains if isinstance(num_chains, int) else 0
    chosen = choose_kernel(kernel, many, tempering is not None)
    check_count("num_samples", num_samples)
    check_count("num_chains", num_chains)
    check_count("thinning", thinning)
    check_beta(beta)
    _check_optional(target_accept_prob, seed, chunk_size, storage_dtype)
    tempering = _check_crossing(global_moves, tempering)
    if compile:
        _check_compiled(chosen, tempering)
    if is_pyro_kernel(chosen):
        _check_pyro(global_moves, tempering, include_warmup, store is not None)
    if store is not None and include_prior:
        raise ValueError("include_prior: expected False with store; draw from the prior itself")
    if distributed:
        chunk_size = chunk_size or BLOCK
        _check_distributed(chosen, num_chains, tempering, chunk_size, store)
    return Settings(
        kernel=chosen,
        num_samples=num_samples,
        warmup_steps=choose_warmup(warmup_steps, num_chains),
        num_chains=num_chains,
        beta=float(beta),
        thinning=thinning,
        target_accept_prob=target_accept_prob,
        global_moves=None if is_pyro_kernel(chosen) else global_moves,
        tempering=tempering,
        seed=seed,
        progress=progress,
        include_x=include_x,
        include_warmup=include_warmup,
        include_prior=include_prior,
        chunk_size=chunk_size,
        storage_dtype=None if storage_dtype is None else DTYPES[storage_dtype],
        store=None if store is None else check_store(store),
        distributed=distributed,
        compile=compile,
    )


def _check_optional(
    target_accept_prob: float | None,
    seed: int | None,
    chunk_size: int | None,
    storage_dtype: str | None,
) -> None:
    if target_accept_prob is not None:
        check_in_range("target_accept_prob", target_accept_prob, 0.0, 1.0, open_low=True)
        if target_accept_prob == 1.0:
            raise ValueError("target_accept_prob: expected less than 1; got 1.0")
    if seed is not None:
        check_seed(seed)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    if storage_dtype is not None:
        check_choice("storage_dtype", storage_dtype, DTYPES)


def _check_compiled(kernel: Kernel | PyroKernel, tempering: TemperingChoice) -> None:
    if is_pyro_kernel(kernel) or tempering is not None:
        raise ValueError(
            "compile: expected False with a kernel of Pyro's, and with tempering, which evaluate "
            "the potential in parts; got True; leave it out"
        )


def _check_distributed(
    kernel: Kernel | PyroKernel,
    num_chains: int,
    tempering: TemperingChoice,
    chunk_size: int,
    store: str | Path | None,
) -> None:
    if store is None:
        raise ValueError(
            "store: expected a path with distributed, on a file system that all processes share; "
            "got None"
        )
    assert isinstance(kernel, Kernel)  # with a store
    check_team(kernel, num_chains, tempering is not None, chunk_size)


def _check_crossing(
    global_moves: str | GlobalMoves | None, tempering: TemperingChoice
) -> TemperingChoice:
    """How chains cross between modes."""
    if not (global_moves in (None, "auto") or isinstance(global_moves, GlobalMoves)):
        raise ValueError(
            'global_moves: expected "auto", None or GlobalMoves(num_proposals=..., every=...); '
            f"got {global_moves!r}"
        )
    tempering = check_tempering(tempering)
    if tempering is not None and isinstance(global_moves, GlobalMoves):
        raise ValueError(
            'global_moves: expected None or "auto" with tempering, whose hottest replica is drawn '
            "from the base already"
        )
    return tempering


def _check_pyro(
    global_moves: str | GlobalMoves | None,
    tempering: TemperingChoice,
    include_warmup: bool,
    stored: bool,
) -> None:
    if isinstance(global_moves, GlobalMoves) or tempering is not None or include_warmup or stored:
        raise ValueError(
            "kernel: expected one of ours for global_moves=, tempering=, include_warmup= or "
            "store=; got one of Pyro's, which runs as it is"
        )


def choose_kernel(
    kernel: str | Kernel | PyroKernel, num_chains: int, tempered: bool = False
) -> Kernel | PyroKernel:
    """A kernel by its name, or as it was given."""
    if isinstance(kernel, str):
        if kernel.lower() == "auto":
            # Levels of replica exchange would have to share the length that ChEES learns.
            return ChEES() if num_chains >= MANY_CHAINS and not tempered else HMC()
        by_name = {name.lower(): found for name, found in KERNELS.items()}
        if kernel.lower() not in by_name:
            known = ", ".join(["auto", *KERNELS])
            raise ValueError(f"kernel: expected one of {known}, or a kernel; got {kernel!r}")
        return by_name[kernel.lower()]()
    if isinstance(kernel, Kernel) or is_pyro_kernel(kernel):
        return kernel
    raise ValueError(
        "kernel: expected a name, a kernel object such as NUTS(), or a kernel of pyro.infer; "
        f"got {kernel!r}"
    )


def kernel_name(kernel: Kernel | PyroKernel) -> str:
    """A kernel's name, as it stands in tables and attributes."""
    if isinstance(kernel, Kernel):
        return kernel.name
    owner = kernel if isinstance(kernel, type) else type(kernel)
    return f"pyro.infer.{owner.__name__}"


def kernel_settings(kernel: Kernel) -> dict[str, int | float | str]:
    """The settings that are a kernel's own, and not for warm-up: numbers and words of Python's."""
    shared = {setting.name for setting in fields(Kernel)}
    own = {s.name: getattr(kernel, s.name) for s in fields(kernel) if s.name not in shared}
    return {name: _plain(v) for name, v in own.items() if isinstance(v, Real | str)}


def _plain(value: Real | str) -> int | float | str:
    """NumPy's numbers, which JSON does not know, as Python's."""
    if isinstance(value, bool | str):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def choose_warmup(warmup_steps: int | None, num_chains: int) -> int:
    """1,000 transitions for one chain, fewer for many, which pool what they learn."""
    if warmup_steps is None:
        return max(100, round(1000 / math.sqrt(num_chains)))
    return check_count("warmup_steps", warmup_steps, minimum=0)
