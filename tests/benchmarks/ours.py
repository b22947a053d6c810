"""Our kernels, through ``pyro_gebm.sample``.

A name may carry what composes with it: ``NUTS+global`` or ``HMC+tempering``; ``+compiled`` is the
sampler compiled; ``+short`` is a shorter warm-up, which the job already has.
"""

import warnings
from typing import Any

import numpy as np
import torch
from jobs import Job, Prepared, Run, Watch, watch
from targets import Counted, Target

import pyro_gebm as pg
from pyro_gebm.mcmc import CompiledPotential

EXTRAS: dict[str, dict[str, Any]] = {
    "global": {"global_moves": "auto"},
    "tempering": {"tempering": "auto"},
    "short": {},
    "compiled": {},
}
NEEDS_BASE = "IMH"


def prepare(target: Target, job: Job) -> Prepared:
    """A runner of one of our kernels; compiled only if its name says so."""
    name, *extras = job.kernel.split("+")
    settings: dict[str, Any] = {
        "kernel": name,
        "global_moves": None,
        "num_samples": job.draws,
        "warmup_steps": job.warmup,
    }
    for extra in extras:
        settings |= EXTRAS[extra]
    counted = Counted(target.torch_potential())
    plain = not {"global", "tempering"}.intersection(extras) and name != NEEDS_BASE
    # A bare potential is what the other libraries get.
    model: Any = counted if plain else target.gebm(counted)
    if "compiled" in extras and plain:  # once for all rounds, as the JAX libraries do
        model = CompiledPotential(target.torch_potential())
    elif "compiled" in extras:  # traced anew by every run, which is in its time
        model, settings["compile"] = target.gebm(target.torch_potential()), True

    def run(seed: int, **more: Any) -> Run:
        counted.positions = 0
        start = torch.from_numpy(target.start(job.chains, seed, job.starts))
        with watch() as spent, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table says what did not converge
            idata = pg.sample(
                model,
                num_chains=job.chains,
                initial_params=start,
                seed=seed,
                progress=False,
                **settings | more,
            )
        return _read(idata, spent, None if plain else counted.positions or _estimate(idata))

    if "compiled" not in extras:
        return Prepared(run, 0.0)
    with watch() as compiling:
        run(0, num_samples=5, warmup_steps=5)
    return Prepared(run, compiling.wall)


def _estimate(idata: Any) -> int:
    """Positions that a compiled run has evaluated, which do not pass through Python.

    Proposals of warm-up are taken to be as many a gradient as those of the draws.
    """
    stats = idata["sample_stats"]
    n, _ = idata.attrs.get("global_moves", (0, 0))
    gradients = int(stats["n_steps"].values.sum())
    proposals = n and n * int(np.isfinite(stats["global_acceptance_rate"].values).sum())
    warmup = float(idata.attrs["warmup_gradient_evaluations"]) * len(stats["n_steps"])
    return round((gradients + warmup) * (1 + proposals / gradients))


def _read(idata: Any, spent: Watch, evaluations: int | None) -> Run:
    """A run. Jumps and replicas are charged for every position that they evaluate."""
    stats = idata["sample_stats"]
    z = np.asarray(idata["posterior"]["z"].values)
    sampling = int(stats["n_steps"].values.sum())
    warmup = round(float(idata.attrs["warmup_gradient_evaluations"]) * len(z))
    return Run(
        z=z,
        seconds=spent.wall,
        cpu_seconds=spent.cpu,
        gradients=evaluations or sampling + warmup,
        sampling_gradients=sampling,
        divergences=int(stats["diverging"].values.sum()) if "diverging" in stats else 0,
        batch_steps=int(idata.attrs["batch_steps"]),
    )
