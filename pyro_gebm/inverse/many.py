"""``sample_many``: the posteriors of many observations, all chains of all problems in one batch."""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_gebm._checks import check_choice, check_count
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.inverse.problems import (
    Model,
    Problems,
    check_observations,
    given_starts,
    many_problems,
    start_all,
)
from pyro_gebm.inverse.ready import Plan, resumed, warmed_up
from pyro_gebm.inverse.result import build_result, complaints
from pyro_gebm.mcmc import HMC, MALA, NUTS, Draws, GlobalMoves, Kernel, draw
from pyro_gebm.sampling.build import random_state
from pyro_gebm.sampling.ladder import TemperingChoice, check_tempering
from pyro_gebm.sampling.ready import Ready
from pyro_gebm.sampling.result import between_modes
from pyro_gebm.sampling.resume import resumed_choices, save_state
from pyro_gebm.sampling.settings import kernel_settings

KERNELS: dict[str, type[Kernel]] = {"hmc": HMC, "nuts": NUTS, "mala": MALA}
DEFAULT_KERNEL, DEFAULT_CHAINS = "HMC", 4


def sample_many(
    model: Model,
    *observations: Tensor,
    kernel: str | Kernel = DEFAULT_KERNEL,
    num_samples: int = 250,
    warmup_steps: int = 200,
    num_chains: int = DEFAULT_CHAINS,
    thinning: int = 1,
    target_accept_prob: float | None = None,
    global_moves: GlobalMoves | None = None,
    tempering: str | int | Sequence[float] | None = None,
    initial_params: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    include_x: bool = False,
    seed: int | None = None,
    progress: bool = True,
    resume: InferenceData | None = None,
) -> InferenceData:
    """The posterior of each of P observations, with chains of its own, all in one batch.

    The model is that of one problem, as for ``sample``; the problems are independent. Step size
    and masses are tuned for each problem from its own chains. Of a problem the draws are those
    of a sampler of that problem alone; only the number of leapfrog steps is common to all.

    Args:
        model: a Pyro model with continuous latent sites, called with one row of every
            observation; what all problems share (a mask that is one for all, an operator) is
            bound with ``functools.partial``. Sites have the same shapes in all problems.
        *observations: (P, ...) each, a row per problem.
        kernel: "HMC", "NUTS" or "MALA", or such an object.
        num_samples: draws kept per chain.
        warmup_steps: transitions of warm-up per chain.
        num_chains: chains C of each problem: a batch of P·C.
        thinning: transitions per draw kept.
        target_accept_prob: mean acceptance that step sizes are tuned to; ``None``: the kernel's.
        global_moves: jumps that propose from the prior, with HMC and MALA:
            ``GlobalMoves(num_proposals=16, every=4)`` where posteriors have several modes.
        tempering: replica exchange in place of global moves, for likelihoods so sharp that hardly
            a draw from the prior is near the data: "auto", a number of replicas, or the factors of
            the likelihood, such as (0, 0.1, 0.4, 1), one ladder for all problems. It costs as
            many times as much as there are replicas.
        initial_params: where chains start, {site: (P, C, *shape)}, such as draws of a guide;
            ``None``: draws from the prior.
        chunk_size: how many problems are evaluated at a time, to save memory.
        include_x: add deterministic sites, for a GEBM x = G(z), to the posterior.
        seed: of all noise; torch's global random state is left as it was.
        progress: show a progress bar on standard error.
        resume: go on where this earlier result ended, with its tuning and noise, in place of
            starts and warm-up: the draws are those that the earlier run would have made next.
            Model, observations and settings must be the same; the kernel, ``num_chains``,
            tempering and global moves are taken from there if they are left out.

    Returns:
        An InferenceData whose posterior has a variable (chain, draw, problem, *shape) for every
        latent site, and sample_stats (chain, draw, problem). ``attrs["rhat_by_problem"]`` is
        the largest split R-hat of each problem's components (Gelman et al. 2013), (P,). The
        group sampling_state is for ``resume``.

    Raises:
        ValueError: an argument is out of range, the model cannot be sampled, or the
            observations of a problem have likelihood zero all over the prior.

    Warns:
        UserWarning: chains of a problem disagree or stand still, or transitions diverged.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> idata = sample_many(model, torch.tensor([-2.0, 0.0, 2.0]), seed=0, progress=False)
        >>> idata["posterior"]["mean"].mean(("chain", "draw")).values.round(0) + 0.0
        array([-1.,  0.,  1.], dtype=float32)
        >>> idata["posterior"]["mean"].dims
        ('chain', 'draw', 'problem')
    """
    started = time.perf_counter()
    if resume is not None:
        choices = kernel, num_chains, DEFAULT_KERNEL, DEFAULT_CHAINS
        kernel, num_chains = resumed_choices(resume, *choices)  # type: ignore[assignment]
        if initial_params is not None:
            raise ValueError(
                "initial_params: expected None with resume, which knows where chains are"
            )
    local = _check_kernel(kernel, global_moves)
    tempering = _check_tempering(tempering, global_moves)
    for name, value in (("num_samples", num_samples), ("num_chains", num_chains)):
        check_count(name, value)
    check_count("warmup_steps", warmup_steps, minimum=0)
    check_count("thinning", thinning)
    check_observations(observations)
    with random_state(seed, observations[0].device) as used:
        problems = many_problems(model, observations, chunk_size)
        if include_x and problems.push is None:
            raise ValueError("include_x: expected False for a model without deterministic sites")
        plan = Plan(
            problems,
            local,
            num_chains,
            warmup_steps,
            num_samples,
            thinning,
            target_accept_prob,
            global_moves,
            tempering,
            progress,
        )
        if resume is not None:
            ready = resumed(plan, resume, seed, observations[0].device)
        else:
            ready = warmed_up(plan, _starts(problems, initial_params, num_chains), used)
        idata = _drawn(plan, ready, include_x, started)
    for problem in complaints(idata):
        warnings.warn(problem, UserWarning, stacklevel=2)
    return idata


