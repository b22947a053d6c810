"""Test log-likelihood of a GEBM whose base has a density, with a log Z that can be trusted."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_batch, check_choice, check_count, check_finite, check_in_range
from pyro_gebm.flows.density import FreeEnergy, data_log_prob
from pyro_gebm.metrics.cloud import log_mean
from pyro_gebm.metrics.pareto import tail_shape, tail_shape_limit
from pyro_gebm.metrics.partition import annealed_log_z, base_energies, data_energies
from pyro_gebm.metrics.smc import AnnealedLogZ
from pyro_gebm.model import GEBM
from pyro_gebm.objectives import importance_ess

METHODS = ("auto", "importance", "annealed")
LEAST_ESS = 400.0
"""Even draws that the weighted ones must be worth, before their own error means anything."""
LEAST_ACCEPT_PROB = 0.2
"""Acceptance of the annealed chains' moves, at the worst β, below which they hardly move."""
UNLIKELY = 1000.0
"""Importance sampling overestimates Z so many times with a probability of at most 1/1000."""


class UntrustedLogZError(RuntimeError):
    """log Z is not known well enough for a likelihood; the message says by which rule."""


class TrustedLogZ(NamedTuple):
    """log Z, and what speaks for it.

    Attributes:
        log_z: in nats.
        standard_error: of ``log_z``.
        ess: even draws that those behind it are worth: of the base's, or of the annealed chains
            at the worst β before resampling.
        tail_shape: k̂ of the importance weights, NaN where they were not asked.
        method: "importance" or "annealed".
    """

    log_z: float
    standard_error: float
    ess: float
    tail_shape: float
    method: str


class LogLikelihood(NamedTuple):
    """Mean test log-likelihood of a model, in nats per datum.

    Attributes:
        mean: mean of log h(x) - E(x), less log Z.
        standard_error: of ``mean``: the two below, which are independent, together.
        data_error: from the number of data.
        log_z_error: of log Z; it is common to all data, and to all sets judged by one log Z.
        log_z: in nats.
        ess: see ``TrustedLogZ``.
    """

    mean: float
    standard_error: float
    data_error: float
    log_z_error: float
    log_z: float
    ess: float


def trusted_log_z(
    gebm: GEBM,
    *,
    method: str = "auto",
    num_latents: int = 100_000,
    num_chains: int = 1024,
    num_moves: int = 5,
    max_error: float = 0.1,
    generator: torch.Generator,
    progress: bool = False,
) -> TrustedLogZ:
    """log Z = log E_B[exp(-E)] that may stand in a likelihood; refused otherwise.

    Importance sampling from the base is trusted if its weights are worth 400 even draws, their
    tail is that of a law with k̂ < min(1 - 1/log10 N, 0.7) (Vehtari, Simpson, Gelman, Yao and
    Gabry, 2024, "Pareto smoothed importance sampling"), and its standard error is at most
    ``max_error``. Where it is not, "auto" goes on to sequential Monte Carlo from the base to the
    model (``annealed_log_z``), which is trusted if its standard error, from independent islands,
    is at most ``max_error``, its moves are accepted with a probability of 0.2 at every β, and the
    importance estimate does not exceed it by more than log 1000, which by Markov's inequality has
    a probability of 1/1000 at most if it is right. None of this can see a mode that neither the
    base nor any chain has found: log Z is then too low, and the likelihood too high.

    Args:
        gebm: the model; its base may be any.
        method: "auto", or "importance" or "annealed" alone.
        num_latents: draws from the base.
        num_chains: of ``annealed_log_z``, a multiple of 16.
        num_moves: transitions of each chain at each β.
        max_error: standard error that is accepted, in nats.
        generator: source of all noise; torch's global ones are left as they were.
        progress: show progress bars.

    Returns:
        ``TrustedLogZ``.

    Raises:
        UntrustedLogZError: no estimate passes its rules, which are named.
        ValueError: an argument is out of its range, or an energy is NaN or -inf.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.flows import NVP, flow_base
        >>> base = flow_base(NVP(2))
        >>> gebm = GEBM(base, nn.Linear(2, 1))
        >>> _ = nn.init.zeros_(gebm.energy.weight), nn.init.constant_(gebm.energy.bias, 3.0)
        >>> found = trusted_log_z(
        ...     gebm, num_latents=10_000, generator=torch.Generator().manual_seed(0))
        >>> found.method, round(found.log_z, 4)  # the energy is 3 everywhere
        ('importance', -3.0)
    """
    check_choice("method", method, METHODS)
    check_count("num_latents", num_latents, minimum=100)
    check_in_range("max_error", max_error, 0.0, open_low=True)
    check_own_base(gebm)
    energy = base_energies(gebm, num_latents, generator=generator, progress=progress)
    found = _by_importance(energy)
    doubts = importance_doubts(found, num_latents, max_error)
    if method != "annealed" and not doubts:
        return found
    if method == "importance":
        raise UntrustedLogZError(
            f"log Z by importance sampling, {found.log_z:.3f}, is not to be trusted: "
            f"{'; '.join(doubts)}; take more latents, or method='annealed'"
        )
    annealed = annealed_log_z(
        gebm, num_chains, num_moves=num_moves, generator=generator, progress=progress
    )
    return _check_annealed(annealed, found, doubts, num_chains, max_error)


