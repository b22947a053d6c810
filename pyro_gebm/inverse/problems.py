"""Many problems of one Pyro model as one target: each row of a batch sees its own data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc import Info, Kernel, KernelState, Reference, Tuning
from pyro_gebm.mcmc.kernel import Around, shared_settings
from pyro_gebm.mcmc.random import Generator
from pyro_gebm.sampling.pyro_density import PyroDensity
from pyro_gebm.sampling.pyro_model import pyro_target
from pyro_gebm.sampling.pyro_trace import deterministic_names, find_sites, run_model
from pyro_gebm.sampling.recorded import Recorded
from pyro_gebm.sampling.start import MAX_REDRAWS, bad_rows, redrawn
from pyro_gebm.sampling.target import Sites, Target

Model = Callable[..., Any]


class Problems(NamedTuple):
    """P problems; rows of a batch are those of problem 0, then those of problem 1, and so on."""

    potential_fn: PotentialFn
    """U, (P·k, D') -> (P·k,): k rows of each problem, side by side."""
    reference: Reference
    """The prior of the latent sites, of the first problem: it may be proposed from by all."""
    first: Target
    """The first problem: its sites, and the way to them and back, which are those of all."""
    push: Callable[[Tensor], Sites] | None
    """u (P, k, D') -> deterministic sites, (P, k, *shape), on the CPU."""
    num_problems: int
    """P."""


def many_problems(
    model: Model, observations: Sequence[Tensor], chunk_size: int | None = None
) -> Problems:
    """The posteriors of a Pyro model for each row of its arguments.

    Args:
        model: of one problem.
        observations: its arguments, (P, ...) each.
        chunk_size: how many problems are evaluated at a time; ``None``: all.

    Raises:
        ValueError: there are no observations, they differ in P, or the model cannot be sampled.
    """
    num = check_observations(observations)
    one = [data[0] for data in observations]
    first = pyro_target(model, tuple(one), {})
    with torch.no_grad():
        nodes = run_model(partial(model, *one))
    sites, pushed = tuple(find_sites(nodes)), tuple(deterministic_names(nodes))
    data_dims = (None,) * len(observations)

    def density(data: tuple[Tensor, ...]) -> PyroDensity:
        return PyroDensity(partial(model, *data), sites, pushed)

    def energy(u: Tensor, *data: Tensor) -> Tensor:
        return density(data).energy(u, 1.0)

    def push_one(u: Tensor, *data: Tensor) -> Sites:
        return density(data).push(u)

    energies = torch.func.vmap(
        torch.func.vmap(energy, in_dims=(0, *data_dims)), chunk_size=chunk_size
    )
    push_all = torch.func.vmap(torch.func.vmap(push_one, in_dims=(0, *data_dims)), chunk_size=64)

    def potential_fn(u: Tensor) -> Tensor:
        if len(u) % num:
            # A kernel that takes some rows apart would give them another problem's data.
            raise ValueError(f"u: expected rows of all {num} problems; got {tuple(u.shape)}")
        value: Tensor = energies(u.reshape(num, -1, u.shape[-1]), *observations)
        return value.reshape(-1)

    def push(u: Tensor) -> Sites:
        with torch.no_grad():
            return {name: value.cpu() for name, value in push_all(u, *observations).items()}

    assert first.reference is not None
    return Problems(Recorded(potential_fn), first.reference, first, push if pushed else None, num)


def by_level(problems: Problems, num_chains: int) -> PotentialFn:
    """U of replicas, (K·P·C, D') -> (K·P·C,): those of a level side by side, all problems in each.

    Args:
        problems: P of them.
        num_chains: C.
    """

    def potential_fn(u: Tensor) -> Tensor:
        levels = u.view(-1, problems.num_problems, num_chains, u.shape[-1])
        rows = levels.transpose(0, 1).reshape(u.shape)
        energy = problems.potential_fn(rows).view(problems.num_problems, -1, num_chains)
        return energy.transpose(0, 1).reshape(-1)

    return potential_fn


def check_observations(observations: Sequence[Tensor]) -> int:
    """P, or a ``ValueError``."""
    if not observations or not all(isinstance(data, Tensor) for data in observations):
        got = ", ".join(type(data).__name__ for data in observations) or "none"
        raise ValueError(
            f"observations: expected one or more tensors (P, ...), a row per problem; got {got}; "
            "bind what all problems share with functools.partial"
        )
    counts = [len(data) if data.ndim else 0 for data in observations]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            f"observations: expected as many rows of each, one per problem; got {counts}; bind "
            "what all problems share with functools.partial"
        )
    return counts[0]


