"""An optimiser with its schedule: gradients of its own parameters, one look at them, one step."""

import copy
import math
from collections.abc import Callable
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

ScheduleFn: TypeAlias = Callable[[torch.optim.Optimizer], LRScheduler]

SMALLEST_SCALE = 2.0**-10
"""Scale of a float16 loss below which its gradients are not just out of range."""


class DivergenceError(ArithmeticError):
    """A step that was not taken, and what was seen."""


@final
class Descent:
    """Adam on groups of parameters; other parameters' gradients are left alone.

    Args:
        groups: parameters and rates, as torch's optimisers take them.
        momentum: β₁.
        schedule: makes the schedule of the rates.
        scaled: scale the loss, whose float16 gradients would underflow.
    """

    def __init__(
        self, groups: list[dict[str, Any]], momentum: float, schedule: ScheduleFn, *, scaled: bool
    ) -> None:
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        device = self.parameters[0].device.type if self.parameters else "cpu"
        # Fused: a fifth off the step time of small networks; not every device has it.
        fused = device in {"cpu", "cuda"}
        self._adam = torch.optim.Adam(groups, betas=(momentum, 0.99), fused=fused)
        self._schedule = schedule(self._adam)
        self._factor = 1.0  # of the schedule's rates
        self._scaler = torch.amp.GradScaler(device, enabled=scaled)

    def backward(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """Add the loss's gradient to that of the own parameters."""
        scaled = self._scaler.scale(loss)
        own = [parameter for parameter in self.parameters if parameter.requires_grad]
        scaled.backward(inputs=own, retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def step(self, what: str, loss: Tensor, gap: Tensor | None, max_gap: float) -> float:
        """Step down the gradient, unless something in it is not finite; then forget it.

        Args:
            what: whose step, for the message.
            loss: its value.
            gap: the energy gap, nats; ``None`` where there is none.
            max_gap: what it must not exceed.

        Returns:
            The gradient's norm.

        Raises:
            DivergenceError: loss or gradient is not finite, or the gap too wide; nothing changed.
        """
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._adam)
        try:
            norm, value, width = self._look(loss, gap)
            lost_scale = self._scaler.is_enabled() and not math.isfinite(norm)
            if lost_scale and math.isfinite(value) and self._scaler.get_scale() > SMALLEST_SCALE:
                norm = math.nan  # skipped by the scaler, which takes a smaller scale
            elif not (math.isfinite(norm) and math.isfinite(value)):
                raise DivergenceError(
                    f"{what}: the loss, {value:.4g}, or its gradient is not finite"
                )
            elif not abs(width) <= max_gap:
                raise DivergenceError(
                    f"{what}: the energy gap, {width:.4g} nats, exceeds {max_gap:g}"
                )
            self._scaler.step(self._adam)
        finally:
            if self._scaler.is_enabled():
                self._scaler.update()
            # The optimiser owns the gradients; the model leaves each step without any.
            self.forget()
        return norm

    def forget(self) -> None:
        """Drop gradients: those of a step that was left by an exception, or of someone else."""
        for parameter in self.parameters:
            parameter.grad = None

    def _look(self, loss: Tensor, gap: Tensor | None) -> tuple[float, float, float]:
        """Gradient norm, loss and gap, in one transfer."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        figures = [loss.detach(), loss.detach() if gap is None else gap]
        value, width, *norms = torch.stack([*figures, *torch._foreach_norm(gradients)]).tolist()
        return math.hypot(*norms), value, 0.0 if gap is None else width

    def end_round(self) -> None:
        """One step of the schedule."""
        self._set_rates(1.0)
        self._schedule.step()
        self._set_rates(self._factor)

    def lower_rates(self, factor: float) -> None:
        """Multiply the rates, now and to come."""
        self._factor *= factor
        self._set_rates(self._factor)

    def _set_rates(self, factor: float) -> None:
        # The schedule never sees the factor: each kind keeps its rates in places of its own.
        for group, rate in zip(self._adam.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate * factor

    def weights_state(self) -> dict[str, Any]:
        """What a rollback restores: the optimiser's averages, by reference."""
        return dict(self._adam.state_dict())

    def restore_weights(self, state: dict[str, Any]) -> None:
        """Take averages back; the rates stay where the schedule has them."""
        self._adam.load_state_dict(copy.deepcopy(state))
        self._set_rates(self._factor)

    def state_dict(self) -> dict[str, Any]:
        """All of it, by reference."""
        return {
            "optimizer": self._adam.state_dict(),
            "schedule": self._schedule.state_dict(),
            "factor": self._factor,
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._adam.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._schedule.load_state_dict(state["schedule"])
        self._factor = state["factor"]
        self._scaler.load_state_dict(state["scaler"])


def constant_schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Rates as they are."""
    return ConstantLR(optimizer, factor=1.0)
