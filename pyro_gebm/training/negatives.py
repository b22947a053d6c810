"""Where the samples that data are held against come from: the base, latent chains, or a buffer."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from pyro_gebm.model import GEBM
from pyro_gebm.training.latents import LatentChains
from pyro_gebm.training.parts import ChainsConfig, ReplayConfig
from pyro_gebm.training.processes import Processes
from pyro_gebm.training.replay import ReplayBuffer


class PriorLatents:
    """Draws from η."""

    def __init__(self, gebm: GEBM, procs: Processes) -> None:
        self._prior, self._procs = gebm.base.latent_prior, procs

    def draw(self, num: int) -> Tensor:
        """Own share of what all processes draw alike."""
        return self._procs.own(self._prior.sample(num * self._procs.world_size))


@final
class ChainLatents:
    """Latents after a few transitions at ν.

    Equally seeded processes each run the chains of all: what one of them goes on from, any does.
    """

    def __init__(self, gebm: GEBM, config: ChainsConfig, procs: Processes) -> None:
        self._procs = procs
        self.gradients = 0
        self._chains = LatentChains(
            gebm,
            steps=config.steps,
            persistent=config.persistent,
            target_accept_prob=config.target_accept_prob,
        )

    def draw(self, num: int) -> Tensor:
        """Own share of the chains' positions."""
        total = num * self._procs.world_size
        draws = self._chains.draw(total)
        self.gradients += total * draws.num_gradients
        return self._procs.own(draws.z)

    def state_dict(self) -> dict[str, Any]:
        """Step size, positions, count."""
        return {"chains": self._chains.state_dict(), "gradients": self.gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self._chains.load_state_dict(state["chains"])
        self.gradients = state["gradients"]


@final
class DataChains:
    """Langevin chains in data space, as many as ``config.size``; made at the first use.

    Processes each run the chains of all, as those of ``ChainLatents``.
    """

    def __init__(self, gebm: GEBM, config: ReplayConfig, procs: Processes) -> None:
        self._gebm, self._config, self._procs = gebm, config, procs
        self._buffer: ReplayBuffer | None = None
        self.gradients = 0
        self.lost = 0

    def draw(self, like: Tensor) -> Tensor:
        """As many positions (B, ...) as there are data ``like``."""
        config, shape = self._config, like.shape[1:]

        def fresh(num: int) -> Tensor:
            return torch.randn(num, *shape, dtype=like.dtype, device=like.device)

        if self._buffer is None:
            self._buffer = ReplayBuffer(fresh(config.size))
        with self._gebm.frozen():  # a BatchNorm in train mode would couple the chains
            drawn = self._buffer.draw(
                self._gebm.evaluate_energy,
                len(like) * self._procs.world_size,
                steps=config.steps,
                step_size=config.step_size,
                noise=config.noise,
                restart_probability=config.restart_probability,
                fresh=fresh,
            )
        self.gradients += drawn.grad_evaluations
        self.lost += drawn.num_lost
        return self._procs.own(drawn.x)

    def state_dict(self) -> dict[str, Any]:
        """Positions and counts."""
        positions = None if self._buffer is None else self._buffer.positions
        return {"positions": positions, "gradients": self.gradients, "lost": self.lost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self.gradients, self.lost = state["gradients"], state["lost"]
        positions = state["positions"]
        like = self._gebm.log_partition  # a checkpoint may have been loaded to another device
        self._buffer = None if positions is None else ReplayBuffer(positions.to(like))
