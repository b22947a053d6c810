"""The gradient penalty against closed forms for quadratic energies."""

import math

import pytest
import torch

from pyro_gebm.objectives import gradient_penalty


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("column", [False, True])
def test_penalty_of_a_quadratic_energy_on_equal_pairs(column):
    # x̂ = x whatever u: the penalty of E = a |x|²/2 is a² mean |x|², its slope 2 a mean |x|².
    x = torch.randn(6, 2, 3, 4, dtype=torch.float64, generator=generator())
    a = double(1.7).requires_grad_()

    def energy(points):
        values = 0.5 * a * points.square().sum(dim=(1, 2, 3))
        return values[:, None] if column else values

    penalty = gradient_penalty(energy, x, x.clone())
    mean_square = x.square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(penalty, 1.7**2 * mean_square)
    (slope,) = torch.autograd.grad(penalty, a)
    torch.testing.assert_close(slope, 2 * 1.7 * mean_square)


def test_penalty_averages_over_the_segment():
    # E = x'Ax/2, u uniform: E|A(y + u d)|² = |Ay|² + <Ay, Ad> + |Ad|²/3 with d = x - y.
    matrix, x, y = double([[2.0, 0.5], [0.5, 1.0]]), double([1.0, -2.0]), double([0.5, 3.0])
    ay, ad = matrix @ y, matrix @ (x - y)
    expected = (ay.square().sum() + ay @ ad + ad.square().sum() / 3).item()
    u = torch.rand(200_000, 1, dtype=torch.float64, generator=generator(1))
    spread = (ay + u * ad).square().sum(dim=1).std().item()
    many = 40_000
    got = gradient_penalty(
        lambda p: 0.5 * ((p @ matrix) * p).sum(dim=1),
        x.expand(many, 2),
        y.expand(many, 2),
        generator=generator(2),
    )
    assert abs(got.item() - expected) < 4 * spread / math.sqrt(many)


def test_interpolates_take_one_weight_per_datum_and_stay_on_the_segment():
    seen = []

    def energy(points):
        seen.append(points.detach())
        return points.sum(dim=(1, 2))

    gradient_penalty(energy, torch.ones(500, 2, 3), torch.zeros(500, 2, 3), generator=generator())
    weights = seen[0].flatten(1)
    assert torch.equal(weights, weights[:, :1].expand(-1, 6))
    assert weights.min() >= 0 and weights.max() <= 1
    assert len(weights[:, 0].unique()) > 490


def test_penalty_draws_from_its_generator_only_and_sends_no_gradient_to_data():
    real, fake = torch.randn(9, 2, requires_grad=True), torch.randn(9, 2, requires_grad=True)
    state = torch.get_rng_state()
    scale = torch.tensor(1.5, requires_grad=True)
    first, second = (
        gradient_penalty(
            lambda p: scale * p.square().sum(dim=1), real, fake, generator=generator(3)
        )
        for _ in range(2)
    )
    assert first.item() == second.item()
    assert torch.equal(torch.get_rng_state(), state)
    first.backward()
    assert real.grad is None and fake.grad is None


def test_penalty_of_an_energy_that_ignores_its_input_is_zero():
    level = torch.tensor(2.0, requires_grad=True)
    assert gradient_penalty(lambda p: level.expand(len(p)), torch.ones(4, 2), torch.ones(4, 2)) == 0


@pytest.mark.parametrize("shape", [(3, 2), (4, 1), (0, 2)])
def test_other_shapes_are_refused(shape):
    real = torch.ones(4, 2) if shape[0] else torch.ones(0, 2)
    with pytest.raises(ValueError, match=rf"one shape .* and \({shape[0]}, {shape[1]}\)"):
        gradient_penalty(lambda p: p.sum(1), real, torch.ones(shape))
