"""The Trainer: energy steps, base steps, and the two phases made of them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_gebm.model import GEBM
from pyro_gebm.objectives import (
    base_loss_amortized,
    base_loss_self_normalized,
    gradient_penalty,
    importance_ess,
    kale_bound,
    log_partition_estimate,
)
from pyro_gebm.training.batches import Batch, data_of, endless
from pyro_gebm.training.config import TrainConfig

LOG_PARTITION_SAMPLES = 8192
"""Base samples of a large-sample log Z."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what was seen."""


class EnergyInfo(NamedTuple):
    """Figures of an energy step, detached scalar tensors."""

    bound: Tensor
    """F(E, c) of the batch, nats."""
    penalty: Tensor
    """E|∇E(x̂)|² of the batch, NaN in steps that leave it out."""
    importance_ess: Tensor
    """Effective share of the batch's base samples under the model, in (0, 1]."""


class StepInfo(NamedTuple):
    """Figures of one step of a phase: of its last energy step, and of the base step after it."""

    phase: Literal["alternate", "refit"]
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


@final
class Trainer:
    """Trains a GEBM by KALE (Arbel, Zhou, Gretton 2021, algorithm 1).

    The energy and c maximise F(E, c) = -E_P[E + c] - E_B[exp(-(E + c))] + 1 minus a gradient
    penalty; the base minimises it. Randomness comes from torch's global generator, and the
    model is trained on the device and in the dtype it has.

    Args:
        gebm: the model, changed in place.
        config: settings.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(1, 2), StandardNormal(1)), nn.Linear(2, 1))
        >>> trainer = Trainer(gebm, TrainConfig(base_steps=3, refit_steps=2))
        >>> [info.phase for info in trainer.fit([torch.randn(16, 2)])]
        ['alternate', 'alternate', 'alternate', 'refit', 'refit']
    """

    def __init__(self, gebm: GEBM, config: TrainConfig | None = None) -> None:
        self.gebm = gebm
        self.config = config or TrainConfig()
        self._start_optimizers()
        self._energy_steps_done = 0

    def fit(self, loader: Iterable[Batch]) -> Iterator[StepInfo]:
        """Alternate, take over the averaged generator, refit the energy; yields every step.

        The model is put into train mode, the base into eval mode during the refit. The average
        takes over after the last base step: leave the loop earlier and the raw weights stay.

        Args:
            loader: batches (B, ...) or (x, ...) tuples; started again when it ends.

        Yields:
            One ``StepInfo`` per base step, then one per refit step.

        Raises:
            ValueError: the loader is empty, its data do not have the generator's shape, or
                there are base steps to do and nothing of the generator can be trained.
            TrainingError: a loss or its gradient is not finite.
        """
        if self.config.base_steps and not _trainable(self.gebm.base.generator):
            raise ValueError(
                "generator: expected parameters to train; got none that require a gradient; "
                "use refit_energy(loader), or base_steps=0, to train on a fixed base"
            )
        batches = self._batches(loader)
        yield from self._alternate(batches)
        if self.config.refit_steps:
            yield from self._refit(batches)

    def refit_energy(self, loader: Iterable[Batch]) -> Iterator[StepInfo]:
        """Refit the energy alone on the frozen base, with the refit's rate and penalty.

        Works on any base, trained here or not. Yields, takes and raises as ``fit`` does.
        """
        yield from self._refit(self._batches(loader))

    def energy_step(self, x: Tensor, *, penalty_weight: float | None = None) -> EnergyInfo:
        """One step of the energy and of c on data ``x`` (B, ...), against as many base samples.

        Args:
            x: data, on the model's device and in its dtype.
            penalty_weight: weight of the gradient penalty; the configured start if ``None``.

        Raises:
            TrainingError: the loss or its gradient is not finite; no parameter was changed.
        """
        weight = self.config.gradient_penalty if penalty_weight is None else penalty_weight
        fake = self.gebm.base.sample(len(x))
        energies = self.gebm.evaluate_energy(torch.cat([x, fake]))
        energy_real, energy_base = energies[: len(x)], energies[len(x) :]
        bound = kale_bound(
            energy_real,
            energy_base,
            self.gebm.log_partition,
            linear_from=self.config.linear_from,
        )
        loss, penalty = -bound, torch.full_like(bound, torch.nan)
        if weight > 0 and self._energy_steps_done % self.config.penalty_every == 0:
            penalty = gradient_penalty(self.gebm.evaluate_energy, x, fake)
            loss = loss + weight * self.config.penalty_every * penalty
        self._descend(self._energy_optimizer, loss, "energy")
        self._energy_steps_done += 1
        return EnergyInfo(bound.detach(), penalty.detach(), importance_ess(energy_base.detach()))

    def base_step(self) -> Tensor:
        """One step of the base against the energy as it stands.

        Returns:
            The loss, a detached scalar.

        Raises:
            TrainingError: the loss or its gradient is not finite; no parameter was changed.
        """
        z = self.gebm.base.latent_prior.sample(self.config.num_latents)
        energy = self.gebm.latent_energy(z)
        if self.config.base_loss == "amortized":
            loss = base_loss_amortized(
                energy, self.gebm.log_partition, linear_from=self.config.linear_from
            )
        else:
            loss = base_loss_self_normalized(energy)
        self._descend(self._base_optimizer, loss, "base")
        return loss.detach()

    @torch.no_grad()
    def set_log_partition(self, num_samples: int = LOG_PARTITION_SAMPLES) -> None:
        """Set c to log Z estimated from ``num_samples`` samples of the base."""
        z = self.gebm.base.latent_prior.sample(num_samples)
        with self.gebm.frozen():
            energy = torch.cat([self.gebm.latent_energy(chunk) for chunk in torch.split(z, 1024)])
        self.gebm.log_partition.copy_(log_partition_estimate(energy))

    def _alternate(self, batches: Iterator[Tensor]) -> Iterator[StepInfo]:
        config, total = self.config, self.config.base_steps
        # Those of an earlier phase may have ended at rate zero.
        self._start_optimizers()
        self.gebm.train()
        schedules = [
            self._schedule(self._energy_optimizer, total),
            self._schedule(self._base_optimizer, total),
        ]
        averaged = self._averaged_generator() if config.ema_decay and total else None
        for step in range(total):
            fall = config.gradient_penalty_end / config.gradient_penalty
            weight = config.gradient_penalty * fall ** (step / total)
            for _ in range(config.energy_steps):
                energy_info = self.energy_step(next(batches), penalty_weight=weight)
            loss = self.base_step()
            if averaged is not None:
                averaged.update_parameters(self.gebm.base.generator)
            for schedule in schedules:
                schedule.step()
            yield self._info("alternate", step + 1, total, energy_info, loss)
        if averaged is not None:
            self.gebm.base.generator.load_state_dict(averaged.module.state_dict())
            self.set_log_partition()

    def _averaged_generator(self) -> AveragedModel:
        average = get_ema_multi_avg_fn(self.config.ema_decay)  # type: ignore[no-untyped-call]
        return AveragedModel(self.gebm.base.generator, multi_avg_fn=average, use_buffers=True)

    def _refit(self, batches: Iterator[Tensor]) -> Iterator[StepInfo]:
        # The base as sampling will see it: BatchNorm with its running statistics, left alone.
        self.gebm.train()
        self.gebm.base.eval()
        try:
            yield from self._refit_steps(batches)
        finally:
            self.gebm.base.train()

    def _refit_steps(self, batches: Iterator[Tensor]) -> Iterator[StepInfo]:
        config, total = self.config, self.config.refit_steps
        # A fixed target wants the usual momentum, and c starts from a good estimate.
        self._energy_optimizer = self._adam_for_energy(config.refit_lr, 0.9)
        schedule = self._schedule(self._energy_optimizer, total)
        self.set_log_partition()
        for step in range(total):
            weight = config.refit_gradient_penalty
            energy_info = self.energy_step(next(batches), penalty_weight=weight)
            schedule.step()
            nothing = torch.full_like(energy_info.bound, torch.nan)
            yield self._info("refit", step + 1, total, energy_info, nothing)

    def _info(
        self,
        phase: Literal["alternate", "refit"],
        step: int,
        total: int,
        energy_info: EnergyInfo,
        base_loss: Tensor,
    ) -> StepInfo:
        c = self.gebm.log_partition.detach().clone()
        return StepInfo(
            phase, step, total, energy_info.bound, energy_info.importance_ess, c, base_loss
        )

    def _start_optimizers(self) -> None:
        config = self.config
        self._energy_optimizer = self._adam_for_energy(config.energy_lr, config.momentum)
        base: dict[str, Any] = {
            "params": _trainable(self.gebm.base.generator),
            "lr": config.base_lr,
        }
        self._base_optimizer = self._adam([base], config.momentum)

    def _adam_for_energy(self, lr: float, momentum: float) -> torch.optim.Optimizer:
        groups = [
            {"params": _trainable(self.gebm.energy), "lr": lr},
            {"params": [self.gebm.log_partition], "lr": self.config.log_partition_lr},
        ]
        return self._adam(groups, momentum)

    def _adam(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        # Fused: a fifth off the step time of small networks; not every device has it.
        fused = self.gebm.log_partition.device.type in {"cpu", "cuda"}
        return torch.optim.Adam(groups, betas=(momentum, 0.99), fused=fused)

    def _schedule(self, optimizer: torch.optim.Optimizer, total: int) -> LRScheduler:
        if self.config.schedule == "cosine":
            return CosineAnnealingLR(optimizer, max(total, 1))
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, what: str) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        # A finite loss can have a gradient that is not; both are looked at in one transfer.
        sizes = [loss.detach(), *(g.norm() for g in gradients if g is not None)]
        if not torch.stack(sizes).isfinite().all():
            raise TrainingError(
                f"{what}: the loss, {loss.item()}, or its gradient is not finite at energy step "
                f"{self._energy_steps_done}; lower the learning rates or raise gradient_penalty, "
                "and check the data"
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        # The optimiser owns the gradients; the model leaves each step without any.
        optimizer.zero_grad(set_to_none=True)

    def _batches(self, loader: Iterable[Batch]) -> Iterator[Tensor]:
        """Data without end, as the model's tensors are; the first batch's shape is checked."""
        like = self.gebm.log_partition
        data = (data_of(batch).to(like) for batch in endless(loader))
        first = next(data)
        with self.gebm.frozen():  # a BatchNorm in train mode refuses a single datum
            made = self.gebm.base.sample(1)
        if first.shape[1:] != made.shape[1:]:
            raise ValueError(
                f"loader: expected data of the generator's shape {tuple(made.shape[1:])}; got "
                f"{tuple(first.shape[1:])}"
            )
        return itertools.chain([first], data)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
