"""Losses of the baselines: GAN, Wasserstein GAN and EBM, as functions of energies.

A discriminator's logit, or a critic, is minus the energy: energies are low where data is likely.
"""

import torch.nn.functional as F
from torch import Tensor

from pyro_gebm.objectives.checks import check_energies


def gan_energy_loss(energy_real: Tensor, energy_base: Tensor) -> Tensor:
    """Logistic loss of the energy as a discriminator, D = sigmoid(-E); minimised over E.

    E_P[softplus(E)] + E_B[softplus(-E)] = -E_P[log D] - E_B[log(1 - D)] (Goodfellow et al.,
    2014). At the optimum -E = log p/b, the log density ratio of data and base: exp(-E) has mean
    one under the base, so the GEBM made of it has log Z = 0, and its law is the data's. A flat
    energy E = 0 has loss 2 log 2.

    Args:
        energy_real: energies (B,) of data.
        energy_base: energies (B',) of samples of the base.

    Returns:
        A scalar tensor (), in nats.

    Raises:
        ValueError: if a shape is wrong.

    Example:
        >>> import torch
        >>> gan_energy_loss(torch.zeros(3), torch.zeros(2))
        tensor(1.3863)
    """
    check_energies("energy_real", energy_real)
    check_energies("energy_base", energy_base)
    return F.softplus(energy_real).mean() + F.softplus(-energy_base).mean()


def gan_base_loss(energy_base: Tensor) -> Tensor:
    """Non-saturating loss of the base against ``gan_energy_loss``; minimised over the base.

    E_B[softplus(E)] = -E_B[log D] with D = sigmoid(-E) (Goodfellow et al., 2014, section 3).
    Each sample is pulled with weight sigmoid(E) = 1 - D, which stays near 1 far from the data.

    Args:
        energy_base: energies (B,) of samples of the base that carry the gradient of θ.

    Returns:
        A scalar tensor (), in nats.

    Raises:
        ValueError: if the energies are not a non-empty tensor (B,).

    Example:
        >>> import torch
        >>> energy = torch.tensor([0.0, 100.0], requires_grad=True)
        >>> gan_base_loss(energy).backward()
        >>> energy.grad  # sigmoid(E) / B
        tensor([0.2500, 0.5000])
    """
    check_energies("energy_base", energy_base)
    return F.softplus(energy_base).mean()


def wgan_energy_loss(energy_real: Tensor, energy_base: Tensor) -> Tensor:
    """Loss of the energy as minus a Wasserstein critic: E_P[E] - E_B[E]; minimised over E.

    Over energies of slope at most 1 its minimum is -W₁(P, B) (Arjovsky, Chintala and Bottou,
    2017); ``slope_penalty`` with center 1 stands for that bound. -E is no log density ratio at
    the optimum: the GEBM made of it has the critic's scale, and a log Z to be estimated.

    Args:
        energy_real: energies (B,) of data.
        energy_base: energies (B',) of samples of the base.

    Returns:
        A scalar tensor ().

    Raises:
        ValueError: if a shape is wrong.

    Example:
        >>> import torch
        >>> wgan_energy_loss(torch.tensor([0.0, 1.0]), torch.tensor([2.0]))
        tensor(-1.5000)
    """
    check_energies("energy_real", energy_real)
    check_energies("energy_base", energy_base)
    return energy_real.mean() - energy_base.mean()


def wgan_base_loss(energy_base: Tensor) -> Tensor:
    """Loss of the base against ``wgan_energy_loss``: E_B[E]; minimised over the base.

    The part of W₁ that depends on θ (Arjovsky, Chintala and Bottou, 2017, theorem 3).

    Args:
        energy_base: energies (B,) of samples of the base that carry the gradient of θ.

    Returns:
        A scalar tensor ().

    Raises:
        ValueError: if the energies are not a non-empty tensor (B,).

    Example:
        >>> import torch
        >>> wgan_base_loss(torch.tensor([1.0, 2.0]))
        tensor(1.5000)
    """
    check_energies("energy_base", energy_base)
    return energy_base.mean()


def contrastive_loss(energy_real: Tensor, energy_model: Tensor) -> Tensor:
    """Contrast of data and samples of the model itself: E_P[E] - E_Q[E]; minimised over E.

    Not the negative log-likelihood of the EBM Q ∝ exp(-E), but its gradient: ∇_ψ(E_P[E] + log Z)
    = E_P[∇_ψ E] - E_Q[∇_ψ E] when the samples, which carry no gradient, are from Q (Hinton,
    2002; with persistent chains Tieleman, 2008). The value itself is 0 at Q = P for any E, so it
    says nothing about the fit.

    Args:
        energy_real: energies (B,) of data.
        energy_model: energies (B',) of samples of the model.

    Returns:
        A scalar tensor ().

    Raises:
        ValueError: if a shape is wrong.

    Example:
        >>> import torch
        >>> contrastive_loss(torch.tensor([0.0, 1.0]), torch.tensor([0.5]))
        tensor(0.)
    """
    check_energies("energy_real", energy_real)
    check_energies("energy_model", energy_model)
    return energy_real.mean() - energy_model.mean()
