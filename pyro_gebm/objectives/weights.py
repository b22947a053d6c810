"""Importance weights exp(-E) of base samples: how even they are, and one part of a batch's."""

import torch
from torch import Tensor

from pyro_gebm._checks import check_count
from pyro_gebm.objectives.checks import check_energies, check_log_partition


def importance_ess(energy_base: Tensor) -> Tensor:
    """Effective share of a base batch under the weights w = exp(-E): (Σ w)² / (B Σ w²).

    1 where the energy is flat (the model is its base), 1/B where one sample carries all weight
    (Kish, 1965). Computed from softmax(-E), so no energy overflows.

    Args:
        energy_base: energies (B,) of samples of the base.

    Returns:
        A scalar tensor () in (0, 1].

    Raises:
        ValueError: if the energies are not a non-empty tensor (B,).

    Example:
        >>> import torch
        >>> importance_ess(torch.tensor([0.0, 0.0, 1e4, 1e4]))
        tensor(0.5000)
    """
    check_energies("energy_base", energy_base)
    shares = torch.softmax(-energy_base, dim=0)
    inverse = shares.square().sum() * energy_base.shape[0]
    return inverse.clamp(min=1).reciprocal()  # B Σ p² >= 1 but for rounding


def self_normalized_weights(
    energy_base: Tensor, log_partition_of_batch: Tensor | float, total: int
) -> Tensor:
    """Weights of one part of a batch of base samples, normalised over the whole batch.

    w_i = exp(-E_i - log Z̄)/n with Z̄ = (1/n) Σ exp(-E_j) over all n samples of the batch, which
    is softmax(-E)_i. So Σ w_i ∇E_i, added up over all parts of a batch (micro-batches,
    processes), is the gradient of ``base_loss_self_normalized`` of the whole batch, while each
    part is differentiated alone: its loss is ``(weights * energy_base).sum()``.

    Args:
        energy_base: energies (B,) of the samples of this part.
        log_partition_of_batch: log Z̄, ``log_partition_estimate`` over the whole batch, a scalar
            tensor () or a number.
        total: n, the number of samples of the whole batch.

    Returns:
        Weights (B,), detached; over the whole batch they sum to one.

    Raises:
        ValueError: if a shape is wrong, or ``total`` is no whole number >= B.

    Example:
        >>> import torch
        >>> from pyro_gebm.objectives import log_partition_estimate
        >>> energy = torch.tensor([0.0, 0.0, 1e4, 0.0])
        >>> log_z = log_partition_estimate(energy)
        >>> [self_normalized_weights(part, log_z, 4) for part in energy.split(2)]
        [tensor([0.3333, 0.3333]), tensor([0.0000, 0.3333])]
    """
    check_energies("energy_base", energy_base)
    check_log_partition(log_partition_of_batch, name="log_partition_of_batch")
    check_count("total", total, minimum=len(energy_base))
    return torch.exp(-energy_base - log_partition_of_batch).detach() / total
