"""Short latent chains at the model's own law ν, in the place of draws from η in training."""

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_choice, check_count, check_in_range
from pyro_gebm.mcmc import MALA, KernelState, Tuning
from pyro_gebm.mcmc.random import draw_seed
from pyro_gebm.model import GEBM

FIRST_STEP_SIZE = 1.0
"""ε before any adaptation; a standard normal of 10 to 100 dimensions takes about 1."""

GAIN = 0.1
"""Change of log ε per unit of acceptance that call after call comes down to, from 1.

Never less, because ν moves on as the training does. At 0.5 the step size of chains that start
far out in the tails of ν falls into a two-cycle (acceptance 0.96 and 0.25 in turn).
"""


class LatentDraws(NamedTuple):
    """Where the chains are, and what it took."""

    z: Tensor
    """Latents, (num, D), without gradient."""
    accept_prob: Tensor
    """Mean over transitions and chains, a scalar; a diverging proposal counts as 0."""
    num_diverging: Tensor
    """Proposals that were non-finite or off by 1,000 nats, and so not taken, a scalar int64."""
    num_gradients: int
    """Gradients of E∘G that each chain has used."""


@final
class LatentChains:
    """Batched MALA chains at ν(z) ∝ η(z) exp(-E(G(z))), a few transitions before each use.

    The gradient of KALE in the base is E_ν[∇_θ E(G(z))], a plain mean over draws of ν where
    those of η need weights (Arbel, Zhou, Gretton 2021). LOGAN moves the latents likewise, by
    gradient steps without noise (Wu et al. 2019, arXiv 1912.00953). A few transitions from η
    end between η and ν; persistent chains come nearer.

    The transitions of a call share a step size. After call n, log ε goes up by
    max(1/n, ``GAIN``) (mean acceptance - target): Robbins and Monro (1951), with a gain that
    stops falling, since the target of the chains moves as the training goes on.

    Where η has walls the chains move in unconstrained coordinates, and so do the positions of
    ``state_dict``.

    All random numbers follow torch's global generators: their states and ``state_dict`` decide
    everything that follows.

    Args:
        gebm: the model. While chains run its networks are frozen and in eval mode.
        steps: MALA transitions of a call.
        persistent: chains go on from where they were, instead of from η.
        target_accept_prob: mean acceptance that the step size is adapted to.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> chains = LatentChains(gebm, steps=5, persistent=False)
        >>> draws = chains.draw(64)
        >>> draws.z.shape, draws.num_gradients
        (torch.Size([64, 2]), 6)
    """

    def __init__(
        self, gebm: GEBM, *, steps: int, persistent: bool, target_accept_prob: float = 0.6
    ) -> None:
        prior = gebm.base.latent_prior
        self._to_latent, self._from_latent, self._log_det = prior.coordinates()
        self._gebm = gebm
        self._steps = check_count("steps", steps)
        self._persistent = check_choice("persistent", persistent, (False, True))
        self._target = check_in_range("target_accept_prob", target_accept_prob, 0.01, 0.99)
        self._calls = 0
        self._log_step = prior.like.new_tensor(FIRST_STEP_SIZE).log()
        self._positions = self._from_latent(prior.like.new_empty(0, prior.dim))

    @property
    def step_size(self) -> Tensor:
        """ε of the next call, a scalar; γ = ε²/2."""
        return self._log_step.exp()

    def draw(self, num: int) -> LatentDraws:
        """``num`` latents after ``steps`` transitions of as many chains.

        Persistent ones are the first ``num`` that there have been; more start from η. A chain
        at a place where the potential is not finite stays there; a persistent one starts the
        next call from η.

        Raises:
            ValueError: ``num`` is not a whole number >= 1.
        """
        check_count("num", num)
        start, missing = self._positions[:num], num - len(self._positions)
        if missing > 0:
            start = torch.cat([start, self._fresh(missing)])
        with self._gebm.frozen():
            state, draws = self._run(start)
        if self._persistent:
            # Drawn even where no chain needs it: to ask would make the CPU wait for a GPU.
            kept = torch.where(_is_finite(state)[:, None], state.z, self._fresh(num))
            self._positions = torch.cat([kept, self._positions[num:]])
        return draws

    def _fresh(self, num: int) -> Tensor:
        """Draws from η, in unconstrained coordinates."""
        return self._from_latent(self._gebm.base.latent_prior.sample(num))

    def _potential_fn(self, u: Tensor) -> Tensor:
        z = self._to_latent(u)
        return self._gebm.potential_fn(z) - self._log_det(u, z)

    def _run(self, start: Tensor) -> tuple[KernelState, LatentDraws]:
        kernel, potential_fn = MALA(), self._potential_fn
        generator = torch.Generator(start.device)
        generator.manual_seed(draw_seed(torch.default_generator))
        tuning = Tuning(self.step_size.expand(len(start)), torch.ones_like(start[0]))
        state = kernel.init(potential_fn, start)
        # A chain at a bad start never moves, whatever the step size: it has no say in it.
        awake = _is_finite(state)
        accept = torch.zeros_like(state.potential_energy)
        diverging = torch.zeros_like(awake, dtype=torch.int64)
        for _ in range(self._steps):
            state, info = kernel.step(potential_fn, state, tuning, generator=generator)
            accept, diverging = accept + info.accept_prob, diverging + info.diverging
        accept = accept / self._steps
        self._adapt(accept, awake)
        return state, LatentDraws(
            self._to_latent(state.z), accept.mean(), diverging.sum(), self._steps + 1
        )

    def _adapt(self, accept: Tensor, awake: Tensor) -> None:
        # Where no chain is awake the sum is empty: nothing is learned.
        error = torch.where(awake, accept - self._target, 0.0).sum() / awake.sum().clamp(min=1)
        self._calls += 1
        self._log_step = self._log_step + max(1 / self._calls, GAIN) * error

    def state_dict(self) -> dict[str, Any]:
        """Step size and positions; with torch's global random states, all that follows."""
        return {
            "calls": self._calls,
            "log_step": self._log_step,
            "positions": self._positions,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the chains that gave ``state`` stood.

        Raises:
            ValueError: the state is one of latents of another dimension.
        """
        if state["positions"].shape[1:] != self._positions.shape[1:]:
            raise ValueError(
                f"state: expected positions (C, {self._positions.shape[1]}); got "
                f"{tuple(state['positions'].shape)}; load it into a model of the same latents"
            )
        self._calls = state["calls"]
        self._log_step = state["log_step"].to(self._log_step)
        self._positions = state["positions"].to(self._positions)


def _is_finite(state: KernelState) -> Tensor:
    """Chains whose potential and gradient are finite, (C,) bool."""
    return state.potential_energy.isfinite() & state.z_grad.isfinite().all(-1)
