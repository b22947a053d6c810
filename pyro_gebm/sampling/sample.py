"""``sample``: checks, a run of all chains, an InferenceData."""

import math
import time
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm._checks import check_count, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.mcmc import KERNELS, Draws, Kernel, PyroKernel, is_pyro_kernel, run, run_pyro
from pyro_gebm.model import GEBM, check_beta
from pyro_gebm.sampling.push import push_forward
from pyro_gebm.sampling.target import (
    InitialParams,
    build_target,
    find_start,
    quiet_model,
    random_stream,
)


def sample(
    model: GEBM | PotentialFn,
    *,
    kernel: str | Kernel | PyroKernel = "auto",
    num_samples: int = 1000,
    warmup_steps: int | None = None,
    num_chains: int = 64,
    beta: float = 1.0,
    initial_params: InitialParams = None,
    thinning: int = 1,
    target_accept_prob: float | None = None,
    seed: int | None = None,
    progress: bool = True,
    include_x: bool = False,
) -> InferenceData:
    """Sample the latent posterior ν_β(z) ∝ η(z) exp(-β E(G(z))), all chains in one batch.

    Device and dtype are the model's. The model runs in eval mode with frozen parameters and
    is left as it was; a latent prior of bounded support is sampled in unconstrained
    coordinates, with the Jacobian.

    Args:
        model: a ``GEBM``, or a potential (C, D) -> (C,) together with ``initial_params``.
        kernel: "NUTS", "HMC", "MALA" or "Langevin" (any case), a kernel object with its own
            settings (``NUTS(max_tree_depth=8)``), or Pyro's ``pyro.infer.NUTS`` or ``HMC``
            (class or object), which run chain by chain. "auto" is HMC.
        num_samples: draws kept per chain.
        warmup_steps: transitions of warm-up per chain; ``None`` takes 1,000 for one chain
            and fewer for many, which pool what they learn, down to 200.
        num_chains: chains C.
        beta: inverse temperature of the energy; 1 is the model, 0 the base.
        initial_params: where the chains start, (C, D) or ``{"z": (C, D)}``; drawn from the
            latent prior if ``None``.
        thinning: transitions per draw kept.
        target_accept_prob: mean acceptance that the step size is tuned to; ``None`` takes
            the kernel's own (0.8; MALA 0.574; Langevin 0.95).
        seed: the same seed gives the same draws on the same device, and leaves torch's global
            random state alone. ``None`` takes one number from it.
        progress: show a progress bar on standard error.
        include_x: add x = G(z) to the posterior.

    Returns:
        An ArviZ ``InferenceData`` (``DataTree`` on ArviZ 1.x): posterior ``z`` (chain, draw,
        D) and perhaps ``x``; sample_stats under the schema's names; attributes that say how
        it was made. After Ctrl-C: the draws that were whole, ``interrupted`` = 1.

    Raises:
        ValueError: an argument is out of range, or no start of finite potential was found.

    Warns:
        UserWarning: for each problem that R-hat, ESS, divergences or, for NUTS, tree depths
            and BFMI show, with what to do.

    Example:
        >>> idata = sample(lambda z: 0.5 * (z**2).sum(-1), initial_params=torch.zeros(8, 2),
        ...                num_chains=8, num_samples=200, seed=0, progress=False)
        >>> dict(idata["posterior"].sizes)
        {'chain': 8, 'draw': 200, 'z_dim_0': 2}
    """
    chosen = _choose_kernel(kernel)
    _check_counts(num_samples, num_chains, thinning, target_accept_prob)
    check_beta(beta)
    if seed is not None:
        check_count("seed", seed, minimum=0)
    steps = _choose_warmup(warmup_steps, num_chains)
    if include_x and not isinstance(model, GEBM):
        raise ValueError("include_x: expected False for a potential function, which has no x")
    started = time.perf_counter()
    with quiet_model(model), random_stream(model, initial_params, seed) as (generator, used):
        target = build_target(model, beta)
        start = find_start(model, target, initial_params, num_chains)
        draws = _run(
            chosen,
            target.potential_fn,
            start,
            generator,
            num_samples=num_samples,
            warmup_steps=steps,
            thinning=thinning,
            target_accept_prob=target_accept_prob,
            progress=progress,
        )
        z = target.to_latent(draws.z)
        posterior = {"z": z}
        if include_x and isinstance(model, GEBM):
            posterior["x"] = push_forward(model, z)
    attributes = {
        "sampling_time": time.perf_counter() - started,
        "tuning_steps": steps,
        "kernel": kernel_name(chosen),
        "beta": float(beta),
        "seed": used,
        "thinning": thinning,
        **_run_attributes(draws),
    }
    arrays = {name: _numpy(value) for name, value in posterior.items()}
    idata = inference_data.build(arrays, _statistics(draws), attributes)
    for problem in inference_data.problems(idata):
        warnings.warn(problem, UserWarning, stacklevel=2)
    return idata


