"""The leapfrog step against the theory of symplectic integrators, and what rests on it."""

import pytest
import torch
from helpers import Counting, gumbel, make_tuning, normal, rng

from pyro_gebm.mcmc import MALA, Langevin, Tuning
from pyro_gebm.mcmc.integrators import leapfrog, trajectory
from pyro_gebm.mcmc.kernel import evaluate, hamiltonian

INVERSE_MASS = torch.tensor([0.5, 2.0], dtype=torch.float64)


def coupled(z):
    """Anharmonic, with cross terms."""
    return normal(z) + 0.25 * z[:, 0].pow(4) + 0.5 * z[:, 0] * z[:, 1].sin()


def phase(chains=64):
    noise = torch.randn(2, chains, 2, generator=rng(), dtype=torch.float64)
    return evaluate(coupled, noise[0]), noise[1] * INVERSE_MASS.rsqrt()


def integrate(state, momentum, step, num_steps, potential_fn=coupled):
    tuning = Tuning(torch.ones_like(state.potential_energy), INVERSE_MASS)
    for _ in range(num_steps):
        signed = torch.full_like(state.potential_energy, step)
        state, momentum = leapfrog(potential_fn, state, momentum, signed, tuning)
    return state, momentum


@pytest.mark.parametrize("backward", ["negative step", "negated momentum"])
def test_reversible(backward):
    start, momentum = phase()
    end, last = integrate(start, momentum, 0.1, 50)
    assert (end.z - start.z).abs().min() > 1e-4
    if backward == "negative step":
        back, again = integrate(end, last, -0.1, 50)
    else:
        back, again = integrate(end, -last, 0.1, 50)
        again = -again
    assert (back.z - start.z).abs().max() < 1e-10
    assert (again - momentum).abs().max() < 1e-10


def test_second_order():
    # The energy error over a fixed time is O(ε²): halving ε divides it by 4.
    start, momentum = phase()
    before = hamiltonian(start.potential_energy, momentum, INVERSE_MASS)

    def error(step):
        end, last = integrate(start, momentum, step, round(2.0 / step))
        after = hamiltonian(end.potential_energy, last, INVERSE_MASS)
        return (after - before).abs().mean()

    ratios = [error(step) / error(step / 2) for step in (0.1, 0.05)]
    assert all(3.5 < ratio < 4.5 for ratio in ratios)


def test_volume_is_preserved():
    # The determinant of the map (z, r) -> (z', r') by central differences, error O(h²) = 1e-10.
    def flow(point):
        end, momentum = integrate(evaluate(coupled, point[:, :2]), point[:, 2:], 0.3, 3)
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
    tuning = make_tuning(start.z, step)
    end, last = leapfrog(normal, start, momentum, tuning.step_size, tuning)
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


def test_trajectory_reports_the_energies():
    start, _ = phase(2000)
    tuning = make_tuning(start.z, 0.4, INVERSE_MASS)
    end, info = trajectory(coupled, start, tuning, 3, rng(5))
    # The momentum of the start follows from the first half step, which only it decides.
    once, _ = trajectory(coupled, start, tuning, 1, rng(5))
    half = (once.z - start.z) / (0.4 * INVERSE_MASS)
    momentum = half + 0.2 * start.z_grad
    kinetic = 0.5 * (momentum.square() * INVERSE_MASS).sum(-1)
    torch.testing.assert_close(info.hamiltonian, start.potential_energy + kinetic)
    # r ~ N(0, M), so rᵀM⁻¹r ~ χ²(2): mean 2, standard deviation 2.
    assert abs(2 * kinetic.mean() - 2) < 4 * 2 / 2000**0.5
    assert abs(momentum.var(0) * INVERSE_MASS - 1).max() < 4 * (2 / 2000) ** 0.5
    last = integrate(start, momentum, 0.4, 3)
    torch.testing.assert_close(end.z, last[0].z)
    after = hamiltonian(last[0].potential_energy, last[1], INVERSE_MASS)
    torch.testing.assert_close(info.energy_error, after - info.hamiltonian)
    torch.testing.assert_close(info.accept_prob, (-info.energy_error).exp().clamp(max=1))


def proposals(kernel, potential_fn, step_size, chains=200):
    z = torch.randn(chains, 3, generator=rng(1), dtype=torch.float64)
    start = evaluate(potential_fn, z)
    tuning = make_tuning(z, step_size)
    proposed, _ = trajectory(potential_fn, start, tuning, 1, rng(2))
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
    step = 0.3
    start, proposed, _ = proposals(Langevin(), gumbel, step, chains=20_000)
    noise = (proposed.z - start.z + step**2 / 2 * start.z_grad) / step
    # Standard normal: mean within 4/√n, variance within 4·√(2/n).
    assert noise.mean(0).abs().max() < 4 / 20_000**0.5
    assert (noise.var(0) - 1).abs().max() < 4 * (2 / 20_000) ** 0.5
