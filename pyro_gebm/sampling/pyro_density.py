"""The density of a Pyro model at unconstrained values, for one chain and for all."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from pyro_gebm.sampling.push import CHUNK
from pyro_gebm.sampling.pyro_lenient import AlgebraError, LenientAlgebra
from pyro_gebm.sampling.pyro_terms import split_log_prob
from pyro_gebm.sampling.pyro_trace import (
    ModelRunError,
    Nodes,
    Program,
    Site,
    check_held,
    run_model,
)
from pyro_gebm.sampling.target import Sites


@dataclass(frozen=True)
class PyroDensity:
    """The model of one chain, at unconstrained values u (D',)."""

    program: Program
    sites: tuple[Site, ...]
    """The latent sites, in the order in which their values stand in u."""
    pushed: tuple[str, ...]
    """The deterministic sites."""
    unrestricted: frozenset[str] = frozenset()
    """Sites that have a density outside of their support, too; see ``split_log_prob``."""
    is_lenient: bool = False
    """Whether ``program`` runs under ``LenientAlgebra``, and its density is to do so, too."""

    def _split(self, u: Tensor) -> list[tuple[Site, Tensor]]:
        parts = zip(
            self.sites, torch.split(u, [s.free_shape.numel() for s in self.sites]), strict=True
        )
        return [(site, part.reshape(site.free_shape).to(site.like)) for site, part in parts]

    def constrain(self, u: Tensor) -> Sites:
        """u -> values of the latent sites."""
        return {site.name: site.transform(part) for site, part in self._split(u)}

    def free(self, nodes: Nodes) -> Tensor:
        """The values of a run -> u."""
        return flatten(self.sites, {site.name: nodes[site.name]["value"] for site in self.sites})

    def energy(self, u: Tensor, beta: float) -> Tensor:
        """U_β(u) = U_0(u) - β log L, a scalar; see ``pyro_target``.

        NaN where a matrix of a chain that is evaluated alone has no factor or no inverse.
        """
        try:
            log_prob = self._log_prob(u, beta)
        except ModelRunError as error:
            if is_batchedtensor(u) or not isinstance(error.__cause__, AlgebraError):
                raise
            return u.sum() * torch.nan
        return -log_prob.to(u)

    def _log_prob(self, u: Tensor, beta: float) -> Tensor:
        values, nodes = self._run(u)
        # Not always: it makes every operation slower.
        with LenientAlgebra() if self.is_lenient else nullcontext():
            log_prior, log_rest = split_log_prob(
                nodes, values, prior_only=beta == 0, unrestricted=self.unrestricted
            )
        for site, part in self._split(u):
            log_det: Tensor = site.transform.log_abs_det_jacobian(part, values[site.name])
            log_prior = log_prior + log_det.sum()
        # Not 0 * log_rest: that would be NaN where the likelihood is zero.
        return log_prior if beta == 0 else log_prior + beta * log_rest

    def draw(self) -> Tensor:
        """u of a forward run; NaN where a matrix has no factor or no inverse."""
        try:
            return self.free(run_model(self.program))
        except ModelRunError as error:
            if not isinstance(error.__cause__, AlgebraError):
                raise
            parts = [site.like.new_full(site.free_shape, torch.nan) for site in self.sites]
            return torch.cat([part.reshape(-1) for part in parts])

    def _run(self, u: Tensor) -> tuple[Sites, Nodes]:
        values = self.constrain(u)
        nodes = run_model(self.program, values)
        check_held(values, nodes)
        return values, nodes

    def push(self, u: Tensor) -> Sites:
        """u -> values of the deterministic sites."""
        nodes = self._run(u)[1]
        return {name: nodes[name]["value"] for name in self.pushed}

    def free_chains(self, values: Mapping[str, Tensor]) -> Tensor:
        """Constrained values (C, *shape) of every site -> u (C, D')."""
        chains = _check_values(self.sites, values)
        return torch.stack([flatten(self.sites, chain) for chain in chains])


def flatten(sites: Sequence[Site], values: Mapping[str, Tensor]) -> Tensor:
    """Constrained values of one chain -> u (D',)."""
    return torch.cat([site.transform.inv(values[site.name]).reshape(-1) for site in sites])


def _check_values(sites: Sequence[Site], values: Mapping[str, Tensor]) -> list[Sites]:
    """Chain by chain, in the sites' dtypes and on their devices."""
    names = [site.name for site in sites]
    if set(values) != set(names):
        raise ValueError(f"initial_params: expected the latent sites {names}; got {sorted(values)}")
    chains = len(values[names[0]]) if values[names[0]].ndim else 0
    for site in sites:
        value, wanted = values[site.name], (chains, *site.like.shape)
        if value.shape != wanted or not chains:
            raise ValueError(
                f"initial_params: site {site.name!r}: expected shape (num_chains, "
                f"*{tuple(site.like.shape)}), as many chains for every site; got "
                f"{tuple(value.shape)}"
            )
        # The transforms would clamp such values silently.
        if not bool(site.support.check(value).all()):
            raise ValueError(
                f"initial_params: site {site.name!r}: expected values in its support "
                f"({site.support}); got some outside; start where the prior has mass"
            )
    return [
        {site.name: values[site.name][chain].detach().to(site.like) for site in sites}
        for chain in range(chains)
    ]


def over_rows(fn: Callable[[Tensor], Any], batched: bool) -> Callable[[Tensor], Any]:
    """``fn`` of one chain -> of all chains, batched or one after the other."""
    if batched:
        return torch.func.vmap(fn)

    def one_by_one(rows: Tensor) -> Any:
        parts = [fn(row) for row in rows]
        if isinstance(parts[0], dict):
            return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return torch.stack(parts)

    return one_by_one


def map_sites(on_rows: Callable[[Tensor], Sites], u: Tensor) -> Sites:
    """u (..., D') -> values (..., *shape)."""
    values = on_rows(u.reshape(-1, u.shape[-1]))
    return {name: value.reshape(*u.shape[:-1], *value.shape[1:]) for name, value in values.items()}


def push_in_chunks(on_rows: Callable[[Tensor], Sites], u: Tensor) -> Sites:
    """Deterministic sites, (..., *shape), in chunks, without gradient, on the CPU."""
    with torch.no_grad():
        parts = [on_rows(chunk) for chunk in torch.split(u.reshape(-1, u.shape[-1]), CHUNK)]
    whole = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    return {name: value.reshape(*u.shape[:-1], *value.shape[1:]) for name, value in whole.items()}
