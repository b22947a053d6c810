"""What a phase does when: its steps, rates, weights and modes, and what it cannot do."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_gebm._checks import check_batch
from pyro_gebm.model import GEBM
from pyro_gebm.training.config import TrainConfig
from pyro_gebm.training.descent import ScheduleFn, constant_schedule
from pyro_gebm.training.infos import Phase
from pyro_gebm.training.processes import Processes
from pyro_gebm.training.source import data_shape
from pyro_gebm.training.steps import Steps, trainable


class Plan(NamedTuple):
    """The settings, as a phase reads them."""

    config: TrainConfig
    phase: Phase

    @property
    def total(self) -> int:
        """Rounds."""
        return self.config.refit_steps if self.phase == "refit" else self.config.base_steps

    @property
    def trains_base(self) -> bool:
        """Rounds have a base step."""
        return self.phase == "alternate" and self.config.mode != "energy"

    @property
    def trains_energy(self) -> bool:
        """Rounds have energy steps."""
        return self.phase == "refit" or self.config.mode != "base"

    @property
    def energy_lr(self) -> float:
        """Adam's rate for the energy."""
        return self.config.refit_lr if self.phase == "refit" else self.config.energy_lr

    @property
    def momentum(self) -> float:
        """Adam's β₁; a fixed target wants the usual one."""
        return 0.9 if self.phase == "refit" else self.config.momentum

    def energy_steps(self, step: int) -> int:
        """How many in the round after ``step`` others."""
        config = self.config
        if self.phase == "refit":
            return 1
        if not self.trains_energy:
            return 0
        boosted = step % config.boost_every == 0 if config.boost_every else step == 0
        return config.boost_steps if config.boost_steps and boosted else config.energy_steps

    def penalty_weight(self, step: int) -> float:
        """In the round after ``step`` others."""
        config = self.config
        if self.phase == "refit":
            return config.refit_gradient_penalty
        if not config.gradient_penalty:
            return 0.0
        fall = config.gradient_penalty_end / config.gradient_penalty
        return config.gradient_penalty * float(fall ** (step / self.total))

    def set_modes(self, gebm: GEBM) -> None:
        """Train mode for what is trained; the rest as sampling will see it.

        BatchNorm then takes its running statistics, and leaves them alone.
        """
        gebm.train()
        if not self.trains_base:
            gebm.base.eval()
        elif not self.trains_energy:
            gebm.energy.eval()


def phase_schedule(name: str, total: int) -> ScheduleFn:
    """The schedule of that name over ``total`` rounds."""
    if name == "constant":
        return constant_schedule
    return lambda optimizer: CosineAnnealingLR(optimizer, max(total, 1))


def check_fit(gebm: GEBM, config: TrainConfig, procs: Processes, held_out: Tensor | None) -> None:
    """Refuse settings that do not fit the processes or the data to judge by.

    Raises:
        ValueError: what does not fit.
    """
    world = procs.world_size
    if config.num_latents % world:
        raise ValueError(
            f"num_latents: expected a multiple of the {world} processes; got {config.num_latents}"
        )
    if world > 1 and config.update == "joint":
        raise ValueError(
            "update: expected 'alternating' with several processes, whose gradients are averaged "
            "in one backward pass; got 'joint'"
        )
    if config.refit_patience and held_out is None:
        raise ValueError(
            "held_out: expected data to judge the refit by, since refit_patience is "
            f"{config.refit_patience}; got None"
        )
    if held_out is not None:
        check_batch("held_out", held_out, tuple(data_shape(gebm)))
        if len(held_out) == 0:
            raise ValueError("held_out: expected at least one datum; got an empty batch")
    precision_fits = config.precision == "float32" or gebm.log_partition.dtype.itemsize == 4
    if not precision_fits:
        raise ValueError(
            f"precision: expected 'float32' for a model in {gebm.log_partition.dtype}, which "
            f"stays as it is; got {config.precision!r}"
        )


def check_same(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    """Refuse to go on under other settings.

    Raises:
        ValueError: settings of the saved run, as ``asdict`` wrote them, are not these.
    """
    mine = asdict(config)
    other = sorted(name for name in {*mine, *saved} if mine.get(name) != saved.get(name))
    if other:
        raise ValueError(
            f"config: expected the settings of the saved run; got other {', '.join(other)}; "
            "build it with TrainConfig.from_dict(state['config'])"
        )


def check_trainable(steps: Steps, phases: Sequence[Phase]) -> None:
    """Refuse a training with nothing to train.

    Raises:
        ValueError: a phase has steps of a network without parameters.
    """
    plans = [plan for phase in phases if (plan := Plan(steps.config, phase)).total]
    learns = trainable(steps.gebm.energy) or steps.learns_constant
    if any(plan.trains_energy for plan in plans) and not learns:
        raise ValueError(
            "energy: expected parameters to train; got none that require a gradient; use "
            "mode='base' and refit_steps=0 to train the base under a fixed energy"
        )
    if any(plan.trains_base for plan in plans) and not trainable(steps.gebm.base.generator):
        raise ValueError(
            "generator: expected parameters to train; got none that require a gradient; "
            "use refit_energy(loader), mode='energy' or base_steps=0 to train on a fixed base"
        )
