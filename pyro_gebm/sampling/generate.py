"""``generate``: samples of the model in data space."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm._checks import check_count
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.mcmc import GlobalMoves, Kernel, is_pyro_kernel
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.anneal import anneal
from pyro_gebm.sampling.push import push_forward
from pyro_gebm.sampling.sample import sample
from pyro_gebm.sampling.streamed import Wanted, place_of, stream
from pyro_gebm.sampling.target import quiet_model


def generate(
    model: GEBM,
    num_samples: int,
    *,
    kernel: str | Kernel = "auto",
    num_chains: int = 256,
    warmup_steps: int | None = None,
    thinning: int = 5,
    beta: float = 1.0,
    anneal_stages: int = 0,
    global_moves: str | GlobalMoves | None = "auto",
    tempering: str | int | Sequence[float] | None = None,
    chunk_size: int | None = None,
    seed: int | None = None,
    progress: bool = True,
    store: str | Path | None = None,
) -> Tensor:
    """Samples of the model in data space, x = G(z) with z from ``sample``.

    Only latents are kept while the chains run; they pass through the generator in chunks. With
    ``store``, samples go to a file some 4,096 at a time, so that few of them are in memory, the
    bar tells when they will be done, and what Ctrl-C or a kill leaves is gone on with by the same
    call: bit for bit as if never stopped, but for the piece that was being made.

    Args:
        model: a ``GEBM``.
        num_samples: how many x.
        kernel: as in ``sample``, but one of ours.
        num_chains: chains; each gives about num_samples / num_chains of the samples.
        warmup_steps: as in ``sample``.
        thinning: transitions between two samples of a chain.
        beta: inverse temperature of the energy.
        anneal_stages: before warm-up, take exact draws of the base through so many stages of
            β, evenly spaced from 0, each with a warm-up of its own: it spreads chains over the
            modes by mass rather than by the nearest one, where global moves do not reach.
        global_moves: as in ``sample``.
        tempering: as in ``sample``.
        chunk_size: as in ``sample``.
        seed: as in ``sample``.
        progress: show a progress bar on standard error.
        store: a NumPy file such as "x.npy". Until it is whole it is called x.npy.unfinished,
            with x.npy.state.nc beside it.

    Returns:
        (num_samples, *data shape), on the CPU, in random order; with ``store``, mapped from the
        file.

    Raises:
        ValueError: an argument is out of range; the file is there already, or was begun with
            other settings.
        KeyboardInterrupt: Ctrl-C; unlike ``sample``, nothing is returned then.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> generate(gebm, 10, num_chains=4, warmup_steps=20, seed=0, progress=False).shape
        torch.Size([10, 5])
    """
    _check(model, num_samples, num_chains, anneal_stages, kernel)
    chains = min(num_chains, num_samples)
    fixed: dict[str, Any] = {
        "kernel": kernel,
        "warmup_steps": warmup_steps,
        "thinning": thinning,
        "beta": beta,
        "global_moves": global_moves,
        "tempering": tempering,
        "chunk_size": chunk_size,
    }

    def draw(num: int, seed: int, run: InferenceData | None) -> InferenceData:
        """So many draws of every chain, from the beginning or further on in a run."""
        start = None
        if anneal_stages and run is None:
            start = anneal(model, chains, anneal_stages, kernel, beta, warmup_steps, seed)
        return _quiet_sample(
            model,
            num_samples=num,
            num_chains=chains,
            initial_params=start,
            seed=seed,
            resume=run,
            progress=progress and store is None,
            **fixed,
        )

    told = {n: value if isinstance(value, float) else repr(value) for n, value in fixed.items()}
    wanted = Wanted(num_samples, chains, seed, told | {"anneal_stages": anneal_stages})
    if store is not None:
        return stream(model, wanted, draw, store, progress=progress)
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    idata = draw(wanted.draws, seed, None)
    if idata.attrs["interrupted"]:
        raise KeyboardInterrupt("generate was interrupted: fewer samples than asked for")
    return _in_random_order(model, idata, wanted, seed)


def _check(
    model: object, num_samples: int, num_chains: int, anneal_stages: int, kernel: str | Kernel
) -> None:
    if not isinstance(model, GEBM):
        raise ValueError(f"model: expected a GEBM; got {type(model).__name__}")
    check_count("num_samples", num_samples)
    check_count("num_chains", num_chains)
    check_count("anneal_stages", anneal_stages, minimum=0)
    if is_pyro_kernel(kernel):
        raise ValueError("kernel: expected one of ours; got one of Pyro's; take sample() for it")


def _in_random_order(model: GEBM, idata: InferenceData, wanted: Wanted, seed: int) -> Tensor:
    like = model.base.latent_prior.like
    z = torch.as_tensor(inference_data.values(idata, "z"), device=like.device).flatten(0, 1)
    rows = torch.as_tensor(place_of(wanted, seed).ravel(), device=like.device)
    order = rows.argsort()[-wanted.num_samples :]  # what is not wanted has row -1
    with quiet_model(model):
        return push_forward(model, z[order])


def _quiet_sample(model: GEBM, **settings: Any) -> InferenceData:
    with warnings.catch_warnings():
        # A short run per chain is the usual case here; other warnings of sample() come through.
        warnings.filterwarnings("ignore", "not converged", UserWarning)
        return sample(model, **settings)
