"""The running average of the generator's weights, and the best energy of a refit."""

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_gebm.model import GEBM

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


@final
class Average:
    """θ̄ ← d θ̄ + (1 - d) θ of a generator's parameters and buffers; whole numbers are copied."""

    def __init__(self, generator: nn.Module, decay: float) -> None:
        mean = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

        def average(old: Tensors, new: Tensors, count: Tensor | int) -> None:
            if old[0].is_floating_point() or old[0].is_complex():
                mean(old, new, count)
            else:  # an index between two others is none
                torch._foreach_copy_(old, new)

        self._model = AveragedModel(generator, multi_avg_fn=average, use_buffers=True)

    def update(self, generator: nn.Module) -> None:
        """Take a step of the generator in; the first is taken as it is."""
        self._model.update_parameters(generator)

    def give(self, generator: nn.Module) -> None:
        """Put the average into a generator."""
        generator.load_state_dict(self._model.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Weights and their count, by reference."""
        return dict(self._model.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self._model.load_state_dict(dict(state))


@final
class Best:
    """The energy and c with the best held-out bound so far, and when to stop waiting.

    Args:
        patience: looks without a better one that are too many; 0 for no end and no return.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._value, self._waited = -math.inf, 0
        self._state: dict[str, Any] | None = None

    @property
    def exhausted(self) -> bool:
        """It has waited too long."""
        return self._patience > 0 and self._waited >= self._patience

    def see(self, value: float, gebm: GEBM) -> None:
        """Take note of a held-out bound."""
        if not self._patience:
            return
        if value > self._value:
            self._value, self._waited = value, 0
            self._state = copy.deepcopy(gebm.state_dict())
        else:
            self._waited += 1

    def give(self, gebm: GEBM) -> None:
        """Put the best into the model."""
        if self._state is not None:
            gebm.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """All of it, by reference."""
        return {"value": self._value, "waited": self._waited, "state": self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self._value, self._waited, self._state = state["value"], state["waited"], state["state"]
