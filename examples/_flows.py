"""What the examples on flows share: a flow by maximum likelihood, an energy on it, its judge."""

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader
from pyro_gebm.flows import flow_base
from pyro_gebm.metrics.likelihood import TrustedLogZ, UntrustedLogZError, trusted_log_z
from pyro_gebm.nets import NetworkSpec, build
from pyro_gebm.training.max_likelihood import FlowConfig, fit_flow, mean_nll

BATCH = 256


class Bowl(nn.Module):
    """r(x) = |x|²/2s² + a network: exp(-r) is integrable, and heavier than the data."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x / self.scale).square().sum(-1) + self.network(x)


class Candidate(NamedTuple):
    """A trained model, and what it was trained with."""

    penalty: float
    gebm: pg.GEBM
    validation: float
    """Mean log-likelihood of validation data, nats: that of the base, and the best bound."""


def loader_of(x: Tensor, seed: int) -> BatchLoader:
    return BatchLoader(x, min(BATCH, len(x)), generator=torch.Generator().manual_seed(seed))


def fitted_flow(
    spec: NetworkSpec, x: Tensor, held_out: Tensor, config: FlowConfig, seed: int
) -> pg.Base:
    """A flow by maximum likelihood, with the weights that validation data like best."""
    torch.manual_seed(seed)
    base = flow_base(build(spec))
    for _ in fit_flow(base, loader_of(x, seed), config, held_out=held_out):
        pass
    return base


def trained(
    gebm: pg.GEBM, config: pg.TrainConfig, x: Tensor, held_out: Tensor, seed: int
) -> Candidate:
    """A model by the trainer, both its phases; of the refit's looks the best comes back.

    Looks go by the bound F(E, c). Donsker-Varadhan does not learn c: there by F at c = log Z.
    """
    by_log_z = config.objective == "donsker_varadhan"
    torch.manual_seed(seed)
    looks = [
        info.held_out.kale if by_log_z else info.held_out.bound
        for info in pg.Trainer(gebm, config, held_out=held_out).fit(loader_of(x, seed))
        if info.phase == "refit" and info.held_out is not None
    ]
    validation = max(looks, default=math.nan) - mean_nll(gebm.base, held_out)
    return Candidate(config.refit_gradient_penalty, gebm.eval(), validation)


def over_penalties(
    base: pg.Base,
    make_energy: Callable[[pg.Base], nn.Module],
    config_of: Callable[[float], pg.TrainConfig],
    penalties: Sequence[float],
    parts: tuple[Tensor, Tensor],
    seed: int,
) -> list[Candidate]:
    """One model for each penalty, the best on validation data first; ``base`` stays as it is."""
    found = []
    for penalty in penalties:
        own = copy.deepcopy(base)
        torch.manual_seed(seed)
        gebm = pg.GEBM(own, make_energy(own))
        found.append(trained(gebm, config_of(penalty), *parts, seed))
    return sorted(found, key=lambda candidate: candidate.validation, reverse=True)


def log_z_of(gebm: pg.GEBM, latents: int, seed: int, chains: int = 512) -> TrustedLogZ | str:
    """log Z, or why it is not to be trusted; of few latents with few chains."""
    chains = max(32, min(chains, latents // 20) // 16 * 16)
    try:
        return trusted_log_z(
            gebm,
            num_latents=latents,
            num_chains=chains,
            generator=torch.Generator().manual_seed(seed),
        )
    except UntrustedLogZError as error:
        return str(error)


def mean_and_error(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard error over seeds."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "none trusted"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"
