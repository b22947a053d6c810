"""From draws to the InferenceData that ``sample`` returns."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm.inference_data import Attribute, InferenceData
from pyro_gebm.mcmc import Info
from pyro_gebm.sampling.engine import Run
from pyro_gebm.sampling.settings import Settings, kernel_name
from pyro_gebm.sampling.target import Target

Arrays = dict[str, NDArray[Any]]
INTERNAL = {"length_gradient"}
"""Fields of ``Info`` that adaptation reads and nobody else."""


def build_result(run: Run, target: Target, settings: Settings, seconds: float) -> InferenceData:
    """Posterior under the sites' names, statistics under the schema's, attributes."""
    draws = run.draws
    posterior = _sites(target, draws.z)
    latent = ",".join(posterior)
    if settings.include_x and target.push is not None:
        posterior |= _numpy(target.push(_on_device(target, draws.z)))
    warmup: dict[str, Arrays] = {}
    if draws.warmup is not None and draws.warmup[0].shape[1]:
        z, energy, info = draws.warmup
        warmup["warmup_posterior"] = _sites(target, z)
        warmup["warmup_sample_stats"] = _statistics(energy, info)
    prior = None
    if settings.include_prior and target.reference is not None:
        shape = draws.z.shape
        z = target.reference.sample(shape[0] * shape[1]).view(shape)
        prior = _sites(target, z)
    statistics = _statistics(draws.potential_energy, draws.info)
    step_size = draws.tuning.step_size[-len(draws.z) :, None]
    statistics["step_size"] = step_size.expand_as(draws.potential_energy).cpu().numpy()
    about = _attributes(run, settings, seconds) | {"latent_sites": latent}
    return inference_data.build(
        posterior, statistics, about, prior=prior, state=run.state, **warmup
    )


def _on_device(target: Target, z: Tensor) -> Tensor:
    """Positions where the model is, in its precision."""
    return z if target.like is None else z.to(target.like)


def _sites(target: Target, z: Tensor) -> Arrays:
    with torch.no_grad():
        sites = target.to_sites(_on_device(target, z))
    stored = {name: value.to(z.dtype) for name, value in sites.items()}
    return _numpy(stored)


def _numpy(sites: dict[str, Tensor]) -> Arrays:
    return {name: value.detach().cpu().numpy() for name, value in sites.items()}


def _statistics(potential_energy: Tensor, info: Info) -> Arrays:
    """Sample statistics (chain, draw) by our names; what a kernel does not have is left out."""
    fields = info._asdict().items()
    found = {n: f.numpy() for n, f in fields if f is not None and n not in INTERNAL}
    return found | {"lp": (-potential_energy).numpy()}


def _attributes(run: Run, settings: Settings, seconds: float) -> dict[str, Attribute]:
    draws = run.draws
    chains, _, dim = draws.z.shape
    # By chain in Pyro's kernels and by replica; netCDF attributes have one dimension.
    masses = draws.tuning.inverse_mass_matrix.reshape(-1, dim)[-chains:]
    found: dict[str, Attribute] = {
        "sampling_time": seconds,
        "tuning_steps": settings.warmup_steps if draws.num_warmup_steps.any() else 0,
        "kernel": kernel_name(settings.kernel),
        "num_chains": chains,
        "beta": settings.beta,
        "seed": run.seed,
        "thinning": settings.thinning,
        "inverse_mass_matrix": masses.mean(0).cpu().numpy(),
        "warmup_gradient_evaluations": float(draws.num_warmup_steps.double().mean()),
        "interrupted": int(draws.interrupted),
        "batch_steps": draws.batch_steps,
    }
    if draws.tuning.trajectory_length is not None:
        found["trajectory_length"] = float(draws.tuning.trajectory_length)
    if run.global_moves is not None:
        found["global_moves"] = np.array([run.global_moves.num_proposals, run.global_moves.every])
    if run.ladder is not None:
        found["tempering"] = np.array([0.0, *run.ladder])
    return found
