"""Losses of GANs, Wasserstein GANs and EBMs against exact laws on a finite set, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance

from pyro_gebm.objectives import (
    contrastive_loss,
    gan_base_loss,
    gan_energy_loss,
    log_partition_estimate,
    wgan_base_loss,
    wgan_energy_loss,
)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# P and B as multisets of the atoms 0, 1, 2, so that means over a batch are expectations.
REAL = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 3, 6]))
BASE = torch.repeat_interleave(torch.arange(3), torch.tensor([4, 4, 2]))
P, B = double([0.1, 0.3, 0.6]), double([0.4, 0.4, 0.2])


# --- logistic ------------------------------------------


def test_gan_losses_are_cross_entropies_of_the_logit_minus_e():
    real, base = double([0.3, -2.0, 5.0]), double([1.0, -0.5])
    by_classes = F.binary_cross_entropy_with_logits(
        -real, torch.ones_like(real)
    ) + F.binary_cross_entropy_with_logits(-base, torch.zeros_like(base))
    torch.testing.assert_close(gan_energy_loss(real, base), by_classes)
    fooled = F.binary_cross_entropy_with_logits(-base, torch.ones_like(base))
    torch.testing.assert_close(gan_base_loss(base), fooled)


def test_best_gan_energy_is_the_log_density_ratio_and_has_log_z_zero():
    best = -(P / B).log()
    energy = best.clone().requires_grad_()
    loss = gan_energy_loss(energy[REAL], energy[BASE])
    (slope,) = torch.autograd.grad(loss, energy)
    assert slope.abs().max() < 1e-15
    middle = (P + B) / 2
    js = 0.5 * ((P * (P / middle).log()).sum() + (B * (B / middle).log()).sum())
    assert loss.item() == pytest.approx(2 * math.log(2) - 2 * js.item(), abs=1e-14)
    assert abs(log_partition_estimate(best[BASE]).item()) < 1e-15
    for step in 0.01 * torch.eye(3, dtype=torch.float64):  # convex, so a minimum
        assert gan_energy_loss((best + step)[REAL], (best + step)[BASE]) > loss + 1e-7


def test_gan_base_loss_pulls_with_one_minus_d():
    energy = double([-3.0, 0.2, 40.0]).requires_grad_()
    gan_base_loss(energy).backward()
    torch.testing.assert_close(energy.grad, 1 / (1 + (-energy.detach()).exp()) / 3)


def test_gan_losses_of_huge_energies_are_finite_and_exact():
    far = torch.tensor([1e4, -1e4])
    assert gan_energy_loss(far, far).item() == 1e4
    assert gan_base_loss(far).item() == 5e3


# --- Wasserstein ------------------------------------------


def test_best_energy_of_slope_one_attains_the_wasserstein_distance():
    real, base = double([-1.0, 0.2, 0.9, 3.0]), double([-0.4, 0.0, 0.5, 1.0, 1.1])
    knots = torch.cat([real, base]).sort().values
    cdf = [(sample[:, None] <= knots[:-1]).double().mean(0) for sample in (real, base)]
    # W₁ = ∫|F_P - F_B|, attained by the E of slope sign(F_P - F_B) between the knots.
    rises = (cdf[0] - cdf[1]).sign() * knots.diff()
    heights = torch.cat([double([0.0]), rises.cumsum(0)])

    def energy(x):
        return heights[torch.searchsorted(knots, x)]

    distance = wasserstein_distance(real.numpy(), base.numpy())
    assert wgan_energy_loss(energy(real), energy(base)).item() == pytest.approx(
        -distance, abs=1e-14
    )


def test_wgan_losses_are_means_with_opposite_pulls_at_the_base():
    real, base = double([1.0, 2.0]), double([5.0, 0.0, -1.0, 2.0]).requires_grad_()
    assert wgan_energy_loss(real, base.detach()).item() == 0.0
    assert wgan_energy_loss(real, base.detach() + 1).item() == -1.0
    (up,) = torch.autograd.grad(wgan_energy_loss(real, base), base)
    (down,) = torch.autograd.grad(wgan_base_loss(base), base)
    assert torch.equal(up, torch.full_like(base, -0.25))
    assert torch.equal(down, torch.full_like(base, 0.25))
    assert wgan_base_loss(base).item() == 1.5


# --- the EBM ------------------------------------------


def test_contrastive_gradient_is_that_of_the_exact_likelihood():
    # E_ψ = -log b + ψ₀ x + ψ₁ x²: the model at ψ = 0 is b, of which BASE is an exact sample.
    atoms = torch.arange(3, dtype=torch.float64)

    def energy(psi):
        return -B.log() + psi[0] * atoms + psi[1] * atoms.square()

    def negative_log_likelihood(psi):
        return (P * energy(psi)).sum() + torch.logsumexp(-energy(psi), dim=0)

    psi = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    contrastive_loss(energy(psi)[REAL], energy(psi)[BASE]).backward()
    for i, step in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
        rise = negative_log_likelihood(step) - negative_log_likelihood(-step)
        assert psi.grad[i].item() == pytest.approx(rise.item() / 2e-5, rel=1e-8)


# --- refusals ------------------------------------------

GOOD, COLUMN, EMPTY = torch.zeros(3), torch.zeros(3, 1), torch.zeros(0)


@pytest.mark.parametrize(
    ("loss", "second"),
    [
        (gan_energy_loss, "energy_base"),
        (wgan_energy_loss, "energy_base"),
        (contrastive_loss, "energy_model"),
    ],
)
def test_losses_of_the_energy_refuse_other_shapes(loss, second):
    with pytest.raises(ValueError, match=r"energy_real: .*\(3, 1\)"):
        loss(COLUMN, GOOD)
    with pytest.raises(ValueError, match=rf"{second}: .*\(3, 1\)"):
        loss(GOOD, COLUMN)
    with pytest.raises(ValueError, match=f"{second}: .*empty"):
        loss(GOOD, EMPTY)


@pytest.mark.parametrize("loss", [gan_base_loss, wgan_base_loss])
def test_losses_of_the_base_refuse_other_shapes(loss):
    with pytest.raises(ValueError, match=r"energy_base: .*\(3, 1\)"):
        loss(COLUMN)
    with pytest.raises(ValueError, match=r"energy_base: .*empty"):
        loss(EMPTY)
