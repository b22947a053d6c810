"""``sample``: checks, a run of all chains, an InferenceData."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.mcmc import GlobalMoves, Kernel, PyroKernel
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.build import build_target, compiled, in_chunks, random_state
from pyro_gebm.sampling.engine import get_ready, run_kernel
from pyro_gebm.sampling.result import build_result
from pyro_gebm.sampling.resume import resumed_choices
from pyro_gebm.sampling.settings import Settings, check_settings
from pyro_gebm.sampling.start import find_start, given_device
from pyro_gebm.sampling.stored import run_stored
from pyro_gebm.sampling.target import InitialParams, Model, quiet_model


def sample(
    model: Model,
    *args: Any,
    kernel: str | Kernel | PyroKernel = "auto",
    num_samples: int = 1000,
    warmup_steps: int | None = None,
    num_chains: int = 64,
    beta: float = 1.0,
    initial_params: InitialParams = None,
    thinning: int = 1,
    target_accept_prob: float | None = None,
    global_moves: str | GlobalMoves | None = "auto",
    tempering: str | int | Sequence[float] | None = None,
    seed: int | None = None,
    progress: bool = True,
    include_x: bool = False,
    include_warmup: bool = False,
    include_prior: bool = False,
    chunk_size: int | None = None,
    storage_dtype: str | None = None,
    store: str | Path | None = None,
    distributed: bool = False,
    compile: bool = False,
    resume: InferenceData | None = None,
    **kwargs: Any,
) -> InferenceData:
    """Sample a latent posterior, for a GEBM ν_β(z) ∝ η(z) exp(-β E(G(z))), all chains at once.

    Device and dtype are the model's. A GEBM runs in eval mode with frozen parameters and is
    left as it was; sites of bounded support are sampled in unconstrained coordinates, with
    the Jacobian.

    Args:
        model: a ``GEBM``; a Pyro model with continuous latent sites, called with ``args`` and
            ``kwargs``; or a potential (C, D) -> (C,) together with ``initial_params``.
        *args: of a Pyro model.
        kernel: "NUTS", "HMC", "ChEES", "MALA", "Langevin", "Kinetic" or "IMH" (any case), a
            kernel object with its own settings (``NUTS(max_tree_depth=8)``), or a kernel class
            or object of ``pyro.infer``, which runs chain by chain. "auto" is ChEES from 16
            chains on, HMC below.
        num_samples: draws kept per chain.
        warmup_steps: transitions of warm-up per chain; ``None`` takes 1,000 for one chain
            and fewer for many, which pool what they learn, down to 100.
        num_chains: chains C.
        beta: inverse temperature of the energy; 1 is the model, 0 the base. In a Pyro model it
            multiplies all but the priors of the latent sites, in a potential everything.
        initial_params: where the chains start, (C, D), or by site {name: (C, *shape)}; drawn
            from the latent prior if ``None``.
        thinning: transitions per draw kept.
        target_accept_prob: mean acceptance that the step size is tuned to; ``None`` takes
            the kernel's own (0.8; ChEES 0.75; MALA 0.574; Langevin and Kinetic 0.95).
        global_moves: jumps that propose from the prior beside the kernel, which cross between
            modes: ``GlobalMoves(num_proposals=32, every=5)``, ``None``, or "auto", which chooses
            them from a short pilot so that they cost a fifth (half, where 30 % are accepted) of
            the whole at most, and leaves them out where they would hardly ever be accepted, for a
            potential, and for the unadjusted kernels.
        tempering: replica exchange in place of global moves, where these fail: "auto", a number
            of replicas, or the factors of β, such as (0, 0.1, 0.4, 1).
        seed: the same seed gives the same draws on the same device, and leaves torch's global
            random state alone. ``None`` takes one number from it.
        progress: show a progress bar on standard error.
        include_x: add deterministic sites, for a GEBM x = G(z), to the posterior.
        include_warmup: add the groups warmup_posterior and warmup_sample_stats.
        include_prior: add as many draws from the prior (the base), as the group prior.
        chunk_size: evaluate the potential of so many chains at a time, to save memory.
        storage_dtype: "float16", "float32" or "float64": what positions are stored in.
        store: a netCDF file such as "draws.nc", to which draws go while they are made, so that
            few of them are in memory at a time. Until it is whole the file is called
            draws.nc.unfinished: that is what a killed run leaves, and ``inference_data.load``
            reads the draws that are there. The result reads values from the file when it is
            asked for them. A file of that name is replaced when the new one is whole.
        distributed: share the chains among the processes of torch.distributed's default group,
            which all make this same call and get the same result. The first one warms up all
            chains, which takes as long as alone; each draws whole blocks of 64 chains into a
            file beside ``store``, where all must be able to read; the first one joins them,
            shows the bar and warns. However many processes there are, the draws are bit for
            bit those of one with ``chunk_size=64`` (or the divisor of 64 that is given), on the
            same number of threads; on GPUs, of any other number of them but one, which draws its
            noise for 4,096 chains at a time. Processes wait for each other after warm-up and
            at the end, for no longer than the timeout of
            ``torch.distributed.init_process_group``: give one above the time of warm-up. If one
            fails, all raise.
        compile: write down what a step does with a GEBM's or a given potential, and compile it
            (``torch._inductor``), after six to twenty seconds that are paid once: with small
            networks or few chains NUTS 2 to 4 times as fast, HMC and ChEES 1.2 to 2.3 times.
            With ``chunk_size`` or ``distributed`` the potential alone; on a CUDA device that,
            and NUTS's step, and both are then recorded. Not with tempering, nor with models and
            kernels of Pyro, nor of potentials that look at their values.
        resume: go on where this earlier result ended, with its tuning and noise, in place of
            starts and warm-up: the draws are those that the earlier run would have made next.
            Model and settings must be the same; the kernel and ``num_chains`` are taken
            from there if they are left out.
        **kwargs: of a Pyro model.

    Returns:
        An ArviZ ``InferenceData`` (``DataTree`` on ArviZ 1.x): the posterior with a variable
        (chain, draw, *shape) for every latent site, for a GEBM ``z``; sample_stats under the
        schema's names; attributes that say how it was made; the group sampling_state, for
        ``resume``. After Ctrl-C: the draws that were whole, ``interrupted`` = 1.

    Raises:
        ValueError: an argument is out of range, or no start of finite potential was found.
        RuntimeError: another of the processes has failed.

    Warns:
        UserWarning: for each problem that R-hat, ESS, stuck chains, divergences or, for NUTS,
            tree depths and BFMI show, or a GEBM's base draws that the chains have not
            reached, with what to do.

    Example:
        >>> import torch
        >>> idata = sample(lambda z: 0.5 * (z**2).sum(-1), initial_params=torch.zeros(8, 2),
        ...                num_chains=8, num_samples=200, seed=0, progress=False)
        >>> dict(idata["posterior"].sizes)
        {'chain': 8, 'draw': 200, 'z_dim_0': 2}
    """
    if resume is not None:
        kernel, num_chains = resumed_choices(resume, kernel, num_chains)
    settings = check_settings(
        kernel,
        num_samples,
        warmup_steps,
        num_chains,
        beta,
        thinning,
        target_accept_prob,
        global_moves,
        tempering,
        seed,
        progress,
        include_x,
        include_warmup,
        include_prior,
        chunk_size,
        storage_dtype,
        store,
        distributed,
        compile,
    )
    idata, problems = _sample(model, args, kwargs, settings, initial_params, resume)
    for problem in problems:
        warnings.warn(problem, UserWarning, stacklevel=2)
    return idata


def _sample(
    model: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    settings: Settings,
    initial_params: InitialParams,
    resume: InferenceData | None,
) -> tuple[InferenceData, list[str]]:
    started = time.perf_counter()
    if resume is not None and not isinstance(settings.kernel, Kernel):
        raise ValueError("resume: expected one of our kernels; got one of Pyro's")
    if resume is not None and initial_params is not None:
        raise ValueError("initial_params: expected None with resume, which knows where chains are")
    device = given_device(model, args, kwargs, initial_params)
    with quiet_model(model), random_state(settings.seed, device) as seed:
        batched = isinstance(settings.kernel, Kernel)
        target = build_target(model, args, kwargs, beta=settings.beta, batched=batched)
        if settings.include_x and target.push is None:
            raise ValueError(
                "include_x: expected False for a potential function, or for a model without "
                "deterministic sites, which have no x"
            )
        if settings.include_prior and target.reference is None:
            raise ValueError("include_prior: expected False for a potential, which has no prior")
        target = compiled(target, device) if settings.compile else target
        target = in_chunks(target, settings.chunk_size)
        is_gebm = isinstance(model, GEBM)

        def find() -> Tensor | None:
            if resume is not None:
                return None
            return find_start(target, initial_params, settings.num_chains)

        if settings.store is not None:
            kernel = settings.kernel
            assert isinstance(kernel, Kernel)
            return run_stored(
                settings,
                kernel,
                target,
                lambda: get_ready(settings, kernel, target, find(), seed, resume, is_gebm),
                device,
                started,
            )
        run = run_kernel(settings, target, find(), seed, resume, is_gebm)
        idata = build_result(run, target, settings, time.perf_counter() - started)
    return idata, [*run.problems, *inference_data.problems(idata)]
