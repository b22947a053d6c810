"""``sample_many``: the posteriors of many observations, all chains of all problems in one batch."""

import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm._checks import check_choice, check_count
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.inverse.problems import (
    Model,
    Problems,
    check_observations,
    given_starts,
    many_problems,
    start_all,
    tuned_by_problem,
)
from pyro_gebm.mcmc import HMC, MALA, NUTS, Draws, GlobalMoves, Kernel, Moves, draw, warm_up
from pyro_gebm.sampling.build import random_state
from pyro_gebm.sampling.result import statistics_of

KERNELS: dict[str, type[Kernel]] = {"hmc": HMC, "nuts": NUTS, "mala": MALA}

WORST_RHAT = 1.05
"""Of so many components some come near 1.01 by chance."""


def sample_many(
    model: Model,
    *observations: Tensor,
    kernel: str | Kernel = "HMC",
    num_samples: int = 250,
    warmup_steps: int = 200,
    num_chains: int = 4,
    thinning: int = 1,
    target_accept_prob: float | None = None,
    global_moves: GlobalMoves | None = None,
    initial_params: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
    include_x: bool = False,
    seed: int | None = None,
    progress: bool = True,
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
        initial_params: where chains start, {site: (P, C, *shape)}, such as draws of a guide;
            ``None``: draws from the prior.
        chunk_size: how many problems are evaluated at a time, to save memory.
        include_x: add deterministic sites, for a GEBM x = G(z), to the posterior.
        seed: of all noise; torch's global random state is left as it was.
        progress: show a progress bar on standard error.

    Returns:
        An InferenceData whose posterior has a variable (chain, draw, problem, *shape) for every
        latent site, and sample_stats (chain, draw, problem). ``attrs["rhat_by_problem"]`` is
        the largest split R-hat of each problem's components (Gelman et al. 2013), (P,).

    Raises:
        ValueError: an argument is out of range, the model cannot be sampled, or the
            observations of a problem have likelihood zero all over the prior.

    Warns:
        UserWarning: chains of a problem disagree or stand still, or transitions diverged.

    Example:
        >>> import pyro, pyro.distributions as dist
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
    local = _check_kernel(kernel, global_moves)
    for name, value in (("num_samples", num_samples), ("num_chains", num_chains)):
        check_count(name, value)
    check_count("warmup_steps", warmup_steps, minimum=0)
    check_count("thinning", thinning)
    check_observations(observations)
    with random_state(seed, observations[0].device) as used:
        problems = many_problems(model, observations, chunk_size)
        if include_x and problems.push is None:
            raise ValueError("include_x: expected False for a model without deterministic sites")
        if initial_params is None:
            start = start_all(problems, num_chains)
        else:
            start = given_starts(problems, initial_params, num_chains)
        moves = Moves(local, problems.potential_fn, problems.reference, global_moves)
        warmed = warm_up(
            moves._replace(kernel=tuned_by_problem(local, problems.num_problems)),
            start,
            warmup_steps,
            target_accept_prob=target_accept_prob,
            seed=used,
            progress=progress,
        )
        draws = draw(moves, warmed, num_samples, thinning=thinning, seed=used, progress=progress)
        about = {"kernel": local.name, "seed": used, "thinning": thinning}
        about |= {"num_chains": num_chains, "num_problems": problems.num_problems}
        about |= {"tuning_steps": warmup_steps, "interrupted": int(draws.interrupted)}
        about |= {"sampling_time": time.perf_counter() - started}
        idata = _result(problems, draws, about, include_x)
    for problem in _complaints(idata):
        warnings.warn(problem, UserWarning, stacklevel=2)
    return idata


def _check_kernel(kernel: str | Kernel, global_moves: GlobalMoves | None) -> Kernel:
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


# --- from rows to problems ------------------------------------------


def _result(
    problems: Problems, draws: Draws, about: dict[str, Any], include_x: bool
) -> InferenceData:
    def by_problem(rows: NDArray[Any]) -> NDArray[Any]:
        """(P·C, S, ...) -> (C, S, P, ...)."""
        whole = rows.reshape(problems.num_problems, -1, *rows.shape[1:])
        return np.moveaxis(whole, 0, 2)

    with torch.no_grad():
        u = draws.z.to(problems.reference.sample(1))
        sites = problems.first.to_sites(u)
    posterior = {name: by_problem(value.cpu().numpy()) for name, value in sites.items()}
    about |= {"latent_sites": ",".join(sites), "rhat_by_problem": _rhat_by_problem(posterior)}
    if include_x and problems.push is not None:
        apart = problems.push(u.reshape(problems.num_problems, -1, u.shape[-1]))
        rows = {n: v.reshape(*u.shape[:2], *v.shape[2:]).numpy() for n, v in apart.items()}
        posterior |= {name: by_problem(value) for name, value in rows.items()}
    step_size = draws.tuning.step_size
    statistics = statistics_of(draws.potential_energy, draws.info, step_size)
    stats = {name: by_problem(value) for name, value in statistics.items()}
    idata = inference_data.build(posterior, stats, about)
    for group in ("posterior", "sample_stats"):
        _name_dimension(idata, group)
    return idata


def _name_dimension(idata: InferenceData, group: str) -> None:
    """The third dimension of every variable of a group is called problem."""
    found = idata[group]
    variables = {}
    for name in map(str, found.data_vars):
        values = found[name].values
        rest = [f"{name}_dim_{place}" for place in range(values.ndim - 3)]
        variables[name] = (["chain", "draw", "problem", *rest], values)
    chains, draws, problems = next(iter(variables.values()))[1].shape[:3]
    coordinates = {
        "chain": np.arange(chains),
        "draw": np.arange(draws),
        "problem": np.arange(problems),
    }
    dataset = xr.Dataset(variables, coordinates, attrs=dict(found.attrs))
    if isinstance(idata, xr.DataTree):  # ArviZ 1.x
        idata[group] = xr.DataTree(dataset)
    else:
        setattr(idata, group, dataset)


# --- diagnostics ------------------------------------------


def _rhat_by_problem(posterior: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Largest split R-hat of a problem's components, (P,); NaN where one never varies."""
    worst: list[NDArray[np.float64]] = []
    for draws in posterior.values():
        half = draws.shape[1] // 2
        if half < 2:
            return np.full(draws.shape[2], np.nan)
        split = np.concatenate([draws[:, :half], draws[:, -half:]]).astype(np.float64)
        within = split.var(1, ddof=1).mean(0)
        with np.errstate(all="ignore"):
            rhat = np.sqrt((half - 1) / half + split.mean(1).var(0, ddof=1) / within)
        worst.append(rhat.reshape(len(rhat), -1).max(1))
    found: NDArray[np.float64] = np.max(worst, 0)
    return found


def _complaints(idata: InferenceData) -> list[str]:
    found = []
    rhat = np.asarray(idata.attrs["rhat_by_problem"])
    num_draws = idata["posterior"].sizes["draw"]
    # Not >: what never varies has none.
    bad = np.flatnonzero(~(rhat <= WORST_RHAT) & (num_draws >= 4))
    if len(bad):
        worst = bad[np.argmax(np.nan_to_num(rhat[bad], nan=np.inf))]
        found.append(
            f"not converged: {len(bad)} of {len(rhat)} problems have an R-hat above {WORST_RHAT} "
            f"(problem {worst} the worst, {rhat[worst]:.3f}); take more draws, a longer warm-up, "
            "or global moves where posteriors have several modes"
        )
    diverging = float(inference_data.values(idata, "diverging", "sample_stats").mean())
    if diverging:
        found.append(
            f"{diverging:.2%} of the transitions diverged: the draws may avoid narrow regions; "
            "raise target_accept_prob"
        )
    return found
