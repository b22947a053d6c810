"""The steps of energy and base."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from pyro_gebm._compiler import Compiler
from pyro_gebm.model import GEBM
from pyro_gebm.objectives import energy_l2, importance_ess, log_partition_estimate
from pyro_gebm.training.config import TrainConfig
from pyro_gebm.training.descent import (
    Descent,
    DivergenceError,
    ScheduleFn,
    constant_schedule,
)
from pyro_gebm.training.infos import EnergyInfo
from pyro_gebm.training.methods import Contrastive, method_of
from pyro_gebm.training.negatives import Negatives
from pyro_gebm.training.passes import BasePass, EnergyPass
from pyro_gebm.training.processes import Processes
from pyro_gebm.training.splitting import Part, Seen, penalty_points, put_together, split


class Taken(NamedTuple):
    """An energy step that was taken, for those who ask for its figures."""

    loss: Tensor
    penalty: Tensor
    mean_real: Tensor
    gap: Tensor
    base: Tensor
    """Energies of this process's samples of the base."""
    norm: float


@final
class Steps:
    """Energy steps, base steps and joint ones of a model, and all that they carry on.

    Args:
        gebm: the model, changed in place.
        config: settings.
        procs: the processes that share each step.
    """

    def __init__(self, gebm: GEBM, config: TrainConfig, procs: Processes) -> None:
        self.gebm, self.config, self._procs = gebm, config, procs
        compiler = Compiler(config.compile, "training")
        self._generate = BasePass(gebm, config, compiler)
        self.negatives = Negatives(gebm, config, procs, self._generate)
        method, chained = method_of(config), self.negatives.chained
        self._energy_chained = "energy" in chained
        self._energy_method = Contrastive() if self._energy_chained else method
        self._base_method = Contrastive() if "base" in chained else method
        by_gradient = config.log_partition_update == "gradient"
        self.learns_constant = self._energy_method.learns_constant and by_gradient
        self._closed_form = not by_gradient and self._energy_method.learns_constant
        self._needs_log_z = self._energy_method.couples or self._closed_form
        learns = self.learns_constant
        self._evaluate = EnergyPass(gebm, config, compiler, learns_constant=learns)
        self._energies = self._evaluate.energies
        self._scaled = config.precision == "float16"
        self.energy_steps_done = 0
        self._gradients = 0
        self.start()

    @property
    def gradients(self) -> int:
        """Gradients of the energy at single data so far, in parameters or input."""
        return self._gradients + self.negatives.gradients

    def start(self) -> None:
        """Optimisers for steps outside any phase."""
        self.start_energy(self.config.energy_lr, self.config.momentum, constant_schedule)
        self.start_base(constant_schedule)

    def start_energy(self, lr: float, momentum: float, schedule: ScheduleFn) -> None:
        """Forget the energy's optimiser and begin with another."""
        groups: list[dict[str, Any]] = [{"params": trainable(self.gebm.energy), "lr": lr}]
        if self.learns_constant:
            groups.append({"params": [self.gebm.log_partition], "lr": self.config.log_partition_lr})
        self.energy = Descent(groups, momentum, schedule, scaled=self._scaled)
        self._energy_pass = self._procs.wrap(self._evaluate)

    def start_base(self, schedule: ScheduleFn) -> None:
        """Likewise for the base's."""
        groups = [{"params": trainable(self.gebm.base.generator), "lr": self.config.base_lr}]
        self.base = Descent(groups, self.config.momentum, schedule, scaled=self._scaled)
        self._base_pass = self._procs.wrap(self._generate)

    def energy_step(self, x: Tensor, fake: Tensor, *, weight: float) -> Taken:
        """One step of the energy (and of c) on data (B, ...), with a penalty of that weight.

        ``fake`` is what ``negatives`` gave for the data.
        """
        self._procs.check_parts(x)
        self.energy.forget()
        log_z = None
        if self.config.accumulate > 1 and self._needs_log_z:
            log_z = self._log_z_by_parts(fake, self._energies)
            self._follow(log_z)
        seen = []
        for part in self._parts(x, fake, weight):
            with self._procs.sync(self._energy_pass, part.last):
                loss, figures = self._energy_loss(part, weight, log_z)
                self.energy.backward(loss if part.share == 1 else loss * part.share)
            seen.append(figures)
        taken = self._take(seen)
        self._procs.agree(self.gebm)
        return taken

    def base_step(self) -> tuple[Tensor, float]:
        """One step of the base; returns its loss and its gradient's norm."""
        self.base.forget()
        num = self.config.num_latents // self._procs.world_size
        z = self.negatives.latents("base", num)
        log_z = None
        if self.config.accumulate > 1 and self._base_method.couples_base:
            log_z = self._log_z_by_parts(z, lambda part: self._energies(self._generate(part)))
        losses, parts = [], z.tensor_split(min(self.config.accumulate, num))
        for part in parts:
            share = len(part) / num
            with self._procs.sync(self._base_pass, part is parts[-1]):
                loss = self._base_loss(self._base_pass(part), log_z)
                self.base.backward(loss if share == 1 else loss * share)
            losses.append(loss.detach() * share)
        self._gradients += num * self._procs.world_size
        total = self._procs.mean(losses[0] if len(losses) == 1 else torch.stack(losses).sum())
        self._procs.check_used("generator", self._base_pass)
        norm = self.base.step("base", total, None, 0.0)
        self._procs.agree(self.gebm)
        return total, norm

    def joint_step(self, x: Tensor, weight: float) -> tuple[Taken, Tensor, float]:
        """Energy and base from the same draws, forward pass and parameters (one stage)."""
        self.energy.forget()
        self.base.forget()
        fake = self._base_pass(
            self.negatives.latents("base", len(x) * self.config.latents_per_datum)
        )
        (part,) = self._parts(x, fake, weight)
        loss, figures = self._energy_loss(part, weight, None)
        log_z = log_partition_estimate(figures.base.detach())
        base_loss = self._base_method.base_loss(figures.base, self.gebm.log_partition, log_z)
        self.energy.backward(loss, retain_graph=True)
        self.base.backward(base_loss)
        self._gradients += len(fake)
        norm = self.base.step("base", base_loss, None, 0.0)
        return self._take([figures]), base_loss.detach(), norm

    @torch.no_grad()
    def figures(self, taken: Taken) -> EnergyInfo:
        """What is told of an energy step; processes ask together."""
        if self.config.objective == "contrastive":
            nothing = torch.full_like(taken.loss, torch.nan)
            return EnergyInfo(nothing, taken.penalty, nothing, nothing, taken.gap, taken.norm)
        joint = self._procs.joint(taken.base)
        ess, log_z = importance_ess(joint), log_partition_estimate(joint)
        bound = -taken.loss if self._energy_method.learns_constant else -taken.mean_real - log_z
        return EnergyInfo(bound, taken.penalty, ess, log_z, taken.gap, taken.norm)

    @torch.no_grad()
    def _take(self, seen: list[Seen]) -> Taken:
        """Step down the gradients that the parts left."""
        real, base, means = put_together(seen)
        mean_real, mean_base, penalty, loss = self._procs.means(means)
        gap, num_base = mean_base - mean_real, len(base)
        if self._energy_chained:  # then these are no sample of the base
            base = self._energies(self._generate(self.negatives.prior.draw(len(real))))
            self._follow(log_partition_estimate(self._procs.joint(base)))
        self._procs.check_used("energy", self._energy_pass)
        norm = self.energy.step("energy", loss, gap, self.config.guard.max_energy_gap)
        self.energy_steps_done += 1
        self._gradients += (len(real) + num_base) * self._procs.world_size
        return Taken(loss, penalty, mean_real, gap, base, norm)

    def _energy_loss(self, part: Part, weight: float, log_z: Tensor | None) -> tuple[Tensor, Seen]:
        """What the energy descends on a part of a batch; the part's figures."""
        method, c = self._energy_method, self.gebm.log_partition
        points = penalty_points(part, self.config.penalty_points)
        real, base, penalty = self._energy_pass(part.x, part.fake, points, method.penalty_center)
        if log_z is None and self._needs_log_z:
            log_z = log_partition_estimate(self._procs.joint(base))
            self._follow(log_z)
        loss = method.energy_loss(real, base, c, c if log_z is None else log_z)
        total = loss
        if points is not None:
            total = total + weight * self.config.penalty_every * penalty
            self._gradients += 2 * len(points) * self._procs.world_size
        if self.config.energy_l2:
            # Held to a c that follows it, the energy's constant would run away from it for ever.
            constant = c if self.learns_constant else 0.0
            total = total + self.config.energy_l2 * energy_l2(real, base, constant)
        return total, Seen(real, base, penalty, loss, part.share)

    def _base_loss(self, x: Tensor, log_z: Tensor | None) -> Tensor:
        energy, c = self._energies(x), self.gebm.log_partition
        if log_z is None and self._base_method.couples_base:
            log_z = log_partition_estimate(self._procs.joint(energy))
        return self._base_method.base_loss(energy, c, c if log_z is None else log_z)

    def _parts(self, x: Tensor, fake: Tensor, weight: float) -> Iterator[Part]:
        u = None
        if weight > 0 and self.energy_steps_done % self.config.penalty_every == 0:
            num = len(x) * self._procs.world_size
            u = self._procs.own(torch.rand(num, dtype=x.dtype, device=x.device))
        return split(x, fake, u, self.config.accumulate)

    @torch.no_grad()
    def _log_z_by_parts(self, batch: Tensor, energies: Callable[[Tensor], Tensor]) -> Tensor:
        """log Z of a whole batch, which its parts need and cannot know."""
        parts = batch.tensor_split(min(self.config.accumulate, len(batch)))
        whole = torch.cat([energies(part) for part in parts])
        return log_partition_estimate(self._procs.joint(whole))

    @torch.no_grad()
    def _follow(self, log_z: Tensor) -> None:
        """c by its closed form, e^c a running mean of the batches' Z if there is a memory."""
        if not (self._closed_form or self._energy_chained):
            return
        if not math.isfinite(float(log_z)):
            raise DivergenceError(f"energy: log Z of the batch, {log_z:.4g}, is not finite")
        c, memory = self.gebm.log_partition, self.config.log_partition_memory
        if memory:
            log_z = torch.logaddexp(log_z + math.log(1 - memory), c + math.log(memory))
        c.copy_(log_z)

    def end_round(self, *, with_energy: bool, with_base: bool) -> None:
        """One step of the schedules of what is trained."""
        if with_energy:
            self.energy.end_round()
        if with_base:
            self.base.end_round()

    def lower_rates(self, factor: float) -> None:
        """Multiply all rates, now and to come."""
        self.energy.lower_rates(factor)
        self.base.lower_rates(factor)

    def weights_state(self) -> dict[str, Any]:
        """The optimisers' averages, by reference."""
        return {"energy": self.energy.weights_state(), "base": self.base.weights_state()}

    def restore_weights(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.energy.restore_weights(state["energy"])
        self.base.restore_weights(state["base"])

    def state_dict(self) -> dict[str, Any]:
        """Optimisers, schedules, chains and counts, by reference."""
        return {
            "energy": self.energy.state_dict(),
            "base": self.base.state_dict(),
            "negatives": self.negatives.state_dict(),
            "energy_steps_done": self.energy_steps_done,
            "gradients": self._gradients,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``; the optimisers must be those of the same phase."""
        self.energy.load_state_dict(state["energy"])
        self.base.load_state_dict(state["base"])
        self.negatives.load_state_dict(state["negatives"])
        self.energy_steps_done = state["energy_steps_done"]
        self._gradients = state["gradients"]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that want a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
