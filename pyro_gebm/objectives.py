"""KALE and its relatives as pure functions of energies: what the Trainer maximises and minimises.

All energies are tensors (B,): minus a log density up to a constant, so low where data is likely.
Source: Arbel, Zhou and Gretton, *Generalized Energy Based Models*, ICLR 2021 (arXiv 2003.05033).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_gebm._checks import check_dims


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
    _check_energies("energy_base", energy_base)
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
    _check_energies("energy_real", energy_real)
    _check_energies("energy_base", energy_base)
    _check_log_partition(log_partition)
    _check_linear_from(linear_from)
    weights = _exp_then_linear(-(energy_base + log_partition), linear_from)
    return 1 - (energy_real + log_partition).mean() - weights.mean()


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
    _check_energies("energy_real", energy_real)
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
    _check_energies("energy_base", energy_base)
    _check_log_partition(log_partition)
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


def gradient_penalty(
    energy_fn: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Zero-centred gradient penalty E|∇E(x̂)|² on interpolates x̂ = u x + (1 - u) y, u ~ U(0, 1).

    One u per datum; the squared norm is summed over the datum's entries and averaged over the
    batch (the smoothness penalty of Arbel et al., 2021, on the interpolates of Gulrajani et al.,
    2017). Differentiable in the parameters of the energy; no gradient goes into real or fake.

    Args:
        energy_fn: data (B, ...) -> energies (B,) or (B, 1), without coupling between the data.
        real: data (B, ...).
        fake: samples of the base (B, ...), of the same shape.
        generator: source of u; the global one if None.

    Returns:
        A scalar tensor ().

    Raises:
        ValueError: if the two shapes differ or hold no datum.

    Example:
        >>> import torch
        >>> x = torch.ones(5, 1, 2, 2)
        >>> gradient_penalty(lambda x: (3 * x).sum(dim=(1, 2, 3)), x, -x).item()
        36.0
    """
    if real.shape != fake.shape or real.ndim == 0 or real.shape[0] == 0:
        raise ValueError(
            f"gradient_penalty: expected real and fake of one shape (B, ...), B >= 1; got "
            f"{tuple(real.shape)} and {tuple(fake.shape)}; draw as many samples as there are data"
        )
    source = generator.device if generator is not None else real.device
    u = torch.rand(real.shape[0], dtype=real.dtype, device=source, generator=generator)
    u = u.to(real.device).reshape(-1, *[1] * (real.ndim - 1))
    with torch.enable_grad():
        points = (u * real + (1 - u) * fake).detach().requires_grad_()
        # An energy that ignores x has gradient zero: a legitimate model, not an error.
        (grad,) = torch.autograd.grad(
            energy_fn(points).sum(), points, create_graph=True, materialize_grads=True
        )
        return grad.reshape(grad.shape[0], -1).square().sum(dim=1).mean()


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
    _check_energies("energy_base", energy_base)
    shares = torch.softmax(-energy_base, dim=0)
    inverse = shares.square().sum() * energy_base.shape[0]
    return inverse.clamp(min=1).reciprocal()  # B Σ p² >= 1 but for rounding


def _exp_then_linear(exponent: Tensor, linear_from: float) -> Tensor:
    """Return exp(t), continued by its tangent above ``linear_from``."""
    if linear_from == math.inf:
        return exponent.exp()
    # No torch.where: its unused branch would overflow, and 0 * inf is a NaN gradient. Here the
    # exponential only ever sees the clamped value, and the excess is exactly 0 below the join.
    capped = exponent.clamp(max=linear_from)
    return capped.exp() * (1 + (exponent - capped))


def _check_energies(name: str, energies: Tensor) -> None:
    check_dims(name, energies, 1, "(B,)")
    if energies.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one energy; got an empty batch")


def _check_log_partition(log_partition: Tensor | float) -> None:
    if isinstance(log_partition, Tensor):
        check_dims("log_partition", log_partition, 0, "(), one constant for the whole batch")


def _check_linear_from(linear_from: float) -> None:
    if not linear_from > -math.inf:
        raise ValueError(
            f"linear_from: expected a number, or inf for never linear; got {linear_from!r}"
        )
