"""Pyro's own kernels on a potential of ours, chain by chain, with the same result."""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.rwkernel import RandomWalkKernel
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.draws import Draws, Position
from pyro_gebm.mcmc.kernel import Info, evaluate
from pyro_gebm.mcmc.pyro_recorder import SITE, Leaf, Recorder
from pyro_gebm.mcmc.random import seed_global
from pyro_gebm.mcmc.tuning import Tuning

PyroKernel: TypeAlias = type[MCMCKernel] | MCMCKernel
"""A kernel of ``pyro.infer.mcmc`` (NUTS, HMC, RandomWalkKernel, ...), the class or an object."""

NUM_SEEDS = 2**32 - 1
"""Pyro takes the seeds of its chains modulo this."""


def is_pyro_kernel(kernel: object) -> TypeGuard[PyroKernel]:
    """Whether ``run_pyro`` takes it."""
    owner = kernel if isinstance(kernel, type) else type(kernel)
    return issubclass(owner, MCMCKernel)


History: TypeAlias = list[tuple[Leaf, Info]]
"""Where a chain stood after every transition, and what that told."""


class Chain(NamedTuple):
    """What one chain gave."""

    z: Tensor
    """(S, D), on the CPU."""
    potential_energy: Tensor
    """(S,)."""
    info: Info
    """(S,) each."""
    step_size: Tensor
    """What sampling used, ()."""
    inverse_mass_matrix: Tensor
    """Its diagonal, (D,); ones where the kernel has none."""
    num_warmup_steps: Tensor
    """Evaluations of setup and warm-up, () int64."""


