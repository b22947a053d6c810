"""The networks as steps run them: one forward for one backward, in the precision asked for."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

from pyro_gebm._compiler import Compiler
from pyro_gebm.model import GEBM
from pyro_gebm.objectives import slope_penalty
from pyro_gebm.training.config import TrainConfig


@final
class EnergyPass(nn.Module):
    """Energies of data and samples, and the penalty, whose gradients belong to the energy.

    c is a parameter of it where it is learned, so that processes average its gradient too.
    """

    def __init__(
        self, gebm: GEBM, config: TrainConfig, compiler: Compiler, *, learns_constant: bool
    ) -> None:
        super().__init__()
        self.energy = gebm.energy
        self.log_partition = gebm.log_partition if learns_constant else None
        self._evaluate = gebm.evaluate_energy
        self._fast = compiler.compiled(gebm.evaluate_energy)
        self._cast = Cast(gebm, config.precision)

    def forward(
        self, x: Tensor, fake: Tensor, points: Tensor | None, center: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """E(x) (B,), E(fake) (B',) and the penalty at ``points``, NaN without any."""
        energies = self.energies(torch.cat([x, fake]))
        if points is None:
            penalty = energies.new_full((), torch.nan)
        else:  # second derivatives: not under autocast, and not of a compiled network
            penalty = slope_penalty(self._evaluate, points, center=center)
        return energies[: len(x)], energies[len(x) :], penalty

    def energies(self, x: Tensor) -> Tensor:
        """E(x), (B, ...) -> (B,), where no process waits for another's gradient."""
        with self._cast.context():
            return self._cast.back(self._fast(x))


@final
class BasePass(nn.Module):
    """Samples G(z), whose gradients belong to the generator."""

    def __init__(self, gebm: GEBM, config: TrainConfig, compiler: Compiler) -> None:
        super().__init__()
        self.generator = gebm.base.generator
        self._fast = compiler.compiled(self.generator)
        self._cast = Cast(gebm, config.precision)

    def forward(self, z: Tensor) -> Tensor:
        """G(z), (B, D) -> (B, ...)."""
        with self._cast.context():
            return self._cast.back(self._fast(z))


@final
class Cast:
    """Autocast to a lower precision and back to that of the parameters."""

    def __init__(self, gebm: GEBM, precision: str) -> None:
        like = gebm.log_partition
        self._device, self._dtype = like.device.type, like.dtype
        self._low: torch.dtype | None = (
            None if precision == "float32" else getattr(torch, precision)
        )

    def context(self) -> AbstractContextManager[Any]:
        """Lower precision within."""
        if self._low is None:
            return nullcontext()
        return torch.autocast(self._device, dtype=self._low)

    def back(self, value: Tensor) -> Tensor:
        """The parameters' precision."""
        return value.to(self._dtype)
