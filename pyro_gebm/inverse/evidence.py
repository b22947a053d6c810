"""The evidence of an observation under a GEBM, by sequential Monte Carlo."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_gebm.mcmc import Kernel
from pyro_gebm.metrics.partition import annealed_log_z, lead_from_base
from pyro_gebm.metrics.smc import AnnealedLogZ
from pyro_gebm.model import GEBM


class Evidence(NamedTuple):
    """log p(y) = log Z(y) - log Z.

    Attributes:
        log_evidence: log of the mean likelihood under the model, in nats.
        standard_error: of it, from both.
        joint: log Z(y) = log E_base[exp(-E) p(y | x)], and the posterior's chains.
        partition: log Z = log E_base[exp(-E)]: the same for all observations.
    """

    log_evidence: float
    standard_error: float
    joint: AnnealedLogZ
    partition: AnnealedLogZ


def log_evidence(
    gebm: GEBM,
    log_likelihood: Callable[[Tensor], Tensor],
    *,
    num_chains: int = 1024,
    num_moves: int = 3,
    cess: float = 0.9,
    kernel: Kernel | None = None,
    partition: AnnealedLogZ | None = None,
    generator: torch.Generator,
    progress: bool = False,
) -> Evidence:
    """log p(y) = log ∫ Q(dx) p(y | x), Q the law of the GEBM.

    Two runs of ``annealed_log_z``, from the base: with the energy E(G(z)) - log p(y | G(z)),
    and with E(G(z)) alone. The second does not depend on y: give its result to the next call.

    Args:
        gebm: the prior of x; left as it was.
        log_likelihood: x (B, *data shape) -> log p(y | x), (B,), in nats; -inf is allowed.
        num_chains: C of each run.
        num_moves: transitions at each temperature.
        cess: as in ``smc_log_z``: nearer to 1 takes more temperatures.
        kernel: ``HMC`` or ``MALA``; ``None`` is ``HMC()``.
        partition: of an earlier call with the same GEBM; ``None`` computes it.
        generator: source of all noise.
        progress: show a progress bar.

    Returns:
        ``Evidence``.

    Raises:
        ValueError: an argument is out of its range; the likelihood has another shape, is NaN or
            +inf, or is zero at all draws from the base.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> class Flat(nn.Module):
        ...     def forward(self, x):
        ...         return 0 * x[:, 0]
        >>> gebm = GEBM(Base(nn.Identity(), StandardNormal(1)), Flat())
        >>> def normal(x):  # y = 1 of N(x, 1): the evidence is N(1; 0, 2)
        ...     return -0.5 * ((1 - x[:, 0]) ** 2 + math.log(2 * math.pi))
        >>> found = log_evidence(gebm, normal, generator=torch.Generator().manual_seed(0))
        >>> truth = -0.25 - 0.5 * math.log(4 * math.pi)
        >>> abs(found.log_evidence - truth) < 4 * found.standard_error < 0.2
        True
    """
    settings: dict[str, Any] = {
        "num_moves": num_moves,
        "cess": cess,
        "kernel": kernel,
        "generator": generator,
        "progress": progress,
    }

    def with_likelihood(z: Tensor) -> Tensor:
        x = gebm.base(z)
        log_prob = log_likelihood(x)
        if log_prob.shape != (len(z),):
            raise ValueError(
                f"log_likelihood: expected shape ({len(z)},), a number for each x of "
                f"{tuple(x.shape)}; got {tuple(log_prob.shape)}; sum over pixels"
            )
        return gebm.evaluate_energy(x) - log_prob

    joint = lead_from_base(gebm, with_likelihood, num_chains, **settings)
    if partition is None:
        partition = annealed_log_z(gebm, num_chains, **settings)
    error = math.hypot(joint.standard_error, partition.standard_error)
    return Evidence(joint.log_z - partition.log_z, error, joint, partition)
