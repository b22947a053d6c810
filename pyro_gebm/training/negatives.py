"""Where the samples that data are held against come from: the base, latent chains, or a buffer."""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_gebm.model import GEBM
from pyro_gebm.training.config import TrainConfig
from pyro_gebm.training.latents import LatentChains
from pyro_gebm.training.parts import ChainsConfig, ReplayConfig
from pyro_gebm.training.processes import Processes
from pyro_gebm.training.replay import ReplayBuffer

TOGETHER = 2**16
"""Numbers in the base's samples up to which several steps' are made together."""


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


@final
class Negatives:
    """Latents for steps of energy and base, and the samples that energy steps hold data against.

    Args:
        gebm: the model.
        config: settings.
        procs: the processes that share each step.
        generate: latents (B, D) -> samples (B, ...), in the precision of the training.
    """

    def __init__(
        self,
        gebm: GEBM,
        config: TrainConfig,
        procs: Processes,
        generate: Callable[[Tensor], Tensor],
    ) -> None:
        self._config, self._procs, self._generate = config, procs, generate
        uses = config.chains.use_for if config.chains is not None else "none"
        self.chained = {"base", "energy"} if uses == "both" else {uses}
        """The steps whose latents come from chains at ν."""
        parts = gebm.base.generator.modules()
        self._couples = any(isinstance(part, _BatchNorm) for part in parts)
        self.prior = PriorLatents(gebm, procs)
        self._chains = None if config.chains is None else ChainLatents(gebm, config.chains, procs)
        self._data_chains = DataChains(gebm, config.replay, procs)

    @property
    def gradients(self) -> int:
        """Gradients of the energy at single data that chains have taken so far."""
        chains = self._chains.gradients if self._chains is not None else 0
        return chains + self._data_chains.gradients

    def latents(self, step: str, num: int) -> Tensor:
        """Latents (num, D) for a step of "energy" or "base"."""
        if self._chains is not None and step in self.chained:
            return self._chains.draw(num)
        return self.prior.draw(num)

    def at_once(self, x: Tensor) -> int:
        """Energy steps on batches like ``x`` whose samples are worth making together.

        Below some size a network's call costs more than its work, and while the base stands
        still its samples may as well come from one. Not so where chains follow the energy, or
        where a BatchNorm makes one sample depend on the others.
        """
        if self._config.objective == "contrastive" or "energy" in self.chained or self._couples:
            return 1
        # Of all processes, and whatever the parts: neither decides what is drawn when.
        size = max(x.numel(), 1) * self._config.latents_per_datum * self._procs.world_size
        return max(1, TOGETHER // size)

    @torch.no_grad()
    def draw(self, xs: list[Tensor]) -> list[Tensor]:
        """For each batch (B, ...) what it is held against, (B ``latents_per_datum``, ...)."""
        if self._config.objective == "contrastive":
            return [self._data_chains.draw(x) for x in xs]
        each = self._config.latents_per_datum
        z = [self.latents("energy", len(x) * each) for x in xs]
        if self._config.accumulate > 1:
            return [self._by_parts(own, len(x)) for own, x in zip(z, xs, strict=True)]
        return list(torch.split(self._generate(torch.cat(z)), [len(own) for own in z]))

    def _by_parts(self, z: Tensor, num_data: int) -> Tensor:
        parts = z.tensor_split(min(self._config.accumulate, num_data))
        return torch.cat([self._generate(part) for part in parts])

    def state_dict(self) -> dict[str, Any]:
        """Chains, by reference."""
        return {
            "chains": None if self._chains is None else self._chains.state_dict(),
            "data_chains": self._data_chains.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        if self._chains is not None:
            self._chains.load_state_dict(state["chains"])
        self._data_chains.load_state_dict(state["data_chains"])
