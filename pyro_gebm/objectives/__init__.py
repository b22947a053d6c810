"""Objectives as pure functions of tensors: KALE and its relatives, baselines, penalties, weights.

All energies are tensors (B,): minus a log density up to a constant, so low where data is likely.
"""

from pyro_gebm.objectives.adversarial import (
    contrastive_loss,
    gan_base_loss,
    gan_energy_loss,
    wgan_base_loss,
    wgan_energy_loss,
)
from pyro_gebm.objectives.kale import (
    base_loss_amortized,
    base_loss_self_normalized,
    donsker_varadhan,
    kale_bound,
    kale_loss,
    log_partition_estimate,
)
from pyro_gebm.objectives.penalties import (
    energy_l2,
    gradient_penalty,
    interpolate,
    slope_penalty,
)
from pyro_gebm.objectives.weights import importance_ess, self_normalized_weights

__all__ = [
    "base_loss_amortized",
    "base_loss_self_normalized",
    "contrastive_loss",
    "donsker_varadhan",
    "energy_l2",
    "gan_base_loss",
    "gan_energy_loss",
    "gradient_penalty",
    "importance_ess",
    "interpolate",
    "kale_bound",
    "kale_loss",
    "log_partition_estimate",
    "self_normalized_weights",
    "slope_penalty",
    "wgan_base_loss",
    "wgan_energy_loss",
]
