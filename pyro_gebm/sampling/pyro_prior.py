"""Draws of a Pyro model's latent sites, many at a time where that can be done."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.overrides import TorchFunctionMode

from pyro_gebm.sampling.push import CHUNK
from pyro_gebm.sampling.pyro_density import PyroDensity, flatten
from pyro_gebm.sampling.pyro_lenient import validation
from pyro_gebm.sampling.pyro_trace import run_model, unmasked
from pyro_gebm.sampling.target import Sites

IN_PLACE_NOISE = {
    Tensor.normal_,
    Tensor.exponential_,
    Tensor.uniform_,
    Tensor.cauchy_,
    Tensor.log_normal_,
}


def prior_sampler(density: PyroDensity, draws: Tensor, batched: bool) -> Callable[[int], Tensor]:
    """n -> independent forward draws in unconstrained coordinates, (n, D').

    Sites that depend on no other are drawn at once from their distributions; if there are
    others, the model runs under ``vmap`` with those held. Where torch cannot do either, the
    model runs n times.

    Args:
        density: the model of one chain.
        draws: two forward draws, (2, D').
        batched: ``False`` always runs the model n times.
    """

    def one_by_one(n: int) -> Tensor:
        return torch.stack([density.draw() for _ in range(n)])

    together = _together(density, draws) if batched else one_by_one
    chosen = together if batched and _is_sound(together, draws) else one_by_one

    def sample(n: int) -> Tensor:
        with torch.no_grad(), warnings.catch_warnings():
            # torch tells users of its own slow paths, about which they can do nothing.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return chosen(n)

    return sample


def _together(density: PyroDensity, draws: Tensor) -> Callable[[int], Tensor]:
    laws = _free_standing_laws(density, draws)
    whole = len(laws) == len(density.sites)

    def complete(row: Tensor, values: Sites) -> Tensor:
        with _RowNoise(row):
            return density.free(run_model(density.program, values))

    def together(n: int) -> Tensor:
        values = {name: law.sample(torch.Size([n])) for name, law in laws.items()}
        if whole:
            return torch.func.vmap(lambda row: flatten(density.sites, row))(values)
        over_rows = torch.func.vmap(complete, randomness="different", chunk_size=CHUNK)
        u: Tensor = over_rows(draws.new_zeros(n), values)
        return u

    return together


def _free_standing_laws(density: PyroDensity, draws: Tensor) -> dict[str, Any]:
    """The distributions of those latent sites that depend on no other, by name."""
    names = _free_standing(density, draws)
    with torch.no_grad(), validation(False):
        nodes = run_model(density.program, density.constrain(draws[0]))
        return {name: unmasked(nodes[name]["fn"]) for name in names}


def _free_standing(density: PyroDensity, draws: Tensor) -> list[str]:
    """Those latent sites that depend on no other; none where ``vmap`` cannot tell.

    With every site held at values that ``vmap`` batches, the density at one fixed value is
    batched where any operation took another site to it. A gradient would miss comparisons,
    ``round`` and ``detach``; densities at two points, what happens to be equal at both.
    """
    fixed, found = density.constrain(draws[0]), list[str]()

    def look(u: Tensor) -> Tensor:
        nodes = run_model(density.program, density.constrain(u))
        laws = {name: unmasked(nodes[name]["fn"]) for name in fixed}
        # Extended at once: a site that fails leaves none.
        found.extend([x for x in fixed if not is_batchedtensor(laws[x].log_prob(fixed[x]))])
        return u

    try:
        with torch.no_grad(), validation(False):
            torch.func.vmap(look)(draws)
    except (ValueError, RuntimeError, NotImplementedError):
        return []
    return found


def _is_sound(together: Callable[[int], Tensor], draws: Tensor) -> bool:
    """Whether torch can batch the draws, and does not repeat some for every row."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            u = together(2)
    except (ValueError, RuntimeError, NotImplementedError):
        return False
    return u.shape == draws.shape and not bool((u[0] == u[1]).any())


class _RowNoise(TorchFunctionMode):
    """Noise that is written in place gets its own numbers in every row of a ``vmap``.

    ``vmap`` refuses ``torch.empty(3).normal_()``, as most distributions draw, since the
    tensor is the same for every row.

    Args:
        row: zero, a scalar of each row.
    """

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row = row

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in IN_PLACE_NOISE:
            args = (torch.zeros_like(args[0]) + self.row.to(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))
