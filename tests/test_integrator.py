"""The leapfrog step against the theory of symplectic integrators, and what rests on it."""

import pytest
import torch
from helpers import Counting, gumbel, make_tuning, normal, rng

from pyro_gebm.mcmc import HMC, MALA, Langevin
from pyro_gebm.mcmc.integrators import leapfrog, trajectory
from pyro_gebm.mcmc.kernel import evaluate, kinetic_energy
from pyro_gebm.mcmc.random import normal as normal_noise

INVERSE_MASS = torch.tensor([0.5, 2.0], dtype=torch.float64)


def coupled(z):
    """Anharmonic, with cross terms."""
    return normal(z) + 0.25 * z[:, 0].pow(4) + 0.5 * z[:, 0] * z[:, 1].sin()


def phase(chains=64):
    noise = torch.randn(2, chains, 2, generator=rng(), dtype=torch.float64)
    return evaluate(coupled, noise[0]), noise[1]


def integrate(state, momentum, step, num_steps, potential_fn=coupled, curvature=None):
    strides = make_tuning(state.z, step, INVERSE_MASS, curvature).strides()
    for _ in range(num_steps):
        state, momentum = leapfrog(potential_fn, state, momentum, strides.drift, strides.kick)
    return state, momentum


def test_scaled_momenta_are_those_of_the_mass_matrix():
    # r ← r - ε/2 ∇U, z ← z + ε M⁻¹r, r ← r - ε/2 ∇U, with r = M^(1/2) p (Neal 2011, (5.18)).
    start, scaled = phase()
    end, last = integrate(start, scaled, 0.3, 1)
    half = scaled * INVERSE_MASS.rsqrt() - 0.15 * start.z_grad
    torch.testing.assert_close(end.z, start.z + 0.3 * INVERSE_MASS * half)
    torch.testing.assert_close(last * INVERSE_MASS.rsqrt(), half - 0.15 * end.z_grad)
    strides = make_tuning(start.z, 0.3, INVERSE_MASS).strides()
    for length in strides[:2]:
        torch.testing.assert_close(length, 0.3 * INVERSE_MASS.sqrt().expand(64, 2))


@pytest.mark.parametrize("curvature", [None, 1.5])
@pytest.mark.parametrize("backward", ["negative step", "negated momentum"])
def test_reversible(backward, curvature):
    start, momentum = phase()
    end, last = integrate(start, momentum, 0.1, 50, curvature=curvature)
    assert (end.z - start.z).abs().min() > 1e-4
    if backward == "negative step":
        back, again = integrate(end, last, -0.1, 50, curvature=curvature)
    else:
        back, again = integrate(end, -last, 0.1, 50, curvature=curvature)
        again = -again
    assert (back.z - start.z).abs().max() < 1e-10
    assert (again - momentum).abs().max() < 1e-10


@pytest.mark.parametrize("curvature", [None, 1.5])
def test_second_order(curvature):
    # The energy error over a fixed time is O(ε²): halving ε divides it by 4.
    start, momentum = phase()
    before = start.potential_energy + kinetic_energy(momentum)

    def error(step):
        end, last = integrate(start, momentum, step, round(2.0 / step), coupled, curvature)
        after = end.potential_energy + kinetic_energy(last)
        return (after - before).abs().mean()

    ratios = [error(step) / error(step / 2) for step in (0.1, 0.05)]
    assert all(3.5 < ratio < 4.5 for ratio in ratios)


@pytest.mark.parametrize("curvature", [None, 1.5])
def test_volume_is_preserved(curvature):
    # The determinant of the map (z, r) -> (z', r') by central differences, error O(h²) = 1e-10.
    def flow(point):
        start = evaluate(coupled, point[:, :2])
        end, momentum = integrate(start, point[:, 2:], 0.3, 3, coupled, curvature)
        return torch.cat([end.z, momentum], -1)

    point = torch.tensor([0.3, -0.8, 1.1, 0.4], dtype=torch.float64)
    nudges = 1e-5 * torch.eye(4, dtype=torch.float64)
    jacobian = (flow(point + nudges) - flow(point - nudges)) / 2e-5
    assert abs(torch.linalg.det(jacobian) - 1) < 1e-7
    assert (jacobian - torch.eye(4)).abs().max() > 0.5


