"""The Trainer: phases made of energy and base steps, and the state that lets them go on."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, final

import torch
from torch import Tensor

from pyro_gebm.model import GEBM
from pyro_gebm.training.average import Average, Best
from pyro_gebm.training.batches import Batch
from pyro_gebm.training.config import TrainConfig
from pyro_gebm.training.descent import DivergenceError, ScheduleFn
from pyro_gebm.training.guard import Guard, TrainingError
from pyro_gebm.training.infos import EnergyInfo, Phase, StepInfo
from pyro_gebm.training.monitor import HeldOut, evaluate, large_sample_log_z
from pyro_gebm.training.plan import Plan, check_fit, check_same, check_trainable, phase_schedule
from pyro_gebm.training.processes import processes
from pyro_gebm.training.rounds import run_round, step_info
from pyro_gebm.training.source import Source
from pyro_gebm.training.steps import Steps

LOG_PARTITION_SAMPLES = 8192
"""Base samples of a large-sample log Z."""


@final
class Trainer:
    """Trains a GEBM by KALE (Arbel, Zhou, Gretton 2021, algorithm 1), or as a baseline.

    The energy and c maximise F(E, c) = -E_P[E + c] - E_B[exp(-(E + c))] + 1 minus a gradient
    penalty; the base minimises it. Randomness comes from torch's global generator, and the
    model is trained on the device and in the dtype it has.

    A step whose loss or gradient is not finite, or whose energy gap explodes, is not taken:
    training returns to the last good state, lowers the rates and warns (``config.guard``).

    ``state_dict`` holds all that a new process needs to go on as if never stopped: weights,
    optimisers, c, averages, schedules, the guard's snapshots, the loader's place, random streams.

    In an initialised ``torch.distributed`` process group, the processes share each step by
    torch's ``DistributedDataParallel``: each gives its part of the batch, and ``num_latents`` is
    divided among them. Seed them alike.

    Args:
        gebm: the model, changed in place.
        config: settings.
        held_out: data (N, ...) to judge by, every ``config.evaluate_every`` steps.
        lr_schedule: makes a torch schedule of an optimiser's rates, once for each of the two
            and phase, stepped once a round; ``config.schedule`` if ``None``.

    Raises:
        ValueError: settings do not fit the model or each other.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(1, 2), StandardNormal(1)), nn.Linear(2, 1))
        >>> trainer = Trainer(gebm, TrainConfig(base_steps=3, refit_steps=2))
        >>> [info.phase for info in trainer.fit([torch.randn(16, 2)])]
        ['alternate', 'alternate', 'alternate', 'refit', 'refit']
    """

    def __init__(
        self,
        gebm: GEBM,
        config: TrainConfig | None = None,
        *,
        held_out: Tensor | None = None,
        lr_schedule: ScheduleFn | None = None,
    ) -> None:
        self.gebm = gebm
        self.config = config or TrainConfig()
        self._procs = processes()
        check_fit(gebm, self.config, self._procs, held_out)
        if self.config.channels_last:
            gebm.to(memory_format=torch.channels_last)
        self._held_out, self._lr_schedule = held_out, lr_schedule
        self._steps = Steps(gebm, self.config, self._procs)
        self._source = Source(gebm, self.config)
        self._average: Average | None = None
        self._guard = Guard(self.config.guard, self._weights, self._restore_weights)
        self._best = Best(self.config.refit_patience)
        self._phase: Phase | None = None
        self._step = 0

    def fit(self, loader: Iterable[Batch]) -> Iterator[StepInfo]:
        """Alternate, take over the averaged generator, refit the energy; yields every step.

        Goes on where an earlier call stopped, in this process or in the one that gave the
        state; after the end it starts anew. The model is put into train mode, what a phase
        leaves alone into eval mode. The average takes over after the last base step.

        Args:
            loader: batches (B, ...) or (x, ...) tuples; started again when it ends.

        Yields:
            One ``StepInfo`` per step that was taken.

        Raises:
            ValueError: the loader is empty, its data do not have the generator's shape, or
                there is nothing to train.
            TrainingError: the guard has rolled back too often.
        """
        check_trainable(self._steps, ["alternate", "refit"])
        batches = self._source.open(loader)
        if self._phase is None:
            self._begin("alternate")
        if self._phase == "alternate":
            yield from self._alternate(batches)
            self._begin("refit")
        yield from self._refit(batches)

    def refit_energy(self, loader: Iterable[Batch]) -> Iterator[StepInfo]:
        """Refit the energy alone on the frozen base, with the refit's rate and penalty.

        Works on any base, trained here or not. Yields, takes, goes on and raises as ``fit``.
        """
        check_trainable(self._steps, ["refit"])
        batches = self._source.open(loader)
        if self._phase != "refit":
            self._begin("refit")
        yield from self._refit(batches)

    def energy_step(self, x: Tensor, *, penalty_weight: float | None = None) -> EnergyInfo:
        """One step of the energy and of c on data ``x`` (B, ...), against as many base samples.

        Args:
            x: data, on the model's device and in its dtype.
            penalty_weight: weight of the gradient penalty; the configured start if ``None``.

        Raises:
            TrainingError: the loss or its gradient is not finite; no parameter was changed.
        """
        weight = self.config.gradient_penalty if penalty_weight is None else penalty_weight
        with self._refusing():
            taken = self._steps.energy_step(x, *self._steps.negatives.draw([x]), weight=weight)
            return self._steps.figures(taken)

    def base_step(self) -> Tensor:
        """One step of the base against the energy as it stands.

        Returns:
            The loss, a detached scalar.

        Raises:
            TrainingError: the loss or its gradient is not finite; no parameter was changed.
        """
        with self._refusing():
            return self._steps.base_step()[0]

    @torch.no_grad()
    def set_log_partition(self, num_samples: int = LOG_PARTITION_SAMPLES) -> None:
        """Set c to log Z estimated from ``num_samples`` samples of the base.

        Raises:
            TrainingError: it is not finite; c is as it was.
        """
        self.gebm.log_partition.copy_(large_sample_log_z(self.gebm, num_samples, self._procs))

    def averaged(self) -> GEBM:
        """A copy of the model as sampling wants it: averaged generator, eval mode."""
        model = copy.deepcopy(self.gebm)
        if self._average is not None:
            self._average.give(model.base.generator)
        return model.eval()

    def state_dict(self) -> dict[str, Any]:
        """All that decides how training goes on, as plain data and tensors, by reference.

        To be taken between two steps of ``fit``, and saved before the next.
        """
        return {
            "config": asdict(self.config),
            "phase": self._phase,
            "step": self._step,
            "gebm": self.gebm.state_dict(),
            "steps": self._steps.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "guard": self._guard.state_dict(),
            "best": self._best.state_dict(),
            "source": self._source.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict`` at the next call of ``fit``, with a loader built as then.

        Raises:
            ValueError: the state is that of other settings, which are named.
        """
        check_same(self.config, state["config"])
        self._phase, self._step = state["phase"], state["step"]
        if self._phase is not None:
            self._start(Plan(self.config, self._phase))
        self.gebm.load_state_dict(state["gebm"])
        self._steps.load_state_dict(state["steps"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._best.load_state_dict(state["best"])
        self._guard.load_state_dict(state["guard"])
        self._source.load_state_dict(state["source"])

    def _alternate(self, batches: Iterator[Tensor]) -> Iterator[StepInfo]:
        yield from self._rounds(batches, Plan(self.config, "alternate"))
        averaged, self._average = self._average, None
        if averaged is not None:
            averaged.give(self.gebm.base.generator)
        if averaged is not None or not self._steps.learns_constant:
            self.set_log_partition()

    def _refit(self, batches: Iterator[Tensor]) -> Iterator[StepInfo]:
        try:
            yield from self._rounds(batches, Plan(self.config, "refit"))
        finally:
            self.gebm.base.train()
        self._best.give(self.gebm)
        self._phase = None
        self._steps.start()

    def _rounds(self, batches: Iterator[Tensor], plan: Plan) -> Iterator[StepInfo]:
        plan.set_modes(self.gebm)
        while self._step < plan.total and not self._best.exhausted:
            try:
                info = self._round(batches, plan)
            except DivergenceError as error:
                info = None
                self._steps.lower_rates(self._guard.roll_back(self._seen(error)))
            self._steps.end_round(with_energy=plan.trains_energy, with_base=plan.trains_base)
            self._step += 1
            if info is not None:
                self._guard.passed()
                yield info

    def _round(self, batches: Iterator[Tensor], plan: Plan) -> StepInfo:
        seen = run_round(self._steps, plan, self._step, batches)
        if self._average is not None:
            self._average.update(self.gebm.base.generator)
        held_out = self._look(plan.total)
        rollbacks = self._guard.rollbacks
        return step_info(seen, plan, self._step + 1, self._steps, rollbacks, held_out)

    def _look(self, total: int) -> HeldOut | None:
        """The held-out figures, where it is time for them."""
        done, every = self._step + 1, self.config.evaluate_every
        if self._held_out is None or not every or (done % every and done != total):
            return None
        figures = evaluate(self.gebm, self._held_out, self.config.evaluation_samples, self._procs)
        if self._phase == "refit":
            self._best.see(figures.judged(self._steps.learns_constant), self.gebm)
        return figures

    def _begin(self, phase: Phase) -> None:
        if phase == "refit" and self.config.refit_steps:
            # A fixed target: c starts from a good estimate.
            self.set_log_partition()
        elif phase == "alternate" and self.config.log_partition_start:
            self.set_log_partition(self.config.log_partition_start)
        self._phase, self._step = phase, 0
        self._start(Plan(self.config, phase))
        self._guard.start()

    def _start(self, plan: Plan) -> None:
        """Optimisers for a phase; those of an earlier one may have ended at rate zero."""
        schedule = self._lr_schedule or phase_schedule(self.config.schedule, plan.total)
        self._steps.start_energy(plan.energy_lr, plan.momentum, schedule)
        self._steps.start_base(schedule)
        averages = plan.trains_base and self.config.ema_decay > 0 and plan.total > 0
        generator = self.gebm.base.generator
        self._average = Average(generator, self.config.ema_decay) if averages else None
        self._best = Best(self.config.refit_patience)

    def _weights(self) -> dict[str, Any]:
        average = None if self._average is None else self._average.state_dict()
        return {"gebm": self.gebm.state_dict(), "average": average, **self._steps.weights_state()}

    def _restore_weights(self, state: dict[str, Any]) -> None:
        self.gebm.load_state_dict(state["gebm"])
        self._steps.restore_weights(state)
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        constant = self.gebm.log_partition.detach().clone()  # its closed form comes before a step
        try:
            yield
        except DivergenceError as error:
            with torch.no_grad():
                self.gebm.log_partition.copy_(constant)
            raise TrainingError(
                f"{self._seen(error)}; lower the learning rates or raise gradient_penalty, and "
                "check the data"
            ) from error

    def _seen(self, error: DivergenceError) -> str:
        return f"{error} at energy step {self._steps.energy_steps_done}"
