"""Weights of parts of a batch against the loss of the whole batch, in float64."""

import pytest
import torch

from pyro_gebm.objectives import (
    base_loss_self_normalized,
    log_partition_estimate,
    self_normalized_weights,
)

PARTS = [1, 4, 2, 6]


def energies(theta):
    """E(G_θ(z)) for x = θ₀ + θ₁ z and E(x) = x²/2 + sin 3x at thirteen fixed z."""
    z = torch.linspace(-2, 2, sum(PARTS), dtype=torch.float64)
    x = theta[0] + theta[1] * z
    return 0.5 * x.square() + (3 * x).sin()


@pytest.mark.parametrize("as_number", [False, True])
def test_parts_add_up_to_the_gradient_of_the_whole_batch(as_number):
    start = torch.tensor([0.4, 1.3], dtype=torch.float64)
    whole = start.clone().requires_grad_()
    base_loss_self_normalized(energies(whole)).backward()
    log_z = log_partition_estimate(energies(start))
    theta = start.clone().requires_grad_()
    for i in range(len(PARTS)):  # each part with a graph and a backward of its own
        part = energies(theta).split(PARTS)[i]
        constant = log_z.item() if as_number else log_z
        weights = self_normalized_weights(part, constant, sum(PARTS))
        (weights * part).sum().backward()
    torch.testing.assert_close(theta.grad, whole.grad, rtol=1e-13, atol=1e-15)


def test_weights_are_the_softmax_and_carry_no_gradient():
    energy = torch.tensor([0.3, -1.0, 2.0], requires_grad=True)
    weights = self_normalized_weights(energy, log_partition_estimate(energy), 3)
    torch.testing.assert_close(weights, torch.softmax(-energy, dim=0).detach())
    assert not weights.requires_grad


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_weights_of_huge_energies_do_not_overflow(shift):
    energy = torch.tensor([0.0, 0.0, 2e4, 0.0]) + shift
    weights = self_normalized_weights(energy, log_partition_estimate(energy), 4)
    # log Z near 1e4 is rounded by up to half of 2^-10 in float32: a common factor of the weights.
    expected = torch.tensor([1.0, 1.0, 0.0, 1.0]) / 3
    torch.testing.assert_close(weights, expected, rtol=2**-11 * 1.01, atol=0)


GOOD = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: self_normalized_weights(torch.zeros(3, 1), 0.0, 3), r"energy_base: .*\(3, 1\)"),
        (
            lambda: self_normalized_weights(GOOD, torch.zeros(1), 3),
            r"log_partition_of_batch: .*\(1,\)",
        ),
        (lambda: self_normalized_weights(GOOD, 0.0, 2), "total: expected .* >= 3; got 2"),
        (lambda: self_normalized_weights(GOOD, 0.0, 3.5), r"total: expected .*; got 3\.5"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
