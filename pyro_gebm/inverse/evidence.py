"""The evidence of an observation under a GEBM, by sequential Monte Carlo."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_count
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc import Kernel
from pyro_gebm.metrics.partition import annealed_log_z, lead_from_base
from pyro_gebm.metrics.smc import AnnealedLogZ, smc_log_z
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.build import random_state
from pyro_gebm.sampling.pyro_model import pyro_target
from pyro_gebm.sampling.pyro_trace import run_model


class Evidence(NamedTuple):
    """log p(y) = log Z(y) - log Z.

    Attributes:
        log_evidence: log of the mean likelihood under the model, in nats.
        standard_error: of it, from both.
        joint: log Z(y) = log E_base[exp(-E) p(y | x)], and the posterior's chains; with
            ``model``, ``joint.z`` is in unconstrained coordinates, all sites side by side.
        partition: log Z = log E_base[exp(-E)]: the same for all observations.
        sites: values of the latent sites, {name: (C, *shape)}: with ``joint.log_weights`` a
            sample of the posterior.
    """

    log_evidence: float
    standard_error: float
    joint: AnnealedLogZ
    partition: AnnealedLogZ
    sites: dict[str, Tensor]


def log_evidence(
    gebm: GEBM,
    log_likelihood: Callable[[Tensor], Tensor] | None = None,
    *,
    model: Callable[[], Any] | None = None,
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

    Where more is unknown than x, such as the scale of the noise, give a Pyro ``model`` in place
    of the likelihood: with θ its other latent sites, log p(y) = log ∫ Q(dx) p(θ) p(y | x, θ), and
    the chains move in z and θ together.

    Args:
        gebm: the prior of x; left as it was.
        log_likelihood: x (B, *data shape) -> log p(y | x), (B,), in nats; -inf is allowed.
        model: that of one observation, with its data bound, as for ``sample``:
            ``functools.partial(inpaint, y)``. It calls ``gebm.model()`` once, and no other GEBM.
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
        ValueError: an argument is out of its range; not exactly one of ``log_likelihood`` and
            ``model``; the model cannot be sampled, or does not call one GEBM once; the
            likelihood has another shape, is NaN or +inf, or is zero at all draws from the base.

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
    if (log_likelihood is None) == (model is None):
        raise ValueError(
            "log_likelihood: expected one of log_likelihood and model; got both or none"
        )
    settings: dict[str, Any] = {
        "num_moves": num_moves,
        "cess": cess,
        "kernel": kernel,
        "generator": generator,
        "progress": progress,
    }
    if log_likelihood is not None:
        energy_fn = _with_likelihood(gebm, log_likelihood)
        joint = lead_from_base(gebm, energy_fn, num_chains, **settings)
        sites = {"z": joint.z}
    else:
        assert model is not None
        joint, sites = _lead_from_prior(gebm, model, num_chains, **settings)
    if partition is None:
        partition = annealed_log_z(gebm, num_chains, **settings)
    error = math.hypot(joint.standard_error, partition.standard_error)
    return Evidence(joint.log_z - partition.log_z, error, joint, partition, sites)


def _with_likelihood(gebm: GEBM, log_likelihood: Callable[[Tensor], Tensor]) -> PotentialFn:
    """z -> E(G(z)) - log p(y | G(z))."""

    def energy_fn(z: Tensor) -> Tensor:
        x = gebm.base(z)
        log_prob = log_likelihood(x)
        if log_prob.shape != (len(z),):
            raise ValueError(
                f"log_likelihood: expected shape ({len(z)},), a number for each x of "
                f"{tuple(x.shape)}; got {tuple(log_prob.shape)}; sum over pixels"
            )
        return gebm.evaluate_energy(x) - log_prob

    return energy_fn


def _lead_from_prior(
    gebm: GEBM,
    model: Callable[[], Any],
    num_chains: int,
    *,
    generator: torch.Generator,
    **settings: Any,
) -> tuple[AnnealedLogZ, dict[str, Tensor]]:
    """log E[exp(-E) p(y | x, θ)] over z and θ from their priors, and where the chains end."""
    check_count("num_chains", num_chains)
    device = gebm.base.latent_prior.like.device
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with random_state(seed, device):
        target = pyro_target(model, (), {})
        _check_one_gebm(model)
        reference = target.reference
        assert reference is not None
        start = reference.sample(num_chains)

    def energy_fn(u: Tensor) -> Tensor:
        return target.potential_fn(u) - reference.potential_fn(u)

    found = smc_log_z(start, reference.potential_fn, energy_fn, generator=generator, **settings)
    with torch.no_grad():
        return found, target.to_sites(found.z)


def _check_one_gebm(model: Callable[[], Any]) -> None:
    """The evidence divides by this GEBM's partition function, and by no other's."""
    energies = [name for name in run_model(model) if name.split(".")[-1] == "neg_energy"]
    if len(energies) != 1:
        raise ValueError(
            f"model: expected one call of gebm.model(); got the energy factors {energies}; of "
            "several GEBMs, divide by the partition function of each yourself"
        )