def log_likelihood(gebm: GEBM, x: Tensor, log_z: TrustedLogZ) -> LogLikelihood:
    """Mean of log q(x) = log h(x) - E(x) - log Z over data, with its standard error.

    Comparable with the likelihood of any other density on the same data in the same units.
    Jensen's inequality: an unbiased Ẑ makes log Z low, and this high, by half its variance.

    Args:
        gebm: the model, on a base with a density (``flow_base``).
        x: test data (N, D), N >= 2.
        log_z: of this very model, by ``trusted_log_z``.

    Returns:
        ``LogLikelihood``.

    Raises:
        ValueError: the base has no density, there are fewer than two data, or a log density is
            not finite.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.flows import NVP, flow_base, log_prob
        >>> gebm = GEBM(flow_base(NVP(2)), nn.Linear(2, 1))
        >>> _ = nn.init.zeros_(gebm.energy.weight), nn.init.zeros_(gebm.energy.bias)
        >>> rng = torch.Generator().manual_seed(0)
        >>> log_z = trusted_log_z(gebm, num_latents=1000, generator=rng)
        >>> x = torch.randn(4000, 2, generator=rng)
        >>> found = log_likelihood(gebm, x, log_z)
        >>> abs(found.mean - float(log_prob(gebm.base, x).detach().mean())) < 1e-5  # E is 0
        True
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x: expected at least two data (N, D); got {tuple(x.shape)}")
    values = check_finite("log density of x", log_density(gebm, x, log_z.log_z))
    data_error = float(values.std()) / math.sqrt(len(values))
    error = math.hypot(data_error, log_z.standard_error)
    return LogLikelihood(
        float(values.mean()), error, data_error, log_z.standard_error, log_z.log_z, log_z.ess
    )


@torch.no_grad()
def log_density(gebm: GEBM, x: Tensor, log_z: float) -> Tensor:
    """log q(x) = log h(x) - E(x) - log Z of data (N, D), (N,) float64, in eval mode.

    Raises:
        ValueError: the base has no density, or x is not (N, D).
    """
    check_batch("x", x, (gebm.latent_dim,))
    check_own_base(gebm)
    return data_log_prob(gebm.base, x) - data_energies(gebm, x) - log_z


def check_own_base(gebm: GEBM) -> None:
    """Refuse a ``FreeEnergy`` on another base than the model's."""
    energy: object = gebm.energy
    if isinstance(energy, FreeEnergy) and energy.base.generator is not gebm.base.generator:
        raise ValueError(
            "energy: expected FreeEnergy(r, base) on the model's own base; got another's; build "
            "it as GEBM(base, FreeEnergy(r, base))"
        )


def importance_doubts(found: TrustedLogZ, num_latents: int, max_error: float) -> list[str]:
    """Which rules an importance estimate breaks."""
    limit = tail_shape_limit(num_latents)
    doubts = []
    if found.ess < LEAST_ESS:
        doubts.append(
            f"{num_latents} weighted draws are worth {found.ess:.1f}, fewer than {LEAST_ESS:.0f}"
        )
    if not found.tail_shape < limit:
        doubts.append(f"the weights' tail has shape {found.tail_shape:.2f}, not below {limit:.2f}")
    return doubts + _wide(found.standard_error, max_error)


def _by_importance(energy: Tensor) -> TrustedLogZ:
    log_z, error = log_mean(-energy)
    ess = len(energy) * float(importance_ess(energy))
    return TrustedLogZ(log_z, error, ess, tail_shape(-energy), "importance")


def _check_annealed(
    annealed: AnnealedLogZ,
    importance: TrustedLogZ,
    doubts: list[str],
    num_chains: int,
    max_error: float,
) -> TrustedLogZ:
    excess = importance.log_z - annealed.log_z
    accepted = float(annealed.accept_prob.min())
    found = _wide(annealed.standard_error, max_error)
    if accepted < LEAST_ACCEPT_PROB:
        found.append(f"moves were accepted with {accepted:.2f} only, below {LEAST_ACCEPT_PROB}")
    if excess > math.log(UNLIKELY):
        found.append(
            f"importance sampling exceeds it by {excess:.1f} nats, more than log {UNLIKELY:.0f}: "
            "the chains have missed something"
        )
    if found:
        raise UntrustedLogZError(
            f"log Z by annealing, {annealed.log_z:.3f}, is not to be trusted: {'; '.join(found)}; "
            f"nor is it by importance sampling, {importance.log_z:.3f} "
            f"({'; '.join(doubts) or 'not asked'}); take more chains or moves, or a base nearer "
            "to the model"
        )
    ess = num_chains * float(annealed.ess.min())
    return TrustedLogZ(
        annealed.log_z, annealed.standard_error, ess, importance.tail_shape, "annealed"
    )


def _wide(error: float, max_error: float) -> list[str]:
    if error <= max_error:
        return []
    return [f"its standard error is {error:.3f} nats, more than {max_error}"]