def start_all(problems: Problems, num_chains: int) -> Tensor:
    """Draws from the prior where each problem's potential and gradient are finite, (P·C, D').

    Raises:
        ValueError: a problem has none in 100 draws a chain.
    """
    rows = problems.num_problems * num_chains
    start, bad = redrawn(problems.potential_fn, problems.reference, rows)
    if not bad.any():
        return start
    hopeless = bad.view(-1, num_chains).any(1).nonzero()[:, 0].tolist()
    named = ", ".join(map(str, hopeless[:10])) + (", ..." if len(hopeless) > 10 else "")
    raise ValueError(
        f"model: no start of finite potential in {MAX_REDRAWS} draws from the prior for "
        f"{len(hopeless)} of {problems.num_problems} problems ({named}): their observations have "
        "likelihood zero there; check their range, and the likelihood's support"
    )


def given_starts(
    problems: Problems, initial_params: Mapping[str, Tensor], num_chains: int
) -> Tensor:
    """Starts (P, C, *shape) by site -> (P·C, D').

    Raises:
        ValueError: of another shape, or without finite potential.
    """
    wanted = (problems.num_problems, num_chains)
    for name, value in initial_params.items():
        if value.shape[:2] != wanted:
            raise ValueError(
                f"initial_params: site {name!r}: expected shape (problems, chains, ...) = "
                f"({wanted[0]}, {wanted[1]}, ...); got {tuple(value.shape)}"
            )
    flat = {name: value.flatten(0, 1) for name, value in initial_params.items()}
    start = problems.first.from_sites(flat)
    if (bad := bad_rows(problems.potential_fn, start)).any():
        raise ValueError(
            "initial_params: the potential or its gradient is not finite at problem "
            f"{int(bad.nonzero()[0]) // num_chains} ({int(bad.sum())} chains in all); start where "
            "the posterior has mass"
        )
    return start


@final
@dataclass(frozen=True, kw_only=True)
class ByProblem(Around):
    """A kernel whose warm-up tunes step size and masses for each problem from its own chains.

    Args:
        local: what moves the chains, which may be of several levels.
        num_problems: P; the chains of a problem are side by side within a level.
    """

    num_problems: int

    @property
    def name(self) -> str:
        """That of the local kernel."""
        return self.local.name

    @property
    def num_levels(self) -> int:
        """P, or K P with K levels: what adaptation takes for groups of chains."""
        return self.num_problems * self.local.num_levels

    def init(self, potential_fn: PotentialFn, z: Tensor) -> KernelState:
        """That of the local kernel."""
        return self.local.init(potential_fn, z)

    def level_potential(self, potential_fn: PotentialFn) -> PotentialFn:
        """That of the local kernel."""
        return self.local.level_potential(potential_fn)

    def step(
        self,
        potential_fn: PotentialFn,
        state: KernelState,
        tuning: Tuning,
        *,
        generator: Generator,
    ) -> tuple[KernelState, Info]:
        """A transition of the local kernel."""
        return self.local.step(potential_fn, state, tuning, generator=generator)


def tuned_by_problem(local: Kernel, num_problems: int) -> ByProblem:
    """``local``, with its settings of adaptation."""
    return ByProblem(local=local, num_problems=num_problems, **shared_settings(local))