def run_pyro(
    kernel: PyroKernel,
    potential_fn: PotentialFn,
    z: Tensor,
    *,
    num_samples: int,
    warmup_steps: int,
    thinning: int = 1,
    target_accept_prob: float | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Draws:
    """Run a kernel of Pyro on ``potential_fn``, once per chain.

    Chain i draws what ``pyro.infer.MCMC`` of one chain draws after
    ``pyro.set_rng_seed(seed + i)`` from the same start, bit for bit; that is also how Pyro
    seeds chains that run in parallel. The global random state is left as it was.

    Args:
        kernel: a kernel class of ``pyro.infer.mcmc``, or an object whose settings are taken
            while its model or potential is replaced; a class takes ``potential_fn`` if it
            derives from HMC, else a model as its first argument.
        potential_fn: U, (C, D) -> (C,).
        z: where the chains start, (C, D).
        num_samples: draws kept per chain.
        warmup_steps: transitions of warm-up before them.
        thinning: transitions per draw; the evaluations of a draw are summed.
        target_accept_prob: used where ``kernel`` is a class that takes it; ``None`` leaves
            the kernel its own, and an object always has its own.
        seed: ``None`` takes one number from torch's global generator.
        progress: show a bar over chains on standard error.

    Returns:
        The draws, chains first, with energies, energy errors, tree depths and evaluations
        where the kernel has such things. After Ctrl-C: the chains that were whole, or what
        there is of the first.

    Raises:
        ValueError: a start of non-finite potential; a kernel that cannot be given this
            potential; a transition that would take ages, as on a flat or NaN potential.
        KeyboardInterrupt: Ctrl-C came before the first draw.

    Example:
        >>> draws = run_pyro(pyro.infer.NUTS, lambda z: 0.5 * (z**2).sum(-1),
        ...                  torch.zeros(2, 3), num_samples=5, warmup_steps=10, seed=0)
        >>> draws.z.shape, draws.info.tree_depth.shape
        (torch.Size([2, 5, 3]), torch.Size([2, 5]))
    """
    seed = int(torch.randint(NUM_SEEDS, ())) if seed is None else seed
    bar = tqdm(total=len(z), desc="Pyro, chain by chain", disable=not progress, leave=False)
    chains: list[Chain] = []
    with bar, torch.random.fork_rng([z.device] if z.is_cuda else []):
        for index, start in enumerate(z):
            recorder = Recorder(potential_fn, start.clone())
            bound = _bind(kernel, recorder, target_accept_prob)
            seed_global((seed + index) % NUM_SEEDS, z.device)
            history: History = []
            try:
                _walk(bound, recorder, history, num_samples * thinning, warmup_steps)
            except KeyboardInterrupt:
                if not chains and len(history) < thinning:
                    raise
                # A chain that was cut short counts only where there is no other.
                return _gather(
                    chains or [_finish(bound, recorder, history, thinning)], potential_fn, True
                )
            chains.append(_finish(bound, recorder, history, thinning))
            bar.update()
    return _gather(chains, potential_fn, False)


def _bind(kernel: PyroKernel, recorder: Recorder, target_accept_prob: float | None) -> Any:
    """A fresh kernel of the same settings on the recorder's potential."""
    if isinstance(kernel, type):
        bound = _construct(kernel, recorder, target_accept_prob)
    else:
        bound = _clone(kernel, recorder)
    if isinstance(bound, pyro.infer.HMC):
        recorder.attach(bound)
    return bound


def _construct(
    kernel: Callable[..., Any], recorder: Recorder, target_accept_prob: float | None
) -> Any:
    known = inspect.signature(kernel).parameters
    settings: dict[str, float] = {}
    if target_accept_prob is not None and "target_accept_prob" in known:
        settings["target_accept_prob"] = target_accept_prob
    if isinstance(kernel, type) and issubclass(kernel, pyro.infer.HMC):
        return kernel(potential_fn=recorder.potential, **settings)
    return kernel(recorder.model, **settings)


def _clone(kernel: Any, recorder: Recorder) -> Any:
    clone = copy.copy(kernel)
    if not isinstance(clone, pyro.infer.HMC):
        clone.model = recorder.model
        return clone
    if isinstance(kernel._adapter.dense_mass, list):
        raise ValueError(
            f"kernel: expected full_mass True or False; got {kernel._adapter.dense_mass}, but "
            "all coordinates are one site here"
        )
    # Pyro's adapter and list of divergences hold state: each chain needs its own.
    clone._adapter = copy.deepcopy(kernel._adapter, {id(kernel): clone})
    clone._reset()
    clone.model, clone.transforms, clone.potential_fn = None, {}, recorder.potential
    return clone


def _walk(
    kernel: Any, recorder: Recorder, history: History, num_transitions: int, warmup_steps: int
) -> None:
    """What ``pyro.infer.MCMC`` does in one chain, with every transition after warm-up noted."""
    with poutine.block(), pyro.validation_enabled(False):
        kernel.initial_params = {SITE: recorder.current.z}
        kernel.setup(warmup_steps)
        params = _enforce_start(kernel, recorder)
        for _ in range(warmup_steps):
            params, _ = recorder.step(kernel, params)
        for _ in range(num_transitions):
            params, info = recorder.step(kernel, params)
            history.append((recorder.current, info))
    if not recorder.evaluations:
        raise ValueError(
            f"kernel: {type(kernel).__name__} never evaluated the potential that it was given; "
            "give the class, or a kernel that takes potential_fn or keeps its model as .model"
        )


def _enforce_start(kernel: Any, recorder: Recorder) -> dict[str, Tensor]:
    params = {SITE: recorder.current.z}
    if not isinstance(kernel, pyro.infer.HMC):
        kernel.initial_params = params  # setup() of a kernel with a model draws its own
    if isinstance(kernel, RandomWalkKernel):
        kernel.potential_fn = recorder.potential
        kernel._energy_last = recorder.current.potential_energy
    return params


def _finish(kernel: Any, recorder: Recorder, history: History, thinning: int) -> Chain:
    every = len(history) // thinning * thinning
    leaves, infos = zip(*history[:every], strict=True)
    info = _stack(infos)
    found = [t for t in kernel.diagnostics().get("divergences", []) if t < every]
    info.diverging[found] = True
    kept = leaves[thinning - 1 :: thinning]
    z = torch.stack([leaf.z for leaf in kept])
    step_size, inverse_mass = _tuned(kernel, z[0])
    return Chain(
        z=z.cpu(),
        potential_energy=torch.stack([leaf.potential_energy for leaf in kept]).cpu(),
        info=_thin(info, thinning),
        step_size=step_size,
        inverse_mass_matrix=inverse_mass,
        num_warmup_steps=recorder.evaluations - info.num_steps.sum(),
    )


def _stack(infos: Sequence[Info]) -> Info:
    """Infos of the same kernel, side by side along a new first dimension, on the CPU."""
    known = {
        name: torch.stack([getattr(info, name) for info in infos]).cpu()
        for name, field in infos[0]._asdict().items()
        if field is not None
    }
    return Info(**known)


def _thin(info: Info, thinning: int) -> Info:
    """(S * thinning,) -> (S,): what the transitions of a draw tell together, as in ``run``."""
    rows = {k: v.view(-1, thinning) for k, v in info._asdict().items() if v is not None}
    thinned = {name: row[:, -1] for name, row in rows.items()}
    thinned |= {"accept_prob": rows["accept_prob"].mean(-1), "num_steps": rows["num_steps"].sum(-1)}
    for name in {"diverging", "reached_max_treedepth"} & rows.keys():
        thinned[name] = rows[name].any(-1)
    for name in {"tree_depth"} & rows.keys():
        thinned[name] = rows[name].amax(-1)
    for name in {"max_energy_error"} & rows.keys():
        largest = rows[name].abs().argmax(-1, keepdim=True)
        thinned[name] = rows[name].gather(-1, largest)[:, 0]
    return Info(**thinned)


def _tuned(kernel: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Step size () and diagonal of the inverse mass matrix (D,); NaN and ones where unknown."""
    if isinstance(kernel, pyro.infer.HMC):
        matrix = kernel.inverse_mass_matrix[(SITE,)].detach()
        diagonal = matrix.diagonal() if matrix.ndim == 2 else matrix  # full_mass=True
        return like.new_tensor(kernel.step_size), diagonal.clone()
    step_size = torch.nan
    if isinstance(kernel, RandomWalkKernel):
        step_size = math.exp(kernel._log_step_size)
    return like.new_tensor(step_size), torch.ones_like(like)


def _gather(chains: list[Chain], potential_fn: PotentialFn, interrupted: bool) -> Draws:
    z, potential_energy, infos, steps, masses, spent = zip(*chains, strict=True)
    draws, step_size = torch.stack(z), torch.stack(steps)
    state = evaluate(potential_fn, draws[:, -1].to(step_size.device))
    none = torch.zeros_like(step_size, dtype=torch.int64)
    return Draws(
        z=draws,
        potential_energy=torch.stack(potential_energy),
        info=_stack(infos),
        tuning=Tuning(step_size, torch.stack(masses)),
        last=Position(state, none, none),
        num_warmup_steps=torch.stack(spent),
        interrupted=interrupted,
    )
