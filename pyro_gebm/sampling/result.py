"""From draws to the InferenceData that ``sample`` returns."""

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm.inference_data import Attribute, InferenceData
from pyro_gebm.mcmc import Info, Kernel
from pyro_gebm.sampling.engine import Run
from pyro_gebm.sampling.ready import Ready
from pyro_gebm.sampling.settings import Settings, kernel_name, kernel_settings
from pyro_gebm.sampling.target import Target

Arrays = dict[str, NDArray[Any]]
INTERNAL = {"length_gradient"}
"""Fields of ``Info`` that adaptation reads and nobody else."""


def build_result(run: Run, target: Target, settings: Settings, seconds: float) -> InferenceData:
    """Posterior under the sites' names, statistics under the schema's, attributes."""
    draws, z = run.draws, run.draws.z
    posterior = posterior_of(target, z, settings.include_x)
    prior = None
    if settings.include_prior and target.reference is not None:
        prior = _sites(target, target.reference.sample(z[..., 0].numel()).view(z.shape))
    step_size = draws.tuning.step_size[-len(z) :]
    statistics = statistics_of(draws.potential_energy, draws.info, step_size)
    about = attributes_of(settings, run.ready, target) | {
        "sampling_time": seconds,
        "interrupted": int(draws.interrupted),
        "batch_steps": draws.batch_steps,
    }
    warmup = warmup_of(target, run.ready)
    return inference_data.build(
        posterior, statistics, about, prior=prior, state=run.state, **warmup
    )


def posterior_of(target: Target, z: Tensor, include_x: bool) -> Arrays:
    """Latent sites, and deterministic ones, at unconstrained positions (chain, draw, D)."""
    posterior = _sites(target, z)
    if include_x and target.push is not None:
        posterior |= _numpy(target.push(_on_device(target, z)))
    return posterior


def statistics_of(potential_energy: Tensor, info: Info, step_size: Tensor) -> Arrays:
    """Sample statistics (chain, draw), with the step size of every chain."""
    steps = step_size[:, None].expand_as(potential_energy).cpu().numpy()
    return _statistics(potential_energy, info) | {"step_size": steps}


def warmup_of(target: Target, ready: Ready) -> dict[str, Arrays]:
    """The groups of warm-up, if its draws were kept."""
    kept = ready.warmed.draws
    if kept is None or not kept[0].shape[1]:
        return {}
    z, energy, info = kept
    return {
        "warmup_posterior": _sites(target, z),
        "warmup_sample_stats": _statistics(energy, info),
    }


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


def attributes_of(settings: Settings, ready: Ready, target: Target) -> dict[str, Attribute]:
    """What is known when the draws begin."""
    warmed, chains = ready.warmed, settings.num_chains
    state, tuning = warmed.position.state, warmed.tuning
    # By chain in Pyro's kernels and by replica; netCDF attributes have one dimension.
    masses = tuning.inverse_mass_matrix.reshape(-1, state.z.shape[1])[-chains:]
    found: dict[str, Attribute] = {
        "tuning_steps": settings.warmup_steps if warmed.spent.any() else 0,
        "kernel": kernel_name(settings.kernel),
        "num_chains": chains,
        "beta": settings.beta,
        "seed": ready.seed,
        "thinning": settings.thinning,
        "inverse_mass_matrix": masses.mean(0).cpu().numpy(),
        "warmup_gradient_evaluations": float(warmed.spent.double().mean()),
        "latent_sites": ",".join(_sites(target, state.z[:1])),
    }
    if isinstance(settings.kernel, Kernel):
        found["kernel_settings"] = json.dumps(kernel_settings(settings.kernel))
    if tuning.trajectory_length is not None:
        found["trajectory_length"] = float(tuning.trajectory_length)
    if curvature := float(tuning.curvatures()[-chains:].mean()):
        found["curvature"] = curvature
    return found | between_modes(ready)


def between_modes(ready: Ready) -> dict[str, Attribute]:
    """Attributes of global moves and of replica exchange, where there are any."""
    found: dict[str, Attribute] = {}
    if ready.global_moves is not None:
        moves = ready.global_moves
        found["global_moves"] = np.array([moves.num_proposals, moves.every])
    if ready.ladder is not None:
        found["tempering"] = np.array([0.0, *ready.ladder])
    return found
