"""Training settings, checked when they are made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, final

from pyro_gebm._checks import check_choice, check_count, check_in_range
from pyro_gebm.training.parts import ChainsConfig, GuardConfig, ReplayConfig

OBJECTIVES = ("kale", "donsker_varadhan", "gan", "wgan", "contrastive")
BASE_LOSSES = ("self_normalized", "amortized")
MODES = ("both", "energy", "base")
UPDATES = ("alternating", "joint")
SCHEDULES = ("cosine", "constant")
CONSTANTS = ("gradient", "closed_form")
PENALTY_POINTS = ("interpolates", "data", "both")
PRECISIONS = ("float32", "bfloat16", "float16")


@final
@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training: alternation, then a refit of the energy alone.

    The alternation leaves the energy nearly flat, because the base absorbs what the energy
    finds. The refit on the frozen base, with a smaller penalty, is where the gain is.

    Args:
        base_steps: steps of the base (rounds, in mode "energy").
        energy_steps: steps of the energy and of c before each of them.
        boost_steps: energy steps before the first base step instead of ``energy_steps``; 0
            for none. The authors use 100.
        boost_every: base steps from one such boost to the next; 0 for one at the start only.
        num_latents: latents per base step.
        latents_per_datum: latents per datum of an energy step.
        mode: of the alternation: "both", or "energy" on a frozen base, or "base" under a frozen
            energy. The refit trains the energy in any.
        update: "alternating", or "joint": the base's step shares the draws, the forward pass
            and the parameters of the last energy step before it (one stage).
        objective: "kale" (F with the learned c), "donsker_varadhan" (log Z of the batch), or a
            baseline on the same networks: "gan" (logistic, non-saturating), "wgan"
            (Wasserstein, one-centred penalty), "contrastive" (an EBM in data space by
            persistent contrastive divergence; the base is left alone).
        base_loss: "self_normalized" weights softmax(-E), or, for "kale", "amortized" ones
            exp(-(E + c))/B.
        energy_lr: Adam's rate for the energy.
        base_lr: Adam's rate for the base.
        log_partition_lr: Adam's rate for c.
        log_partition_update: "gradient" of F, or "closed_form": the maximiser of F over c
            given the batch, which is its log Z.
        log_partition_memory: for "closed_form", the share of e^c that an update keeps; 0 takes
            the batch's log Z alone.
        log_partition_start: base samples whose log Z is c before the first step; 0 leaves c.
        momentum: Adam's β₁ during the alternation.
        schedule: "cosine" takes the rates to zero over each phase, "constant" does not.
        gradient_penalty: weight of the penalty on the energy's slope at the start; 0 for none.
        gradient_penalty_end: its weight at the end of the alternation; geometric between.
        penalty_every: energy steps per evaluation of the penalty, whose weight is
            multiplied by it.
        penalty_points: where: "interpolates" between data and base, "data" (R1), or "both".
        energy_l2: weight of the mean square over data and base, of E + c, or of E alone where
            c has no gradient.
        linear_from: exponent from which exp goes on linearly in the bound (nats), so that
            gradients stay finite; inf for never.
        ema_decay: decay of the running average of the generator's weights, which takes the
            generator's place at the end; 0 for none.
        refit_steps: energy steps of the refit; 0 for none.
        refit_lr: Adam's rate for the energy in the refit.
        refit_gradient_penalty: weight of the penalty in the refit.
        refit_patience: held-out evaluations without a better bound that end the refit, which
            then returns to the best; 0 for never. Needs held-out data.
        evaluate_every: steps from one held-out evaluation to the next; 0 for none.
        evaluation_samples: base samples of a held-out evaluation.
        precision: "bfloat16" or "float16" run the networks under autocast; c, sums of
            exponentials and penalties stay in the parameters' precision.
        accumulate: parts a batch is worked through in, to save memory; the step is the same.
        compile: compile the networks with ``torch.compile`` (not inside penalties, whose
            second derivative it cannot take); falls back with a warning where it cannot.
        channels_last: keep images and convolutions in that memory format.
        chains: latent chains at ν instead of draws from η; ``None`` for none.
        replay: chains of "contrastive".
        guard: when to roll back and when to stop.

    Raises:
        ValueError: a setting is out of its range, or two do not go together.

    Example:
        >>> TrainConfig(base_steps=100).refit_steps
        1500
        >>> TrainConfig(base_lr=-1.0)
        Traceback (most recent call last):
        ValueError: base_lr: expected a number in (0.0, inf]; got -1.0
    """

    base_steps: int = 3500
    energy_steps: int = 2
    boost_steps: int = 0
    boost_every: int = 0
    num_latents: int = 128
    latents_per_datum: int = 1
    mode: str = "both"
    update: str = "alternating"
    objective: str = "kale"
    base_loss: str = "self_normalized"
    energy_lr: float = 5e-4
    base_lr: float = 2e-4
    log_partition_lr: float = 5e-3
    log_partition_update: str = "gradient"
    log_partition_memory: float = 0.0
    log_partition_start: int = 0
    momentum: float = 0.5
    schedule: str = "cosine"
    gradient_penalty: float = 1.0
    gradient_penalty_end: float = 0.1
    penalty_every: int = 2
    penalty_points: str = "interpolates"
    energy_l2: float = 0.0
    linear_from: float = 6.0
    ema_decay: float = 0.998
    refit_steps: int = 1500
    refit_lr: float = 1e-4
    refit_gradient_penalty: float = 0.1
    refit_patience: int = 0
    evaluate_every: int = 250
    evaluation_samples: int = 8192
    precision: str = "float32"
    accumulate: int = 1
    compile: bool = False
    channels_last: bool = False
    chains: ChainsConfig | None = None
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        for name in _COUNTS_FROM_0:
            check_count(name, getattr(self, name), minimum=0)
        for name in _COUNTS_FROM_1:
            check_count(name, getattr(self, name))
        for name in _RATES:
            check_in_range(name, getattr(self, name), 0.0, open_low=True)
        for name in _WEIGHTS:
            check_in_range(name, getattr(self, name), 0.0)
        for name in _DECAYS:
            check_in_range(name, getattr(self, name), 0.0, 0.9999999)
        if self.linear_from != math.inf:
            check_in_range("linear_from", self.linear_from, 0.0)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, kinds in _PARTS.items():
            _check_part(name, getattr(self, name), kinds)
        _check_together(self)
        _check_used(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """The settings that ``dataclasses.asdict`` wrote, back from JSON.

        Raises:
            ValueError: a name is unknown or a value out of its range.

        Example:
            >>> from dataclasses import asdict
            >>> TrainConfig.from_dict(asdict(TrainConfig())) == TrainConfig()
            True
        """
        given = dict(settings)
        for name, kinds in _PARTS.items():
            if isinstance(given.get(name), Mapping):
                given[name] = _made(name, kinds[0], given[name])
        made: TrainConfig = _made("settings", cls, given)
        return made


_COUNTS_FROM_0 = (
    "base_steps",
    "refit_steps",
    "boost_steps",
    "boost_every",
    "log_partition_start",
    "refit_patience",
    "evaluate_every",
)
_COUNTS_FROM_1 = (
    "energy_steps",
    "num_latents",
    "latents_per_datum",
    "penalty_every",
    "evaluation_samples",
    "accumulate",
)
_RATES = ("energy_lr", "base_lr", "log_partition_lr", "refit_lr")
_WEIGHTS = ("gradient_penalty", "gradient_penalty_end", "refit_gradient_penalty", "energy_l2")
_DECAYS = ("momentum", "ema_decay", "log_partition_memory")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "objective": OBJECTIVES,
    "base_loss": BASE_LOSSES,
    "mode": MODES,
    "update": UPDATES,
    "schedule": SCHEDULES,
    "log_partition_update": CONSTANTS,
    "penalty_points": PENALTY_POINTS,
    "precision": PRECISIONS,
    "compile": (False, True),
    "channels_last": (False, True),
}
_PARTS: dict[str, tuple[type[Any], ...]] = {
    "chains": (ChainsConfig, type(None)),
    "replay": (ReplayConfig,),
    "guard": (GuardConfig,),
}


