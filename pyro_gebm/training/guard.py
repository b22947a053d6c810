"""The way back: snapshots in memory, and how often they may be needed."""

import copy
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, final

from torch import Tensor

from pyro_gebm.training.parts import GuardConfig


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what was seen."""


@final
class Guard:
    """Keeps the last two good states, and returns to them when a step diverges.

    The first rollback after a snapshot returns to it, the next ones to the one before: the last
    may have been on its way out already, and is forgotten.

    Args:
        config: settings.
        state: gives the state to keep.
        restore: takes it back.
    """

    def __init__(
        self,
        config: GuardConfig,
        state: Callable[[], dict[str, Any]],
        restore: Callable[[dict[str, Any]], None],
    ) -> None:
        self._config, self._state, self._restore = config, state, restore
        self._snapshots: deque[dict[str, Any]] = deque(maxlen=2)
        self._good_steps = 0
        self._seen: list[str] = []
        self.rollbacks = 0

    def start(self) -> None:
        """Keep the state as it is; the ones before are of another phase."""
        self._snapshots.clear()
        self._good_steps = 0
        self._keep()

    def passed(self) -> None:
        """A step went well."""
        self._good_steps += 1
        if self._good_steps % self._config.snapshot_every == 0:
            self._seen.clear()
            self._keep()

    def roll_back(self, what: str) -> float:
        """Return to a good state.

        Returns:
            What to multiply the rates by.

        Raises:
            TrainingError: it was the last of too many in a row.
        """
        self._seen.append(what)
        self.rollbacks += 1
        # Not the step of the snapshot, but as many good steps to the next one.
        self._good_steps = 0
        if len(self._seen) > 1 and len(self._snapshots) > 1:
            self._snapshots.pop()
        self._restore(self._snapshots[-1])
        if len(self._seen) >= self._config.max_rollbacks:
            raise TrainingError(
                f"training diverged {len(self._seen)} times without {self._config.snapshot_every} "
                f"good steps between: {'; '.join(self._seen)}. The weights are those of the last "
                "good state. Lower the learning rates or raise gradient_penalty, and check the data"
            )
        warnings.warn(
            f"{what}; rolled back to the last good state, with rates multiplied by "
            f"{self._config.rate_factor:g}",
            stacklevel=2,
        )
        return self._config.rate_factor

    def _keep(self) -> None:
        self._snapshots.append(copied(self._state()))

    def state_dict(self) -> dict[str, Any]:
        """Counts and snapshots, by reference: a run that resumes rolls back as if never stopped."""
        return {
            "snapshots": list(self._snapshots),
            "good_steps": self._good_steps,
            "seen": list(self._seen),
            "rollbacks": self.rollbacks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._good_steps, self.rollbacks = state["good_steps"], state["rollbacks"]
        self._seen = list(state["seen"])
        self._snapshots.clear()
        self._snapshots.extend(copied(state["snapshots"]))


def copied(value: Any) -> Any:
    """Plain data and tensors, copied; several times faster than ``deepcopy`` of many tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        new = copy.copy(value)  # an OrderedDict of a module keeps its versions as an attribute
        new.update((name, copied(part)) for name, part in value.items())
        return new
    if isinstance(value, list | tuple):
        return type(value)(copied(part) for part in value)
    return value
