"""What Pyro's kernels know of a transition and then forget, noted while it happens."""

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.mcmc.rwkernel import RandomWalkKernel
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.kernel import Info

SITE = "z"
"""The one site that Pyro's kernels see: all unconstrained coordinates in a vector."""

MAX_EVALUATIONS = 100_000
"""Evaluations of a single transition from which it counts as endless."""

STEP_BOUNDS = (1e-10, 1e10)
"""Where Pyro's search for a step size gives up."""


class Leaf(NamedTuple):
    """A position that was evaluated, and what was found there."""

    z: Tensor
    """(D,)."""
    potential_energy: Tensor
    """U(z), ()."""
    hamiltonian: Tensor | None = None
    """H = U + kinetic energy, (), where the kernel asked for the latter."""


class Recorder(Messenger):  # type: ignore[misc]  # Pyro is untyped
    """Stands between one kernel of Pyro and a potential, and notes every transition.

    Pyro drops energies, tree depths and numbers of evaluations. Three places of one kernel
    object show them, and none changes a draw: the potential it calls, the kinetic energies it
    asks itself for, and the sample sites it names (``rand_t=3_treedepth=2`` ends a doubling).

    Args:
        potential_fn: U, (C, D) -> (C,).
        start: where the chain starts, (D,).

    Raises:
        ValueError: the potential is not finite at ``start``.
    """

    def __init__(self, potential_fn: PotentialFn, start: Tensor) -> None:
        super().__init__()
        self.potential_fn = potential_fn
        self.evaluations = 0
        self.leaves: list[Leaf] = []
        self.energy: Tensor | None = None
        self.doublings = 0
        self.current = Leaf(start, self._at(start))
        if not torch.isfinite(self.current.potential_energy):
            raise ValueError(
                "initial_params: expected a start of finite potential; got "
                f"{self.current.potential_energy.item()}; start where the model has mass"
            )

    def potential(self, params: dict[str, Tensor]) -> Tensor:
        """What Pyro calls: {site: (D,)} -> scalar."""
        if len(self.leaves) >= MAX_EVALUATIONS:
            raise ValueError(
                f"potential: {MAX_EVALUATIONS:,} evaluations in one transition of Pyro's kernel, "
                "which does not seem to end; look for NaN, or rescale the latents"
            )
        self.evaluations += 1
        z = params[SITE]
        # Noted first: Pyro takes some exceptions of a potential for NaN and goes on.
        self.leaves.append(Leaf(z, z.new_tensor(torch.nan)))
        energy = self.potential_fn(z[None])[0]
        self.leaves[-1] = Leaf(z, energy.detach())
        return energy

    def model(self) -> None:
        """A Pyro model of density exp(-U), for kernels that take no potential."""
        like = self.current.z
        flat = dist.Normal(torch.zeros_like(like), 1.0).to_event(1).mask(False)
        pyro.factor("minus_potential", -self.potential({SITE: pyro.sample(SITE, flat)}))

    def attach(self, kernel: pyro.infer.HMC) -> None:
        """Hear the kinetic energies of this one object."""
        kinetic_energy = kernel._kinetic_energy

        def heard(momentum: Any) -> Tensor:
            kinetic: Tensor = kinetic_energy(momentum)
            # Pyro asks once at the start of a trajectory, then at each of its ends.
            if self.energy is None:
                self.energy = kinetic + self.current.potential_energy
            else:
                leaf = self.leaves[-1]
                self.leaves[-1] = leaf._replace(hamiltonian=kinetic + leaf.potential_energy)
            return kinetic

        kernel._kinetic_energy = heard

    def step(self, kernel: Any, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Info]:
        """One transition of ``kernel``, and what it tells; divergences come with the run."""
        self._begin()
        _check_step_size(kernel)
        with self:
            params = kernel.sample(params)
        drawn = self._find(params[SITE])
        info = self._info(kernel, drawn)
        self.current = drawn._replace(hamiltonian=None)  # that of the next has a new momentum
        return params, info

    def _begin(self) -> None:
        self.leaves = []
        self.energy = None
        self.doublings = 0

    def _pyro_post_sample(self, message: Any) -> None:
        if message["name"].startswith("rand_t=") and "_treedepth=" in message["name"]:
            self.doublings += 1

    def _at(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self.potential_fn(z[None])[0]

    def _find(self, z: Tensor) -> Leaf:
        # The tensor that a kernel returns is the one it evaluated, unless it copies.
        seen = (leaf for leaf in (self.current, *self.leaves) if leaf.z is z)
        return next(seen, None) or Leaf(z, self._at(z))

    def _info(self, kernel: Any, drawn: Leaf) -> Info:
        steps = torch.tensor(len(self.leaves), device=drawn.z.device)
        no = torch.zeros_like(steps, dtype=torch.bool)
        ends = [leaf.hamiltonian for leaf in self.leaves if leaf.hamiltonian is not None]
        if self.energy is None or not ends:
            return Info(self._accepted(kernel, drawn), no, steps)
        errors = _as_pyro_counts(torch.stack(ends) - self.energy)
        info = Info(_acceptance(errors).mean(), no, steps, self.energy, errors[-1])
        if not isinstance(kernel, pyro.infer.NUTS):
            return info
        depth = torch.full_like(steps, self.doublings)
        end = self.energy if drawn.hamiltonian is None else drawn.hamiltonian
        return info._replace(
            energy_error=end - self.energy,
            max_energy_error=errors[errors.abs().argmax()],
            tree_depth=depth,
            reached_max_treedepth=depth >= kernel._max_tree_depth,
        )

    def _accepted(self, kernel: Any, drawn: Leaf) -> Tensor:
        """Acceptance without momenta: a random walk's probability; otherwise, whether it moved."""
        if isinstance(kernel, RandomWalkKernel):
            change = self.leaves[-1].potential_energy - self.current.potential_energy
            return _acceptance(_as_pyro_counts(change))
        return (self.current.z != drawn.z).any().to(drawn.z.dtype)


def _as_pyro_counts(errors: Tensor) -> Tensor:
    """Energy errors with NaN as infinity, which is never accepted."""
    return torch.where(torch.isnan(errors), torch.inf, errors)


def _acceptance(errors: Tensor) -> Tensor:
    return (-errors).exp().clamp(max=1.0)


def _check_step_size(kernel: Any) -> None:
    """Refuse a step size with which Pyro's kernel would run for ages."""
    if not isinstance(kernel, pyro.infer.HMC):
        return
    low, high = STEP_BOUNDS
    if kernel._t == 0 and not low < kernel.step_size < high:
        raise ValueError(
            f"potential: Pyro's search for a step size ended at {kernel.step_size:.0e}; the "
            "potential is flat, or not finite, around the start; change the start or the scale"
        )
    is_tree = isinstance(kernel, pyro.infer.NUTS)
    if not is_tree and kernel.step_size * MAX_EVALUATIONS < kernel.trajectory_length:
        raise ValueError(
            f"potential: Pyro's step size fell to {kernel.step_size:.0e}, more than "
            f"{MAX_EVALUATIONS:,} steps a trajectory; look for NaN or walls in the potential, or "
            "fix the step with adapt_step_size=False"
        )
