"""Test log-likelihood of a model on a flow, where log Z can be trusted."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_gebm import GEBM
from pyro_gebm.cli.problems import FLOWS, Problem
from pyro_gebm.flows.density import data_log_prob
from pyro_gebm.metrics.likelihood import (
    TrustedLogZ,
    UntrustedLogZError,
    log_density,
    trusted_log_z,
)

LOG_Z_LATENTS = 100_000


class Likelihoods(NamedTuple):
    """Mean log densities of test rows, nats a row, in the units that the model sees."""

    base: float
    base_error: float
    """From the number of rows."""
    model: float | None
    """``None`` where log Z is not to be trusted."""
    model_error: float | None
    gain: float | None
    """Model less base, row by row."""
    gain_error: float | None
    """From the number of rows and from log Z."""
    log_z: dict[str, Any]
    """What ``trusted_log_z`` says, or why it is "refused"."""
    log_det: float
    """To be added for the data's own units."""


def score_likelihoods(gebm: GEBM, problem: Problem, seed: int) -> Likelihoods | None:
    """The log-likelihoods of base and model; ``None`` if the base has no density."""
    if problem.base not in FLOWS:
        return None
    test = problem.test.to(gebm.log_partition.device)
    base = data_log_prob(gebm.base, test).cpu()
    log_det = 0.0 if problem.table is None else problem.table.log_det
    known = float(base.mean()), _error(base)
    try:
        generator = torch.Generator().manual_seed(seed)
        log_z = trusted_log_z(gebm, num_latents=LOG_Z_LATENTS, generator=generator, progress=True)
    except UntrustedLogZError as refusal:
        return Likelihoods(*known, None, None, None, None, {"refused": str(refusal)}, log_det)
    model = log_density(gebm, test, log_z.log_z).cpu()
    gain = model - base
    return Likelihoods(
        *known,
        float(model.mean()),
        math.hypot(_error(model), log_z.standard_error),
        float(gain.mean()),
        math.hypot(_error(gain), log_z.standard_error),
        log_z._asdict(),
        log_det,
    )


def likelihood_words(found: Likelihoods) -> list[str]:
    """The figures in two or three sentences."""
    lines = [f"Test log-likelihood of the base: {_plus_minus(found.base, found.base_error)} nats."]
    if found.model is None or found.gain is None:
        lines.append(f"That of the model is not to be had: {found.log_z['refused']}.")
    else:
        log_z = TrustedLogZ(**found.log_z)
        way = {"importance": "importance sampling", "annealed": "sequential Monte Carlo"}
        lines.append(
            f"Test log-likelihood of the model: {_plus_minus(found.model, found.model_error)} "
            f"nats, {_plus_minus(found.gain, found.gain_error)} more than the base, row by row; "
            f"log Z {_plus_minus(log_z.log_z, log_z.standard_error)} by {way[log_z.method]}, "
            f"worth {log_z.ess:,.0f} even draws."
        )
    if found.log_det:
        lines.append(
            f"These are per row and in scaled units; add {found.log_det:.3f} for the table's own."
        )
    return lines


def _plus_minus(value: float, error: float | None) -> str:
    return f"{value:.3f} ± {error:.3f}"


def _error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))
