"""The target of a run: potential in unconstrained coordinates, starts, and random streams."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.kernel import draw_seed, evaluate
from pyro_gebm.model import GEBM

MAX_REDRAWS = 100
"""Fresh starts that a chain is given before its potential is called bad."""

InitialParams: TypeAlias = Tensor | Mapping[str, Tensor] | None


class Target(NamedTuple):
    """What the kernels see, and the way back to latents."""

    potential_fn: PotentialFn
    """U over unconstrained positions u, (C, D') -> (C,)."""
    to_latent: Callable[[Tensor], Tensor]
    """u -> z."""
    from_latent: Callable[[Tensor], Tensor]
    """z -> u."""


@contextmanager
def quiet_model(model: GEBM | PotentialFn) -> Iterator[None]:
    """A GEBM in eval mode and frozen; anything else as it is."""
    with ExitStack() as stack:
        if isinstance(model, GEBM):
            stack.enter_context(model.frozen())
        yield


@contextmanager
def random_stream(
    model: GEBM | PotentialFn, initial_params: InitialParams, seed: int | None
) -> Iterator[tuple[torch.Generator, int]]:
    """A generator on the model's device; the global one is seeded within and restored after.

    Pyro's kernels and the latent prior draw from the global generator.
    """
    used = int(torch.randint(2**31, ())) if seed is None else seed
    device = model.base.latent_prior.like.device if isinstance(model, GEBM) else None
    if device is None and (given := _given_start(initial_params)) is not None:
        device = given.device
    device = device or torch.device("cpu")
    generator = torch.Generator(device).manual_seed(used)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Not the same seed: starts and first momenta would be the same numbers. And not
        # torch.manual_seed, which reseeds devices that are not restored.
        fresh = draw_seed(generator)
        torch.default_generator.manual_seed(fresh)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(fresh)
        yield generator, used


def build_target(model: GEBM | PotentialFn, beta: float) -> Target:
    """The potential U_β of a GEBM, in unconstrained coordinates, or β times one given."""
    if not isinstance(model, GEBM):
        if not callable(model):
            raise ValueError(
                f"model: expected a GEBM or a potential function; got {type(model).__name__}"
            )
        return Target(lambda z: beta * model(z), _identity, _identity)
    if model.base.latent_prior.is_unconstrained:
        return Target(lambda z: model.potential_fn(z, beta), _identity, _identity)
    transform = biject_to(model.base.latent_prior.support)

    def potential_fn(u: Tensor) -> Tensor:
        z = transform(u)
        log_det: Tensor = transform.log_abs_det_jacobian(u, z)
        # Element-wise transforms give one term per dimension.
        log_det = log_det.sum(-1) if log_det.ndim == u.ndim else log_det
        return model.potential_fn(z, beta) - log_det

    return Target(potential_fn, transform, transform.inv)


def _identity(z: Tensor) -> Tensor:
    return z


def _given_start(initial_params: InitialParams) -> Tensor | None:
    if isinstance(initial_params, Mapping):
        if set(initial_params) != {"z"}:
            raise ValueError(
                f"initial_params: expected the one key 'z'; got {sorted(initial_params)}"
            )
        initial_params = initial_params["z"]
    if initial_params is not None and not isinstance(initial_params, Tensor):
        raise ValueError(
            f"initial_params: expected a tensor; got {type(initial_params).__name__}; convert "
            "it with torch.as_tensor"
        )
    return initial_params


def find_start(
    model: GEBM | PotentialFn, target: Target, initial_params: InitialParams, num_chains: int
) -> Tensor:
    """Unconstrained starts of finite potential and gradient, (C, D')."""
    given = _given_start(initial_params)
    if given is not None:
        given = _check_start(model, given, num_chains)
        start = target.from_latent(given)
        bad = _bad_rows(target.potential_fn, start)
        if isinstance(model, GEBM):
            # The way to unconstrained coordinates clamps what lies outside the support.
            bad |= ~torch.isfinite(model.base.latent_prior.log_prob(given))
        if bad.any():
            raise ValueError(
                "initial_params: the potential or its gradient is not finite at chain "
                f"{int(bad.nonzero()[0])} ({int(bad.sum())} in all); start where the model has mass"
            )
        return start
    if not isinstance(model, GEBM):
        raise ValueError(
            "initial_params: a potential function needs starts (num_chains, D); got None (Pyro "
            "models other than a GEBM are not taken yet; give their potential and starts)"
        )
    return _draw_start(model, target, num_chains)


def _check_start(model: GEBM | PotentialFn, given: Tensor, num_chains: int) -> Tensor:
    """Starts of the right shape, in the model's dtype and on its device."""
    dim = model.latent_dim if isinstance(model, GEBM) else given.shape[-1] if given.ndim else 1
    if given.shape != (num_chains, dim):
        wanted = dim if isinstance(model, GEBM) else "D"
        raise ValueError(
            f"initial_params: expected shape (num_chains, D) = ({num_chains}, {wanted}); got "
            f"{tuple(given.shape)}"
        )
    if isinstance(model, GEBM):
        return given.detach().to(model.base.latent_prior.like)
    if not given.is_floating_point():
        raise ValueError(f"initial_params: expected floating point numbers; got {given.dtype}")
    return given.detach()


def _draw_start(model: GEBM, target: Target, num_chains: int) -> Tensor:
    start = target.from_latent(model.base.latent_prior.sample(num_chains))
    for _ in range(MAX_REDRAWS):
        bad = _bad_rows(target.potential_fn, start)
        if not bad.any():
            return start
        fresh = target.from_latent(model.base.latent_prior.sample(num_chains))
        start = torch.where(bad[:, None], fresh, start)
    raise ValueError(
        f"model: no start of finite potential in {MAX_REDRAWS} draws from the latent prior for "
        f"{int(bad.sum())} of {num_chains} chains; check the energy on model.base.sample(...)"
    )


def _bad_rows(potential_fn: PotentialFn, start: Tensor) -> Tensor:
    state = evaluate(potential_fn, start)
    energy = state.potential_energy
    if energy.shape != (len(start),):
        raise ValueError(
            f"model: expected a potential of shape ({len(start)},) for positions "
            f"{tuple(start.shape)}; got {tuple(energy.shape)}"
        )
    return ~torch.isfinite(energy + state.z_grad.sum(-1))
