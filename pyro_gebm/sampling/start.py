"""Where chains start: given, or drawn from the reference until the potential is finite."""

import warnings
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc import Reference
from pyro_gebm.mcmc.gradients import uncompiled
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.target import InitialParams, Model, Sites, Target

MAX_REDRAWS = 100
"""Fresh starts that a chain is given before its potential is called bad."""


def given_device(
    model: Model,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    initial_params: InitialParams,
) -> torch.device:
    """Where the model is, so far as it can be seen before it is called; the CPU otherwise."""
    if isinstance(model, GEBM):
        return model.base.latent_prior.like.device
    given = initial_params.values() if isinstance(initial_params, Mapping) else [initial_params]
    bound = (*model.args, *model.keywords.values()) if isinstance(model, partial) else ()
    weights = tuple(model.parameters()) if isinstance(model, nn.Module) else ()
    values = (*given, *args, *kwargs.values(), *bound, *weights)
    tensors = [value for value in values if isinstance(value, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")


def given_sites(target: Target, initial_params: InitialParams, num_chains: int) -> Sites | None:
    """Starts by site, checked, in the model's dtype and on its device."""
    if initial_params is None:
        return None
    if isinstance(initial_params, Mapping):
        given = dict(initial_params)
    elif len(target.shapes) == 1:
        given = {next(iter(target.shapes)): initial_params}
    else:
        raise ValueError(
            f"initial_params: expected a mapping with a tensor for each of {sorted(target.shapes)}"
            f"; got {type(initial_params).__name__}"
        )
    if set(given) != set(target.shapes):
        keys = ", ".join(map(repr, sorted(target.shapes)))
        raise ValueError(
            f"initial_params: expected the {'one key' if len(target.shapes) == 1 else 'keys'} "
            f"{keys}; got {sorted(given)}"
        )
    shapes = target.shapes.items()
    return {name: _check(name, given[name], shape, num_chains, target) for name, shape in shapes}


def _check(
    name: str, value: Tensor, shape: tuple[int, ...] | None, num_chains: int, target: Target
) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"initial_params: expected a tensor; got {type(value).__name__}; convert it with "
            "torch.as_tensor"
        )
    wanted = "D" if shape is None else ", ".join(map(str, shape))
    fits = value.ndim == 2 if shape is None else value.shape[1:] == shape
    if value.ndim == 0 or len(value) != num_chains or not fits:
        letters = "(num_chains, D)" if name == "z" else f"(num_chains, *shape of {name!r})"
        full = ", ".join(filter(None, [str(num_chains), wanted]))
        raise ValueError(
            f"initial_params: expected shape {letters} = ({full}); got {tuple(value.shape)}"
        )
    value = value.detach()
    value = value.clone() if value.is_inference() else value  # or nothing could be differentiated
    if target.like is not None:
        return value.to(target.like)
    if value.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"initial_params: expected float32 or float64; got {value.dtype}; convert it with "
            ".float(), and store less with storage_dtype"
        )
    if not value.numel():
        raise ValueError(f"initial_params: expected a dimension or more; got {tuple(value.shape)}")
    return value


def find_start(target: Target, initial_params: InitialParams, num_chains: int) -> Tensor:
    """Unconstrained starts of finite potential and gradient, (C, D')."""
    given = given_sites(target, initial_params, num_chains)
    if given is None:
        if target.reference is None:
            raise ValueError(
                "initial_params: a potential function needs starts (num_chains, D); got None (if "
                "it is a Pyro model, give sample() its arguments)"
            )
        return draw_start(target, num_chains)
    start = target.from_sites(given)
    bad = bad_rows(target.potential_fn, start)
    if bad.any():
        raise ValueError(
            "initial_params: the potential or its gradient is not finite at chain "
            f"{int(bad.nonzero()[0])} ({int(bad.sum())} in all); start where the model has mass"
        )
    return start


def draw_start(target: Target, num_chains: int) -> Tensor:
    """Draws from the reference where potential and gradient are finite, (C, D')."""
    assert target.reference is not None
    start, bad = redrawn(target.potential_fn, target.reference, num_chains)
    if not bad.any():
        return start
    raise ValueError(
        f"model: no start of finite potential in {MAX_REDRAWS} draws from the prior for "
        f"{int(bad.sum())} of {num_chains} chains; check the energy (or the likelihood) on draws "
        "from it"
    )


def redrawn(potential_fn: PotentialFn, reference: Reference, count: int) -> tuple[Tensor, Tensor]:
    """Draws (count, D'), bad ones drawn again for a while, and which still are, (count,) bool."""
    start = reference.sample(count)
    for _ in range(MAX_REDRAWS):
        bad = bad_rows(potential_fn, start)
        if not bad.any():
            break
        start = torch.where(bad[:, None], reference.sample(count), start)
    return start, bad


def bad_rows(potential_fn: PotentialFn, start: Tensor) -> Tensor:
    """Chains whose position, potential or gradient is not finite, (C,) bool."""
    state = evaluate(uncompiled(potential_fn), start)
    energy = state.potential_energy
    if energy.shape != (len(start),):
        raise ValueError(
            f"model: expected a potential of shape ({len(start)},) for positions "
            f"{tuple(start.shape)}; got {tuple(energy.shape)}"
        )
    if not state.z_grad.any() and (energy != energy[:1]).any():
        warnings.warn(
            "the potential's gradient is zero at all starts, its values differ: chains cannot see "
            "where to go; leave out torch.no_grad() and detach() in what it computes",
            UserWarning,
            stacklevel=2,
        )
    return ~torch.isfinite(energy + state.z_grad.sum(-1) + start.sum(-1))
