"""Building the target of what the user gave, and the random streams of a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pyro_gebm._checks import check_seed
from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.gradients import CapturedPotential, CompiledPotential
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.mcmc.random import seed_global
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.pyro_model import is_pyro_model, pyro_target
from pyro_gebm.sampling.recorded import Recorded
from pyro_gebm.sampling.target import Model, Target, gebm_target, potential_target


def build_target(
    model: Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    beta: float = 1.0,
    batched: bool = True,
    recorded: bool = True,
) -> Target:
    """The target of a GEBM, of a Pyro model called with ``args`` and ``kwargs``, or of a potential.

    Args:
        model: what is sampled.
        args: of a Pyro model.
        kwargs: of a Pyro model.
        beta: inverse temperature; multiplies everything but the priors of latent sites, and a
            potential as a whole.
        batched: evaluate all chains at once; a Pyro model that cannot be vmapped needs False.
        recorded: of a Pyro model, as in ``pyro_target``.

    Raises:
        ValueError: it is none of the three, or a model that cannot be sampled.
    """
    kwargs = kwargs or {}
    if is_pyro_model(model, args, kwargs):
        return pyro_target(model, args, kwargs, beta=beta, batched=batched, recorded=recorded)
    if isinstance(model, GEBM):
        return gebm_target(model, beta)
    if not callable(model):
        raise ValueError(
            "model: expected a GEBM, a Pyro model or a potential function; got "
            f"{type(model).__name__}"
        )
    return potential_target(model, beta)


def compiled(target: Target, device: torch.device) -> Target:
    """The target with its potential compiled; on a CUDA device that is recorded, too.

    Raises:
        ValueError: it is that of a Pyro model.
    """
    potential_fn = target.potential_fn
    if isinstance(potential_fn, Recorded):
        raise ValueError(
            "compile: expected False with a Pyro model, whose potential is written down after its "
            "first calls in any case; got True; leave it out"
        )
    if isinstance(potential_fn, CapturedPotential):
        potential_fn = potential_fn.potential_fn
    if not isinstance(potential_fn, CompiledPotential):
        potential_fn = CompiledPotential(potential_fn)
    if device.type == "cuda":
        potential_fn = CapturedPotential(potential_fn)
    return target._replace(potential_fn=potential_fn)


def in_chunks(target: Target, chunk_size: int | None) -> Target:
    """The target with its potential evaluated ``chunk_size`` chains at a time, to save memory."""
    if chunk_size is None:
        return target
    reference = target.reference
    if reference is not None:
        reference = reference._replace(potential_fn=_chunked(reference.potential_fn, chunk_size))
    potential_fn = _chunked(target.potential_fn, chunk_size)
    return target._replace(potential_fn=potential_fn, reference=reference)


def _chunked(inner: PotentialFn, size: int) -> PotentialFn:
    class Chunked(torch.autograd.Function):
        """Value and gradient chunk by chunk, so that no graph of all chains is ever held."""

        @staticmethod
        def forward(ctx: Any, u: Tensor) -> Tensor:
            parts = [evaluate(inner, part) for part in torch.split(u, size)]
            ctx.save_for_backward(torch.cat([part.z_grad for part in parts]))
            return torch.cat([part.potential_energy for part in parts])

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            z_grad: Tensor = ctx.saved_tensors[0]
            return grad[:, None] * z_grad

    def potential_fn(u: Tensor) -> Tensor:
        if u.requires_grad:
            value: Tensor = Chunked.apply(u)
            return value
        return torch.cat([inner(part) for part in torch.split(u, size)])

    return potential_fn


@contextmanager
def random_state(seed: int | None, device: torch.device) -> Iterator[int]:
    """The seed used; the global generators are seeded within and restored after.

    Pyro's kernels and the latent prior draw from the global generator. Within, gradients can be
    computed, also where the caller is in ``torch.inference_mode``, which would make them zero.

    Raises:
        ValueError: the seed is none that torch can take.
    """
    used = int(torch.randint(2**31, ())) if seed is None else check_seed(seed)
    outside = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), outside:
        seed_global(used, device)
        yield used
