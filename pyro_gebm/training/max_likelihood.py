"""Maximum likelihood for a base with a density, stopped early by held-out data."""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_batch, check_choice, check_count, check_in_range
from pyro_gebm._modes import modes_kept
from pyro_gebm.base import Base
from pyro_gebm.flows.density import data_log_prob, log_prob
from pyro_gebm.training.batches import Batch, Batches
from pyro_gebm.training.config import SCHEDULES
from pyro_gebm.training.guard import TrainingError
from pyro_gebm.training.plan import phase_schedule


@final
@dataclass(frozen=True)
class FlowConfig:
    """Settings of ``fit_flow``.

    Args:
        steps: steps of Adam at most.
        lr: its rate.
        schedule: "cosine" takes the rate to zero over ``steps``, "constant" does not.
        weight_decay: of AdamW.
        max_grad_norm: gradients longer than this are shortened to it; inf for never.
        evaluate_every: steps from one look at the held-out data to the next.
        patience: looks without a better figure that end the training; 0 for never.

    Raises:
        ValueError: a setting is out of its range.
    """

    steps: int = 5000
    lr: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 5.0
    evaluate_every: int = 100
    patience: int = 20

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_in_range("lr", self.lr, 0.0, open_low=True)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_in_range("weight_decay", self.weight_decay, 0.0)
        if self.max_grad_norm != math.inf:
            check_in_range("max_grad_norm", self.max_grad_norm, 0.0, open_low=True)
        check_count("evaluate_every", self.evaluate_every)
        check_count("patience", self.patience, minimum=0)


class FlowInfo(NamedTuple):
    """Figures of one step of ``fit_flow``."""

    step: int
    """Steps done, from 1."""
    total: int
    """Steps at most."""
    nll: Tensor
    """-mean log h(x) of the batch before the step, nats per datum, a detached scalar."""
    grad_norm: float
    """Before any shortening."""
    held_out: float | None
    """-mean log h(x) of the held-out data after the step, in steps that look."""


def fit_flow(
    base: Base,
    loader: Iterable[Batch],
    config: FlowConfig | None = None,
    *,
    held_out: Tensor | None = None,
) -> Iterator[FlowInfo]:
    """Fit a base with a density by maximum likelihood: descend -mean log h(x).

    With held-out data the weights with the best figure so far are put back at the end, also if
    the iteration is left early. The flow is in train mode within a step; its modes are restored.
    Randomness comes from the loader.

    Args:
        base: as ``flow_base`` makes it, changed in place, on the device and in the dtype it has.
        loader: batches (B, D) or (x, ...) tuples; started again when it ends.
        config: settings.
        held_out: data (N, D) that the batches do not have, to stop and to choose by.

    Yields:
        One ``FlowInfo`` per step.

    Raises:
        ValueError: the base has no density, nothing to train, or the data are not (B, D); or
            the loader is empty.
        TrainingError: the likelihood or its gradient is not finite; no parameter was changed by
            that step.

    Example:
        >>> from pyro_gebm.flows import NVP, flow_base
        >>> base, x = flow_base(NVP(2)), 3 + torch.randn(512, 2)
        >>> infos = list(fit_flow(base, x.split(128), FlowConfig(steps=200, lr=0.02)))
        >>> float(infos[-1].nll) < float(infos[0].nll) - 5
        True
    """
    settings = config or FlowConfig()
    parameters = [p for p in base.generator.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("base: expected parameters to train; got none that require a gradient")
    if held_out is not None:
        check_batch("held_out", held_out, (base.latent_prior.dim,))
        if len(held_out) == 0:
            raise ValueError("held_out: expected at least one datum; got an empty batch")
    # The checks above come at the call, the steps at the iteration.
    return _steps(base, Batches(loader), settings, parameters, held_out)


def _steps(
    base: Base,
    batches: Batches,
    config: FlowConfig,
    parameters: list[torch.nn.Parameter],
    held_out: Tensor | None,
) -> Iterator[FlowInfo]:
    adam = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    schedule = phase_schedule(config.schedule, config.steps)(adam)
    best = _Best(base, config.patience)
    like, every = base.latent_prior.like, config.evaluate_every
    with modes_kept(base):
        try:
            for step in range(1, config.steps + 1):
                base.train()
                x = next(batches).to(like)
                nll, norm = _step(base, x, adam, parameters, config.max_grad_norm, step)
                schedule.step()
                seen = None
                if held_out is not None and (step % every == 0 or step == config.steps):
                    seen = mean_nll(base, held_out)
                    best.see(seen)
                yield FlowInfo(step, config.steps, nll, norm, seen)
                if best.exhausted:
                    break
        finally:
            best.give()


def _step(
    base: Base,
    x: Tensor,
    adam: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    max_norm: float,
    step: int,
) -> tuple[Tensor, float]:
    adam.zero_grad(set_to_none=True)
    loss = -log_prob(base, x).mean()
    loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    nll = loss.detach()
    if not (math.isfinite(norm) and math.isfinite(float(nll))):
        adam.zero_grad(set_to_none=True)
        raise TrainingError(
            f"fit_flow: at step {step} the loss, {float(nll):.4g}, or its gradient is not finite; "
            "lower lr, and check and scale the data"
        )
    adam.step()
    adam.zero_grad(set_to_none=True)
    return nll, norm


def mean_nll(base: Base, x: Tensor) -> float:
    """-mean log h(x) of data (N, D), nats per datum, in eval mode; NaN if one of them is."""
    return -float(data_log_prob(base, x).mean())


@final
class _Best:
    """The flow with the lowest figure so far, and when to stop waiting for a lower one."""

    def __init__(self, base: Base, patience: int) -> None:
        self._base, self._patience = base, patience
        self._value, self._waited = math.inf, 0
        self._state: dict[str, Any] | None = None

    @property
    def exhausted(self) -> bool:
        return self._patience > 0 and self._waited >= self._patience

    def see(self, value: float) -> None:
        if value < self._value:
            self._value, self._waited = value, 0
            self._state = copy.deepcopy(self._base.generator.state_dict())
        else:
            self._waited += 1

    def give(self) -> None:
        if self._state is not None:
            self._base.generator.load_state_dict(self._state)
