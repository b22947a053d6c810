"""KALE and its relatives as pure functions of energies: what the Trainer maximises and minimises.

All energies are tensors (B,): minus a log density up to a constant, so low where data is likely.
Source: Arbel, Zhou and Gretton, *Generalized Energy Based Models*, ICLR 2021 (arXiv 2003.05033).
"""

import math

import torch
from torch import Tensor

from pyro_gebm.objectives.checks import check_energies, check_log_partition


def log_partition_estimate(energy_base: Tensor) -> Tensor:
    """Estimate log Z from one batch of the base: log (1/B) Σ exp(-E(x_i)), x_i ~ B_θ.

    This is the naive estimate: its exponential is unbiased for Z = E_B[exp(-E)], but the logarithm
    is biased low and its variance grows with the spread of E. It never overflows.

    Args:
        energy_base: energies (B,) of samples of the base.

    Returns:
        A scalar tensor (); differentiable.

    Raises:
        ValueError: if the energies are not a non-empty tensor (B,).

    Example:
        >>> import torch
        >>> log_partition_estimate(torch.full((4,), 10.0))
        tensor(-10.)
    """
    check_energies("energy_base", energy_base)
    return torch.logsumexp(-energy_base, dim=0) - math.log(energy_base.shape[0])


def kale_bound(
    energy_real: Tensor,
    energy_base: Tensor,
    log_partition: Tensor | float,
    *,
    linear_from: float = math.inf,
) -> Tensor:
    """Lower bound of the generalised log-likelihood, to be maximised over energy and constant.

    F(E, c) = -E_P[E + c] - E_B[φ(-(E + c))] + 1 with φ = exp (eq. 8 of arXiv 2003.05033).
    F(E, c) ≤ L(E) (``donsker_varadhan``), tight exactly at c = log Z; ∂F/∂c = -1 + e^{-c} Z;
    sup F is KALE(P, B). Adding a to E and subtracting it from c changes nothing.

    With a finite ``linear_from`` = a, φ goes on as its tangent e^a (1 + t - a) for t > a, which
    keeps value and gradient finite for the very low energies of an early step. The tangent lies
    under exp, so F is then **no longer a lower bound** while any -(E + c) exceeds a; e^6 (a = 6)
    is a weight that a healthy run does not reach.

    Args:
        energy_real: energies (B,) of data.
        energy_base: energies (B',) of samples of the base.
        log_partition: c, a scalar tensor () or a number.
        linear_from: where φ turns linear, in nats; ``inf`` for never.

    Returns:
        A scalar tensor (), in nats.

    Raises:
        ValueError: if a shape is wrong, or ``linear_from`` is NaN or -inf.

    Example:
        >>> import torch
        >>> real, base = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0])
        >>> kale_bound(real, base, -2.0)  # c = log Z: equal to donsker_varadhan(real, base)
        tensor(1.5000)
    """
    return -kale_loss(energy_real, energy_base, log_partition, linear_from=linear_from)


def kale_loss(
    energy_real: Tensor,
    energy_base: Tensor,
    log_partition: Tensor | float,
    *,
    linear_from: float = math.inf,
) -> Tensor:
    """-``kale_bound``, to be minimised, without the operations that its signs would cost.

    Example:
        >>> import torch
        >>> real, base = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0])
        >>> kale_loss(real, base, -2.0)
        tensor(-1.5000)
    """
    check_energies("energy_real", energy_real)
    check_energies("energy_base", energy_base)
    check_log_partition(log_partition)
    _check_linear_from(linear_from)
    weights = _exp_then_linear(-(energy_base + log_partition), linear_from)
    return (energy_real + log_partition).mean() + weights.mean() - 1


def donsker_varadhan(energy_real: Tensor, energy_base: Tensor) -> Tensor:
    """Generalised log-likelihood of the data, with the log-partition of this batch.

    L(E) = -E_P[E] - log E_B[exp(-E)] (Donsker and Varadhan, 1975; eq. 6 of arXiv 2003.05033).
    Its supremum over E is KL(P || B); the batch estimate of the logarithm is biased.

    Args:
        energy_real: energies (B,) of data.
        energy_base: energies (B',) of samples of the base.

    Returns:
        A scalar tensor (), in nats.

    Raises:
        ValueError: if a shape is wrong.

    Example:
        >>> import torch
        >>> donsker_varadhan(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0]))
        tensor(1.5000)
    """
    check_energies("energy_real", energy_real)
    return -energy_real.mean() - log_partition_estimate(energy_base)


def base_loss_amortized(
    energy_base: Tensor, log_partition: Tensor | float, *, linear_from: float = math.inf
) -> Tensor:
    """Loss of the base under the amortised constant: the part of F(E, c) that depends on θ.

    -(1/B) Σ φ(-(E(G_θ(z_i)) + c)): minimising it minimises KALE, and its gradient in θ is that of
    ``kale_bound``, (1/B) Σ exp(-(E_i + c)) ∇_θ E_i (envelope theorem, eq. 11 of arXiv 2003.05033).
    No gradient flows into c, which belongs to the energy.

    Args:
        energy_base: energies (B,) of samples of the base that carry the gradient of θ.
        log_partition: c, a scalar tensor () or a number.
        linear_from: where φ turns linear, in nats (see ``kale_bound``).

    Returns:
        A scalar tensor ().

    Raises:
        ValueError: if a shape is wrong, or ``linear_from`` is NaN or -inf.

    Example:
        >>> import torch
        >>> energy = torch.tensor([0.0, 0.0], requires_grad=True)
        >>> base_loss_amortized(energy, 0.0).backward()
        >>> energy.grad  # the weights exp(-(E + c)) / B
        tensor([0.5000, 0.5000])
    """
    check_energies("energy_base", energy_base)
    check_log_partition(log_partition)
    _check_linear_from(linear_from)
    constant = log_partition.detach() if isinstance(log_partition, Tensor) else log_partition
    return -_exp_then_linear(-(energy_base + constant), linear_from).mean()


def base_loss_self_normalized(energy_base: Tensor) -> Tensor:
    """Loss of the base without a constant: -log (1/B) Σ exp(-E(G_θ(z_i))).

    Its gradient in θ is Σ softmax(-E)_i ∇_θ E_i: the weights of ``base_loss_amortized``,
    normalised within the batch, so they sum to one whatever the constant; biased by O(1/B).

    Args:
        energy_base: energies (B,) of samples of the base that carry the gradient of θ.

    Returns:
        A scalar tensor ().

    Raises:
        ValueError: if the energies are not a non-empty tensor (B,).

    Example:
        >>> import torch
        >>> energy = torch.tensor([3.0, 3.0], requires_grad=True)
        >>> base_loss_self_normalized(energy).backward()
        >>> energy.grad
        tensor([0.5000, 0.5000])
    """
    return -log_partition_estimate(energy_base)


def _exp_then_linear(exponent: Tensor, linear_from: float) -> Tensor:
    """Return exp(t), continued by its tangent above ``linear_from``."""
    if linear_from == math.inf:
        return exponent.exp()
    # No torch.where: its unused branch would overflow, and 0 * inf is a NaN gradient. Here the
    # exponential only ever sees the clamped value, and the excess is exactly 0 below the join.
    capped = exponent.clamp(max=linear_from)
    return capped.exp() * (1 + (exponent - capped))


def _check_linear_from(linear_from: float) -> None:
    if not linear_from > -math.inf:
        raise ValueError(
            f"linear_from: expected a number, or inf for never linear; got {linear_from!r}"
        )
