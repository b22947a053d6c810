"""The log density of one run of a Pyro model, in two parts."""

from collections.abc import Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import is_identically_one, scale_and_mask
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.distributions import Distribution

from pyro_gebm.sampling.pyro_lenient import validation
from pyro_gebm.sampling.pyro_support import is_possible
from pyro_gebm.sampling.pyro_trace import (
    Nodes,
    Progress,
    is_deterministic,
    latent_names,
    naming_site,
    unmasked,
)


def split_log_prob(
    nodes: Nodes,
    latent: Collection[str],
    *,
    prior_only: bool = False,
    validate: bool = False,
    unrestricted: Collection[str] = (),
) -> tuple[Tensor, Tensor]:
    """The log density of a run, of one chain, in two parts.

    Values outside of a support and parameters outside of their constraints have density zero,
    where they depend on latent sites.

    Args:
        nodes: of the run.
        latent: the sites of the first part.
        prior_only: only the first part is wanted.
        validate: as in ``run_model``.
        unrestricted: sites whose density is what its formula gives, everywhere.

    Returns:
        log p, the sum over the ``latent`` sites, unscaled and unmasked: the law that draws
        follow; and the sum of all else (observed sites, factors, what scale and mask change of
        latent sites), zero if ``prior_only``. Scalars, in nats.

    Raises:
        ValueError: a distribution raised.
    """
    prior: list[Tensor] = []
    rest: list[Tensor] = []
    progress = Progress()
    in_batch = any(is_batchedtensor(nodes[name]["value"]) for name in latent if name in nodes)
    with validation(validate), naming_site(progress):
        for name, site in nodes.items():
            progress.name = name
            if name in latent:
                log_prob = _log_prob(site, unmasked(site["fn"])).sum()
                if _is_altered(site) and not prior_only:
                    rest.append(_scaled_log_prob(site) - log_prob)
                parts = prior
            elif prior_only or is_deterministic(site):
                continue
            else:
                log_prob, parts = _scaled_log_prob(site), rest
            if name not in unrestricted:
                possible = _is_possible(site, held=name in latent, in_batch=in_batch)
                if possible is not None:
                    log_prob = torch.where(possible, log_prob, -torch.inf)
            parts.append(log_prob)
    zero = torch.zeros(())
    return sum(prior, start=zero), sum(rest, start=zero)


def impossible_names(nodes: Nodes) -> set[str]:
    """Sites of a run whose density ``split_log_prob`` makes zero."""
    latent = latent_names(nodes)
    variable = [name for name, site in nodes.items() if not is_deterministic(site)]
    possible = {
        name: _is_possible(nodes[name], held=name in latent, in_batch=False) for name in variable
    }
    return {name for name, ok in possible.items() if ok is not None and not bool(ok)}


def _is_possible(site: Mapping[str, Any], *, held: bool, in_batch: bool) -> Tensor | None:
    # The law of draws knows no masks.
    fn, mask = (unmasked(site["fn"]), None) if held else (site["fn"], site["mask"])
    return is_possible(fn, site["value"], mask, held=held, in_batch=in_batch)


def _log_prob(site: Mapping[str, Any], fn: Distribution) -> Tensor:
    value: Tensor = fn.log_prob(site["value"], *site["args"], **site["kwargs"])
    return value


def _scaled_log_prob(site: Mapping[str, Any]) -> Tensor:
    value = scale_and_mask(_log_prob(site, site["fn"]), site["scale"], site["mask"])
    return torch.as_tensor(value).sum()


def _is_altered(site: Mapping[str, Any]) -> bool:
    """Whether scale or mask make the density of a site another than that of its draws."""
    masked = site["mask"] is not None or isinstance(site["fn"], dist.MaskedDistribution)
    return masked or not is_identically_one(site["scale"])