def kernel_name(kernel: Kernel | PyroKernel) -> str:
    """A kernel's name, as it stands in tables and attributes."""
    owner = kernel if isinstance(kernel, type) else type(kernel)
    return owner.__name__ if issubclass(owner, Kernel) else f"pyro.infer.{owner.__name__}"


def _choose_kernel(kernel: str | Kernel | PyroKernel) -> Kernel | PyroKernel:
    if isinstance(kernel, str):
        by_name = {name.lower(): found for name, found in KERNELS.items()}
        name = "hmc" if kernel.lower() == "auto" else kernel.lower()
        if name not in by_name:
            known = ", ".join(["auto", *KERNELS])
            raise ValueError(f"kernel: expected one of {known}, or a kernel; got {kernel!r}")
        return by_name[name]()
    if isinstance(kernel, Kernel) or is_pyro_kernel(kernel):
        return kernel
    raise ValueError(
        "kernel: expected a name, a kernel object such as NUTS(), or pyro.infer.NUTS or HMC; "
        f"got {kernel!r}"
    )


def _check_counts(
    num_samples: int, num_chains: int, thinning: int, target_accept_prob: float | None
) -> None:
    check_count("num_samples", num_samples)
    check_count("num_chains", num_chains)
    check_count("thinning", thinning)
    if target_accept_prob is not None:
        check_in_range("target_accept_prob", target_accept_prob, 0.0, 1.0, open_low=True)
        if target_accept_prob == 1.0:
            raise ValueError("target_accept_prob: expected less than 1; got 1.0")


def _choose_warmup(warmup_steps: int | None, num_chains: int) -> int:
    if warmup_steps is None:
        return max(200, round(1000 / math.sqrt(num_chains)))
    return check_count("warmup_steps", warmup_steps, minimum=0)


def _run(
    kernel: Kernel | PyroKernel,
    potential_fn: PotentialFn,
    start: Tensor,
    generator: torch.Generator,
    *,
    num_samples: int,
    warmup_steps: int,
    thinning: int,
    target_accept_prob: float | None,
    progress: bool,
) -> Draws:
    if isinstance(kernel, Kernel):
        return run(
            kernel,
            potential_fn,
            start,
            num_samples=num_samples,
            warmup_steps=warmup_steps,
            thinning=thinning,
            target_accept_prob=target_accept_prob or kernel.target_accept_prob,
            generator=generator,
            progress=progress,
        )
    return run_pyro(
        kernel,
        potential_fn,
        start,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        thinning=thinning,
        target_accept_prob=target_accept_prob or 0.8,
        progress=progress,
    )


def _statistics(draws: Draws) -> dict[str, NDArray[np.generic]]:
    """Sample statistics (chain, draw) by our names; what a kernel does not have is left out."""
    found = {name: field for name, field in draws.info._asdict().items() if field is not None}
    found["lp"] = -draws.potential_energy
    found["step_size"] = draws.tuning.step_size[:, None].expand_as(draws.potential_energy)
    return {name: _numpy(field) for name, field in found.items()}


def _run_attributes(draws: Draws) -> dict[str, int | float | NDArray[np.generic]]:
    # Pyro's kernels have a mass matrix per chain; netCDF attributes have one dimension.
    masses = draws.tuning.inverse_mass_matrix.reshape(-1, draws.last.z.shape[-1])
    return {
        "inverse_mass_matrix": _numpy(masses.mean(0)),
        "warmup_gradient_evaluations": float(draws.num_warmup_steps.double().mean()),
        "interrupted": int(draws.interrupted),
    }


def _numpy(tensor: Tensor) -> NDArray[np.generic]:
    array: NDArray[np.generic] = tensor.detach().cpu().numpy()
    return array