def _drawn(plan: Plan, ready: Ready, include_x: bool, started: float) -> InferenceData:
    """The draws that follow, and all that is told of them."""
    draws = draw(
        plan.moves(ready.ladder, ready.global_moves),
        ready.warmed,
        plan.num_samples,
        thinning=plan.thinning,
        seed=ready.seed,
        progress=plan.progress,
    )
    about = _about(plan, ready, draws) | {"sampling_time": time.perf_counter() - started}
    return build_result(plan.problems, draws, about, save_state(draws.last, ready), include_x)


def _starts(
    problems: Problems, initial_params: Mapping[str, Tensor] | None, num_chains: int
) -> Tensor:
    if initial_params is None:
        return start_all(problems, num_chains)
    return given_starts(problems, initial_params, num_chains)


def _about(plan: Plan, ready: Ready, draws: Draws) -> dict[str, Any]:
    """Attributes, under the names that ``sample`` gives them."""
    about: dict[str, Any] = {
        "kernel": plan.kernel.name,
        "kernel_settings": json.dumps(kernel_settings(plan.kernel)),
        "seed": ready.seed,
        "thinning": plan.thinning,
        "num_chains": plan.num_chains,
        "num_problems": plan.problems.num_problems,
        "tuning_steps": plan.warmup_steps if ready.warmed.spent.any() else 0,
        "interrupted": int(draws.interrupted),
    }
    return about | between_modes(ready)


def _check_tempering(
    tempering: TemperingChoice, global_moves: GlobalMoves | None
) -> TemperingChoice:
    if tempering is not None and global_moves is not None:
        raise ValueError(
            "global_moves: expected None with tempering, whose hottest replica is drawn from the "
            "prior already"
        )
    return check_tempering(tempering)


def _check_kernel(kernel: Any, global_moves: GlobalMoves | None) -> Kernel:
    local = kernel
    if isinstance(kernel, str):
        local = KERNELS[check_choice("kernel", kernel.lower(), KERNELS)]()
    if not isinstance(local, HMC | NUTS | MALA):
        raise ValueError(
            "kernel: expected HMC, NUTS or MALA, which share nothing between problems; got "
            f"{type(local).__name__}"
        )
    if not (global_moves is None or isinstance(global_moves, GlobalMoves)):
        raise ValueError(
            "global_moves: expected None or GlobalMoves(num_proposals=16, every=4); got "
            f"{global_moves!r}"
        )
    if global_moves is not None and isinstance(local, NUTS):
        raise ValueError("global_moves: expected None with NUTS; take HMC, or pg.sample")
    return local
