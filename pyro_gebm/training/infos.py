"""What a training yields."""

from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from pyro_gebm.training.monitor import HeldOut

Phase: TypeAlias = Literal["alternate", "refit"]


class EnergyInfo(NamedTuple):
    """Figures of an energy step, detached scalar tensors unless said otherwise."""

    bound: Tensor
    """F(E, c) of the batch, nats; L(E) where c is not learned."""
    penalty: Tensor
    """Penalty on the slope, NaN in steps that leave it out."""
    importance_ess: Tensor
    """Effective share of the batch's base samples under the model, in (0, 1]."""
    batch_log_z: Tensor
    """Naive estimate of log Z from this batch alone, nats."""
    energy_gap: Tensor
    """Mean energy of the base's samples less that of the data, nats."""
    grad_norm: float
    """Norm of the gradient in the energy's parameters and c."""


class Seconds(NamedTuple):
    """Wall-clock seconds of a step; on a GPU, until its work was queued."""

    data: float
    energy: float
    base: float


class StepInfo(NamedTuple):
    """Figures of one step of a phase: of its last energy step, and of the base step after it.

    What a step does not have is NaN.
    """

    phase: Phase
    step: int
    """Steps done in this phase, from 1."""
    total: int
    """Steps of this phase."""
    bound: Tensor
    importance_ess: Tensor
    log_partition: Tensor
    """c, nats."""
    base_loss: Tensor
    """Loss of the base; NaN in the refit, which has no base steps."""
    penalty: Tensor
    batch_log_z: Tensor
    """Naive estimate of log Z from one batch, beside c."""
    energy_gap: Tensor
    energy_grad_norm: float
    base_grad_norm: float
    gradients: int
    """Gradients of the energy, in its parameters or its input, at single data so far."""
    rollbacks: int
    """Returns to a good state so far."""
    seconds: Seconds
    held_out: HeldOut | None
    """In steps that end with a held-out evaluation."""
