"""Annealed starts: chains that follow β from the base, whose draws are exact, to the model."""

import torch
from torch import Tensor

from pyro_gebm.mcmc import Kernel, Moves, Tuning, warm_up
from pyro_gebm.mcmc.random import mix
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.build import random_state
from pyro_gebm.sampling.settings import choose_kernel, choose_warmup
from pyro_gebm.sampling.start import draw_start
from pyro_gebm.sampling.target import gebm_target, quiet_model


def anneal(
    model: GEBM,
    num_chains: int,
    stages: int,
    kernel: str | Kernel,
    beta: float,
    warmup_steps: int | None,
    seed: int,
) -> Tensor:
    """Latents (C, D) led from η to ν_β through stages of β, each warmed up from the last.

    The steps of a warm-up are shared among the stages. The result is a start, not a draw: each
    stage is as far from its law as its steps leave it.

    Raises:
        ValueError: ``kernel`` is one of Pyro's.
    """
    chosen = choose_kernel(kernel, num_chains)
    if not isinstance(chosen, Kernel):
        raise ValueError("kernel: expected one of ours for anneal_stages; got one of Pyro's")
    steps = max(1, choose_warmup(warmup_steps, num_chains) // stages)
    tuning: Tuning | None = None
    with quiet_model(model), random_state(seed, model.base.latent_prior.like.device):
        z = draw_start(gebm_target(model, beta), num_chains)
        for stage in range(1, stages + 1):
            target = gebm_target(model, beta * stage / stages)
            moves = Moves(chosen.bind(target.reference), target.potential_fn)
            warmed = warm_up(moves, z, steps, tuning=tuning, seed=mix(stage, seed))
            z, tuning = warmed.position.state.z, warmed.tuning
        with torch.no_grad():
            return target.to_sites(z)["z"]
