"""What energy and base descend: KALE, its relative with the batch's log Z, and the baselines.

A loss is a mean over its part of the data, so that the parts of a batch (micro-batches, processes)
average to the loss of the whole; the log Z of the whole batch comes as an argument.
"""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from pyro_gebm.objectives import (
    base_loss_amortized,
    contrastive_loss,
    gan_base_loss,
    gan_energy_loss,
    kale_loss,
    self_normalized_weights,
    wgan_base_loss,
    wgan_energy_loss,
)
from pyro_gebm.training.config import TrainConfig


class Method(ABC):
    """A pair of losses. ``log_z`` is log mean exp(-E) over the whole batch of the base."""

    learns_constant: bool = False
    """The energy's loss depends on c."""
    couples: bool = False
    """The energy's loss depends on ``log_z``, so that its parts need it beforehand."""
    couples_base: bool = False
    """So does the base's."""
    penalty_center: float = 0.0
    """Slope that the penalty draws the energy to."""

    @abstractmethod
    def energy_loss(self, real: Tensor, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """Loss of the energy from its values on data (B,) and on the base (B',)."""

    @abstractmethod
    def base_loss(self, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """Loss of the base from the energies (B',) of its samples."""


@final
class Kale(Method):
    """-F(E, c), and either loss of the base."""

    learns_constant = True

    def __init__(self, linear_from: float, base_loss: str) -> None:
        self._linear_from = linear_from
        self.couples_base = base_loss == "self_normalized"

    def energy_loss(self, real: Tensor, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """-F(E, c)."""
        return kale_loss(real, base, c, linear_from=self._linear_from)

    def base_loss(self, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """The part of F that the base moves, or -log Z of the batch."""
        if self.couples_base:
            return -_batch_log_z(base, log_z)
        return base_loss_amortized(base, c, linear_from=self._linear_from)


@final
class DonskerVaradhan(Method):
    """-L(E) with the log Z of the batch."""

    couples = couples_base = True

    def energy_loss(self, real: Tensor, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """E_P[E] + log Z."""
        return real.mean() + _batch_log_z(base, log_z)

    def base_loss(self, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """-log Z."""
        return -_batch_log_z(base, log_z)


@final
class Gan(Method):
    """Logistic and non-saturating; the discriminator's logit is -E."""

    def energy_loss(self, real: Tensor, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """Cross-entropy."""
        return gan_energy_loss(real, base)

    def base_loss(self, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """-log D of the samples."""
        return gan_base_loss(base)


@final
class Wgan(Method):
    """Wasserstein; the critic is -E."""

    penalty_center = 1.0

    def energy_loss(self, real: Tensor, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """Difference of means."""
        return wgan_energy_loss(real, base)

    def base_loss(self, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """Mean energy of the samples."""
        return wgan_base_loss(base)


@final
class Contrastive(Method):
    """Negative log likelihood of the model, whose own samples take the place of the base's.

    Where they come from latent chains at ν, the base's loss is F's gradient in θ itself: the
    mean energy of G(z), z ~ ν, every weight 1 (envelope theorem).
    """

    def energy_loss(self, real: Tensor, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """E_P[E] - E_Q[E]."""
        return contrastive_loss(real, base)

    def base_loss(self, base: Tensor, c: Tensor, log_z: Tensor) -> Tensor:
        """E_Q[E]."""
        return base.mean()


def method_of(config: TrainConfig) -> Method:
    """The method that the settings name."""
    if config.objective == "kale":
        return Kale(config.linear_from, config.base_loss)
    others: dict[str, type[Method]] = {
        "donsker_varadhan": DonskerVaradhan,
        "gan": Gan,
        "wgan": Wgan,
        "contrastive": Contrastive,
    }
    return others[config.objective]()


def _batch_log_z(energy: Tensor, log_z: Tensor) -> Tensor:
    """log Z of a batch as a mean over one of its parts, whose gradient is that part's share.

    ∇ log Z = -Σ exp(-E_i - log Z)/B ∇E_i.
    """
    weights = self_normalized_weights(energy, log_z, len(energy))
    return log_z - (weights * (energy - energy.detach())).sum()