def _made(name: str, kind: type[Any], given: Mapping[str, Any]) -> Any:
    unknown = sorted(set(given) - {known.name for known in fields(kind)})
    if unknown:
        raise ValueError(f"{name}: expected those of {kind.__name__}; got unknown {unknown}")
    return kind(**given)


def _check_part(name: str, value: object, kinds: tuple[type[Any], ...]) -> None:
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: expected {names}; got {value!r}")


def _check_together(config: TrainConfig) -> None:
    """Refuse what has no meaning together."""
    alternating = config.update == "alternating"
    both = config.mode == "both" and config.objective != "contrastive"
    if not alternating and (not both or config.accumulate > 1 or config.chains is not None):
        raise ValueError(
            "update: expected 'alternating' with mode 'energy' or 'base', objective "
            f"'contrastive', accumulate > 1 or chains; got {config.update!r}"
        )
    if config.objective in {"gan", "wgan", "contrastive"} and config.chains is not None:
        raise ValueError(
            "chains: expected None with a baseline's objective, which does not sample its "
            f"model's latent law; got objective {config.objective!r}"
        )
    if config.objective == "contrastive" and config.mode != "energy":
        raise ValueError(
            "mode: expected 'energy' with objective 'contrastive', which has no base to train; "
            f"got {config.mode!r}"
        )
    if config.gradient_penalty > 0 and config.gradient_penalty_end == 0:
        raise ValueError(
            "gradient_penalty_end: expected a number > 0, which a geometric fall can reach; "
            "got 0; set gradient_penalty=0 for no penalty"
        )


def _check_used(config: TrainConfig) -> None:
    """Refuse what would be silently ignored."""
    objective, chains = config.objective, config.chains
    if config.refit_patience and not config.evaluate_every:
        raise ValueError("refit_patience: expected 0 with evaluate_every=0, which never looks")
    if config.boost_every and not config.boost_steps:
        raise ValueError("boost_every: expected 0 with boost_steps=0, for there is no boost")
    if objective != "kale" and config.base_loss != "self_normalized":
        raise ValueError(
            f"base_loss: expected 'self_normalized' with objective {objective!r}, whose base has "
            f"a loss of its own; got {config.base_loss!r}"
        )
    if objective != "kale" and config.log_partition_update != "gradient":
        raise ValueError(
            f"log_partition_update: expected 'gradient' with objective {objective!r}, which "
            f"leaves c alone; got {config.log_partition_update!r}"
        )
    follows = config.log_partition_update == "closed_form" or (chains and chains.use_for != "base")
    if config.log_partition_memory and not follows:
        raise ValueError(
            "log_partition_memory: expected 0 with log_partition_update='gradient'; got "
            f"{config.log_partition_memory}"
        )
    if chains is not None and config.mode == "energy" and chains.use_for == "base":
        raise ValueError("chains: expected use_for='energy' with mode 'energy'; got 'base'")
    if objective == "contrastive" and config.latents_per_datum > 1:
        raise ValueError(
            "latents_per_datum: expected 1 with objective 'contrastive', which has one chain per "
            f"datum; got {config.latents_per_datum}"
        )