def test_harmonic_oscillator_in_closed_form():
    start = evaluate(normal, torch.tensor([[0.7, -0.2]], dtype=torch.float64))
    momentum = torch.tensor([[0.4, 1.3]], dtype=torch.float64)
    step = 0.6
    strides = make_tuning(start.z, step).strides()
    end, last = leapfrog(normal, start, momentum, strides.drift, strides.kick)
    cosine = 1 - step**2 / 2
    torch.testing.assert_close(end.z, cosine * start.z + step * momentum)
    torch.testing.assert_close(
        last, cosine * momentum - step * (1 - step**2 / 4) * start.z, rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(end.z_grad, end.z)


def test_one_gradient_a_step():
    potential = Counting(coupled)
    start, momentum = phase()
    integrate(start, momentum, 0.1, 7, potential)
    assert potential.calls == 7


@pytest.mark.parametrize("curvature", [None, 1.5])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_trajectory_is_that_many_steps(num_steps, curvature):
    # Its merged half kicks change nothing but the rounding.
    start, momentum = phase()
    potential = Counting(coupled)
    tuning = make_tuning(start.z, 0.4, INVERSE_MASS, curvature)
    end, last, info = trajectory(potential, start, tuning, num_steps, momentum)
    assert potential.calls == num_steps and (info.num_steps == num_steps).all()
    wanted, wanted_last = integrate(start, momentum, 0.4, num_steps, coupled, curvature)
    for got, want in zip((*end[:3], last), (*wanted[:3], wanted_last), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    before = start.potential_energy + 0.5 * momentum.square().sum(-1)
    after = wanted.potential_energy + 0.5 * wanted_last.square().sum(-1)
    torch.testing.assert_close(info.hamiltonian, before)
    torch.testing.assert_close(info.energy_error, after - before, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(info.accept_prob, (before - after).exp().clamp(max=1))


@pytest.mark.parametrize("kernel", [HMC(), MALA()], ids=["HMC", "MALA"])
def test_momenta_are_fresh_standard_normals(kernel):
    start, _ = phase(2000)
    tuning = make_tuning(start.z, 0.4, INVERSE_MASS)
    generator = rng(5)
    twice = [
        kernel.step(coupled, start, tuning, generator=generator)[1].hamiltonian
        - start.potential_energy
        for _ in range(2)
    ]
    # |p|² ~ χ²(2): mean 2, standard deviation 2; the variance of its square root is 2 - π/2.
    for kinetic in twice:
        assert abs(2 * kinetic.mean() - 2) < 4 * 2 / 2000**0.5
        assert abs((2 * kinetic).sqrt().mean() - (torch.pi / 2) ** 0.5) < 4 * 0.66 / 2000**0.5
    correlation = torch.corrcoef(torch.stack(twice))[0, 1]
    assert abs(correlation) < 4 / 2000**0.5


def proposals(kernel, potential_fn, step_size, chains=200):
    z = torch.randn(chains, 3, generator=rng(1), dtype=torch.float64)
    start = evaluate(potential_fn, z)
    tuning = make_tuning(z, step_size)
    # The first noise that these kernels draw is their momentum.
    momentum = normal_noise(z, rng(2))
    proposed = trajectory(potential_fn, start, tuning, 1, momentum).state
    _, info = kernel.step(potential_fn, start, tuning, generator=rng(2))
    return start, proposed, info


@pytest.mark.parametrize("kernel", [MALA(), Langevin()], ids=["MALA", "Langevin"])
def test_langevin_acceptance_is_the_metropolis_hastings_ratio(kernel):
    # log q(z'|z) = -|z' - z + γ∇U(z)|²/(4γ) with γ = ε²/2, the formula of the literature.
    gamma = 0.9**2 / 2
    start, proposed, info = proposals(kernel, gumbel, 0.9)

    def log_q(end, begin):
        return -(end.z - begin.z + gamma * begin.z_grad).square().sum(-1) / (4 * gamma)

    log_ratio = start.potential_energy - proposed.potential_energy
    log_ratio += log_q(start, proposed) - log_q(proposed, start)
    assert 0.2 < info.accept_prob.mean() < 0.8
    torch.testing.assert_close(info.accept_prob, log_ratio.exp().clamp(max=1), atol=1e-10, rtol=0)


def test_langevin_proposal_has_the_drift_and_noise_of_the_equation():
    # z' = z - γ M⁻¹∇U(z) + √(2γ) M^(-1/2) ξ with γ = ε²/2.
    step, mass = 0.3, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    z = torch.randn(20_000, 3, generator=rng(1), dtype=torch.float64)
    start = evaluate(gumbel, z)
    tuning = make_tuning(z, step, mass)
    end, _ = Langevin().step(gumbel, start, tuning, generator=rng(2))
    noise = (end.z - z + step**2 / 2 * mass * start.z_grad) / (step * mass.sqrt())
    # Standard normal: mean within 4/√n, variance within 4·√(2/n).
    assert noise.mean(0).abs().max() < 4 / 20_000**0.5
    assert (noise.var(0) - 1).abs().max() < 4 * (2 / 20_000) ** 0.5
