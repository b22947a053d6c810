"""The target of a run: potential in unconstrained coordinates, and the way back to the sites."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.gradients import CapturedPotential, Wrapped
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.push import push_forward

Sites: TypeAlias = dict[str, Tensor]
"""Values by site name, each (..., *shape of the site)."""

Model: TypeAlias = GEBM | Callable[..., Any]
"""A GEBM, a Pyro model, or a potential function (C, D) -> (C,)."""

InitialParams: TypeAlias = Tensor | Mapping[str, Tensor] | None
"""Where chains start: values (C, *shape) by site, or one tensor where there is one site."""


class Target(NamedTuple):
    """What the kernels see, and the way back to what the user knows."""

    potential_fn: PotentialFn
    """U over unconstrained positions u, (C, D') -> (C,)."""
    to_sites: Callable[[Tensor], Sites]
    """u (..., D') -> constrained values of every site, (..., *shape)."""
    from_sites: Callable[[Mapping[str, Tensor]], Tensor]
    """Constrained values (C, *shape) of every site -> u (C, D')."""
    shapes: dict[str, tuple[int, ...] | None]
    """The latent sites and their shapes; ``None`` where any shape will do."""
    like: Tensor | None = None
    """A tensor of the model's dtype and device; ``None``: those of the starts."""
    reference: Reference | None = None
    """What the target is at β = 0, in the same coordinates, where it can be drawn from."""
    push: Callable[[Tensor], Sites] | None = None
    """u (..., D') -> deterministic sites such as x = G(z), on the CPU."""


@contextmanager
def quiet_model(model: Model) -> Iterator[None]:
    """A GEBM in eval mode and frozen; anything else as it is."""
    with ExitStack() as stack:
        if isinstance(model, GEBM):
            stack.enter_context(model.frozen())
        yield


def gebm_target(model: GEBM, beta: float) -> Target:
    """The latent posterior ν_β of a GEBM; its reference is the base."""
    prior = model.base.latent_prior
    to_latent, from_latent, log_det = prior.coordinates()

    def potential_fn(u: Tensor) -> Tensor:
        z = to_latent(u)
        return model.potential_fn(z, beta) - log_det(u, z)

    def base_potential_fn(u: Tensor) -> Tensor:
        z = to_latent(u)
        return -prior.log_prob(z) - log_det(u, z)

    def from_sites(sites: Mapping[str, Tensor]) -> Tensor:
        z = sites["z"]
        # The way to unconstrained coordinates clamps what lies outside the support.
        inside = torch.isfinite(prior.log_prob(z))
        return torch.where(inside[:, None], from_latent(z), torch.nan)

    return Target(
        potential_fn=CapturedPotential(potential_fn),
        to_sites=lambda u: {"z": to_latent(u)},
        from_sites=from_sites,
        shapes={"z": (model.latent_dim,)},
        like=prior.like,
        reference=Reference(lambda n: from_latent(prior.sample(n)), base_potential_fn),
        push=lambda u: {"x": push_forward(model, to_latent(u))},
    )


def potential_target(potential_fn: PotentialFn, beta: float) -> Target:
    """β times a potential given as such; its one site is called z."""

    def scaled(z: Tensor) -> Tensor:
        return beta * potential_fn(z)

    again = type(potential_fn) if isinstance(potential_fn, Wrapped) else None
    at_beta = again(scaled) if again else scaled
    return Target(
        potential_fn=potential_fn if beta == 1 else at_beta,
        to_sites=lambda u: {"z": u},
        from_sites=lambda sites: sites["z"],
        shapes={"z": None},
    )
