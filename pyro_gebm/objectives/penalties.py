"""Penalties that keep an energy smooth, or near the log density ratio's scale."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_gebm._checks import check_in_range
from pyro_gebm.objectives.checks import check_energies, check_log_partition


def interpolate(real: Tensor, fake: Tensor, u: Tensor) -> Tensor:
    """Points x̂ = u x + (1 - u) y between data x and samples y, one u per datum.

    Nothing is detached: gradients flow into all three (Gulrajani et al., 2017, whose points are
    drawn with u ~ U(0, 1)).

    Args:
        real: data (B, ...).
        fake: samples (B, ...), of the same shape.
        u: shares of the data (B,), in [0, 1]; others extrapolate.

    Returns:
        Points (B, ...).

    Raises:
        ValueError: if the shapes do not match or hold no datum.

    Example:
        >>> import torch
        >>> interpolate(torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0.25, 1.0]))
        tensor([[0.2500, 0.2500, 0.2500],
                [1.0000, 1.0000, 1.0000]])
    """
    _check_pairs("interpolate", real, fake)
    if u.shape != real.shape[:1]:
        raise ValueError(f"u: expected shape ({real.shape[0]},), one per datum; got {(*u.shape,)}")
    share = u.reshape(-1, *[1] * (real.ndim - 1))
    return share * real + (1 - share) * fake


def slope_penalty(
    energy_fn: Callable[[Tensor], Tensor], points: Tensor, *, center: float = 0.0
) -> Tensor:
    """Mean squared distance of the energy's slope from ``center``: E(|∇E(x̂)| - center)².

    With center 0 it is E|∇E(x̂)|², the smoothness penalty of Arbel et al. (2021), and has no
    square root in it; with center 1, the penalty of WGAN-GP (Gulrajani et al., 2017). The norm
    is that of a whole datum. Where the slope is zero the norm has no gradient; the subgradient 0
    is taken there, so a datum with zero slope counts in the value and pulls at no parameter.

    Differentiable in the parameters of the energy; no gradient goes into the points.

    Args:
        energy_fn: data (B, ...) -> energies (B,) or (B, 1), without coupling between the data.
        points: where the slope is taken (B, ...).
        center: slope without penalty, >= 0, in nats per unit of the data.

    Returns:
        A scalar tensor ().

    Raises:
        ValueError: if there is no point, or ``center`` is negative or not finite.

    Example:
        >>> import torch
        >>> slope_penalty(lambda x: 3 * x.sum(dim=1), torch.ones(5, 4), center=1.0)
        tensor(25.)
    """
    check_in_range("center", center, 0.0)
    if points.ndim == 0 or points.shape[0] == 0:
        raise ValueError(
            f"points: expected shape (B, ...), B >= 1; got {tuple(points.shape)}; give a single "
            "datum as a batch of one with [None]"
        )
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        # An energy that ignores x has gradient zero: a legitimate model, not an error.
        (grad,) = torch.autograd.grad(
            energy_fn(points).sum(), points, create_graph=True, materialize_grads=True
        )
        slopes = grad.reshape(grad.shape[0], -1)
        if center == 0:
            return slopes.square().sum(dim=1).mean()
        # Not square().sum().sqrt(): vector_norm's backward is 0 at 0 where that of sqrt is inf.
        norms: Tensor = torch.linalg.vector_norm(slopes, dim=1)
        return (norms - center).square().mean()


def gradient_penalty(
    energy_fn: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Zero-centred gradient penalty E|∇E(x̂)|² on interpolates x̂ = u x + (1 - u) y, u ~ U(0, 1).

    ``slope_penalty`` on ``interpolate``: one u per datum; the squared norm is summed over the
    datum's entries and averaged over the batch (the smoothness penalty of Arbel et al., 2021, on
    the interpolates of Gulrajani et al., 2017). Differentiable in the parameters of the energy;
    no gradient goes into real or fake.

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
    _check_pairs("gradient_penalty", real, fake)
    source = generator.device if generator is not None else real.device
    u = torch.rand(real.shape[0], dtype=real.dtype, device=source, generator=generator)
    return slope_penalty(energy_fn, interpolate(real.detach(), fake.detach(), u.to(real.device)))


def energy_l2(energy_real: Tensor, energy_base: Tensor, log_partition: Tensor | float) -> Tensor:
    """Mean square of the log density ratio -E - c, half on data and half on the base.

    (E_P[(E + c)²] + E_B[(E + c)²])/2: Du and Mordatch (2019, arXiv 1903.08689) penalise E², which
    fixes the energy's free constant; with c = log Z it is log dQ/dB, without one. Adding a to E
    and subtracting it from c changes nothing. The gradient flows into c too: detach c to leave
    it to the objective that makes it log Z.

    Args:
        energy_real: energies (B,) of data.
        energy_base: energies (B',) of samples of the base.
        log_partition: c, a scalar tensor () or a number.

    Returns:
        A scalar tensor (), in nats².

    Raises:
        ValueError: if a shape is wrong.

    Example:
        >>> import torch
        >>> energy_l2(torch.tensor([1.0, 3.0]), torch.tensor([2.0]), -1.0)
        tensor(1.5000)
    """
    check_energies("energy_real", energy_real)
    check_energies("energy_base", energy_base)
    check_log_partition(log_partition)
    real = (energy_real + log_partition).square().mean()
    base = (energy_base + log_partition).square().mean()
    return (real + base) / 2


def _check_pairs(caller: str, real: Tensor, fake: Tensor) -> None:
    if real.shape != fake.shape or real.ndim == 0 or real.shape[0] == 0:
        raise ValueError(
            f"{caller}: expected real and fake of one shape (B, ...), B >= 1; got "
            f"{tuple(real.shape)} and {tuple(fake.shape)}; draw as many samples as there are data"
        )
