"""Settings of a training's optional parts: the guard, latent chains, chains in data space."""

import math
from dataclasses import dataclass
from typing import final

from pyro_gebm._checks import check_choice, check_count, check_in_range

CHAIN_USES = ("base", "energy", "both")


@final
@dataclass(frozen=True)
class GuardConfig:
    """When training is rolled back to its last good state, and when it stops.

    Args:
        snapshot_every: steps between snapshots, kept in memory.
        max_rollbacks: rollbacks in a row (without a new snapshot between) that stop training.
        rate_factor: what every learning rate is multiplied by at a rollback.
        max_energy_gap: |mean E over the base - mean E over the data| beyond which the energy
            has exploded, in nats; inf for no limit.

    Raises:
        ValueError: a setting is out of its range.
    """

    snapshot_every: int = 50
    max_rollbacks: int = 3
    rate_factor: float = 0.5
    max_energy_gap: float = 1e4

    def __post_init__(self) -> None:
        check_count("guard.snapshot_every", self.snapshot_every)
        check_count("guard.max_rollbacks", self.max_rollbacks)
        check_in_range("guard.rate_factor", self.rate_factor, 0.0, 1.0, open_low=True)
        if self.max_energy_gap != math.inf:
            check_in_range("guard.max_energy_gap", self.max_energy_gap, 0.0, open_low=True)


@final
@dataclass(frozen=True)
class ChainsConfig:
    """Short latent chains at the model's law ν that take the place of draws from η in training.

    Args:
        steps: MALA transitions before each use.
        use_for: "base", "energy" or "both" updates.
        persistent: chains go on from where they were, instead of from η.
        target_accept_prob: what the step size is adapted to.

    Raises:
        ValueError: a setting is out of its range.
    """

    steps: int = 5
    use_for: str = "base"
    persistent: bool = False
    target_accept_prob: float = 0.6

    def __post_init__(self) -> None:
        check_count("chains.steps", self.steps)
        check_choice("chains.use_for", self.use_for, CHAIN_USES)
        check_choice("chains.persistent", self.persistent, (False, True))
        check_in_range("chains.target_accept_prob", self.target_accept_prob, 0.01, 0.99)


@final
@dataclass(frozen=True)
class ReplayConfig:
    """Langevin chains in data space, for ``objective="contrastive"``.

    Args:
        size: positions that are kept.
        steps: Langevin steps before each use.
        step_size: γ of x' = x - γ ∇E(x) + noise ξ.
        noise: standard deviation of a step's noise; √(2γ) samples exp(-E) itself.
        restart_probability: share of chains that start again from N(0, I).

    Raises:
        ValueError: a setting is out of its range.
    """

    size: int = 4096
    steps: int = 20
    step_size: float = 0.01
    noise: float = 0.14142135
    restart_probability: float = 0.05

    def __post_init__(self) -> None:
        check_count("replay.size", self.size)
        check_count("replay.steps", self.steps)
        check_in_range("replay.step_size", self.step_size, 0.0, open_low=True)
        check_in_range("replay.noise", self.noise, 0.0)
        check_in_range("replay.restart_probability", self.restart_probability, 0.0, 1.0)
