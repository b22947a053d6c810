"""Theorems about KALE and its model, on problems whose answers are known otherwise.

Elsewhere: F <= L on any sample and equality at c = log Z (test_objectives.py, test_held_out.py);
an RKHS ball against independent solvers (test_rkhs.py); the likelihood of a flow base under a
constant and a free energy (test_flow_training.py); known log Z (test_partition.py, and learned
in test_training.py).
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import rng
from scipy import optimize, stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.flows import NSF, NVP, FreeEnergy, flow_base, log_prob
from pyro_gebm.nets import FourierEnergy
from pyro_gebm.objectives import (
    base_loss_amortized,
    base_loss_self_normalized,
    donsker_varadhan,
    gan_energy_loss,
)
from pyro_gebm.training import solve_energy

torch.set_num_threads(1)


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def quantile_grid(distribution, num):
    """Equally likely quantiles: a deterministic stand-in for a huge sample, (num,)."""
    return double(distribution.ppf((np.arange(num) + 0.5) / num))


def reweighted(real, base, log_weights):
    """L of the base samples with weights: -E_P[E] - log Σ q exp(-E), energies (n,) and (m,)."""
    return -real.mean() - torch.logsumexp(log_weights.log_softmax(0) - base, 0)


# --- the envelope theorem ------------------------------------------


@pytest.mark.parametrize(("num_features", "radius"), [(24, 2.0), (6, 1e3)], ids=["binds", "free"])
@pytest.mark.parametrize("loss", ["self-normalised", "amortised", "under ν"])
def test_the_gradient_of_kale_in_the_base_is_that_at_the_solved_energy(num_features, radius, loss):
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    energy = FourierEnergy((2,), num_features=num_features, radius=radius).double()
    real, z = 0.6 * normal(150, 2) + 0.5, normal(120, 2, seed=1)
    start = nn.utils.parameters_to_vector(generator.parameters()).detach()

    def kale(parameters):
        nn.utils.vector_to_parameters(parameters, generator.parameters())
        with torch.no_grad():
            return solve_energy(energy, real, generator(z), tolerance=1e-9)

    def gradient_at(solution):
        energy.set_weight(solution.weights)
        on_base = energy(generator(z))
        if loss == "amortised":
            value = base_loss_amortized(on_base, solution.log_partition)
        elif loss == "under ν":  # E_ν[(∂G)ᵀ ∇E], ν ∝ η exp(-E∘G), as the paper has it
            value = ((-on_base).softmax(0).detach() * on_base).sum()
        else:
            value = base_loss_self_normalized(on_base)
        parts = torch.autograd.grad(value, list(generator.parameters()))
        return torch.cat([part.flatten() for part in parts])

    gradient = gradient_at(kale(start))
    assert gradient.norm() > 0.05
    step = 1e-4
    for direction in nn.functional.normalize(normal(3, len(start), seed=2), dim=1):
        ahead, behind = kale(start + step * direction), kale(start - step * direction)
        slope = (ahead.value - behind.value) / (2 * step)
        assert slope == pytest.approx(float(gradient @ direction), rel=1e-4, abs=1e-5)


# --- what is left after one energy ------------------------------------------


def best_of_hull(objective, num):
    """Maximum over the simplex of a concave function of (num,), with its Frank-Wolfe gap."""

    def value_and_gradient(weights):
        weights = double(weights).requires_grad_()
        value = -objective(weights)
        return value.item(), torch.autograd.grad(value, weights)[0].numpy()

    found = optimize.minimize(
        value_and_gradient,
        np.full(num, 1 / num),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * num,
        constraints=[{"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like}],
        options={"maxiter": 500, "ftol": 1e-15},
    )
    gradient = value_and_gradient(found.x)[1]
    gap = float(found.x @ gradient - gradient.min())  # no point of the hull is better by more
    return -found.fun, double(found.x), gap


@pytest.mark.parametrize("seed", range(8))
def test_the_model_is_never_farther_than_its_base_in_a_random_convex_class(seed):
    # The class: the convex hull of a few random networks, which need not contain 0.
    torch.manual_seed(seed)
    num = 2 + seed % 5
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, num)).double()
    scale = [1.0, 5.0, 25.0][seed % 3]
    real, base = 0.6 * normal(80, 2, seed=seed) + 0.5, normal(100, 2, seed=100 + seed)
    with torch.no_grad():
        on_real, on_base = scale * net(real), scale * net(base)
    kale, best, gap = best_of_hull(lambda a: donsker_varadhan(on_real @ a, on_base @ a), num)
    tilt = -(on_base @ best)
    left, _, gap_left = best_of_hull(lambda a: reweighted(on_real @ a, on_base @ a, tilt), num)
    assert gap < 1e-5 and gap_left < 1e-5
    assert left <= kale + gap


def test_a_class_that_is_not_convex_can_leave_more():
    # Two energies u ± v: v spoils either, and cancels in their sum, which is -log dP/dB.
    p, b = double([0.4, 0.4, 0.1, 0.1]), double([0.25] * 4)
    u, v = -(p / b).log() / 2, double([1.0, -1.0, 1.0, -1.0])
    real = torch.repeat_interleave(torch.arange(4), torch.tensor([4, 4, 1, 1]))
    kale = max(donsker_varadhan(e[real], e) for e in (u + v, u - v))
    left = max(reweighted(e[real], e, -(u + v)) for e in (u + v, u - v))
    assert kale + left == pytest.approx(float((p * (p / b).log()).sum()))
    assert left > kale + 0.1


def test_a_linear_class_matches_moments_and_leaves_nothing():
    # Quadratic energies on N(0, 1): the model is the normal with P's mean and variance, and KALE
    # is that normal's KL from the base, whatever P is.
    real = torch.cat([0.3 * normal(300) - 0.6, 0.2 * normal(200, seed=1) + 0.9])
    base = quantile_grid(stats.norm, 200_001)
    mean, variance = real.mean(), real.var(correction=0)
    coefficients = torch.stack([-mean / variance, (1 / variance - 1) / 2]).requires_grad_()

    def energy(x, theta):
        return torch.stack([x, x.square()], 1) @ theta

    kale = donsker_varadhan(energy(real, coefficients), energy(base, coefficients))
    truth = (variance + mean**2 - 1 - variance.log()) / 2
    assert kale.item() == pytest.approx(truth.item(), abs=1e-5)
    # L is concave in θ, so that a zero gradient is the maximum.
    assert torch.autograd.grad(kale, coefficients)[0].abs().max() < 1e-4
    tilt = -energy(base, coefficients).detach()
    other = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    left = reweighted(energy(real, other), energy(base, other), tilt)
    assert left.abs() < 1e-12
    assert torch.autograd.grad(left, other)[0].abs().max() < 1e-4


# --- KALE = 0 if and only if P = B ------------------------------------------


def two_clumps(a):
    """Quantiles of an equal mixture of N(±a, 1 - a²), which has mean 0 and variance 1; its KL."""
    s = math.sqrt(1 - a**2)

    def cdf(x):
        return (stats.norm.cdf(x, -a, s) + stats.norm.cdf(x, a, s)) / 2

    grid = np.linspace(-8, 8, 20_001)
    points = double(np.interp((np.arange(800) + 0.5) / 800, cdf(grid), grid))
    p = (stats.norm.pdf(grid, -a, s) + stats.norm.pdf(grid, a, s)) / 2
    kl = float(np.trapezoid(p * (np.log(p) - stats.norm.logpdf(grid)), grid))
    return points, kl


def test_a_rich_class_tells_apart_what_a_poor_one_cannot_and_attains_kl():
    real, kl = two_clumps(0.85)
    base = quantile_grid(stats.norm, len(real))
    moments = torch.stack([base, base.square()], 1)
    slope = moments.mean(0) - torch.stack([real, real.square()], 1).mean(0)
    assert slope.abs().max() < 5e-3  # of L in a quadratic energy at 0: no such energy helps
    values = []
    for radius in (0.3, 3.0, 30.0):
        energy = FourierEnergy((1,), num_features=32, bandwidth=0.5, radius=radius).double()
        values.append(solve_energy(energy, real[:, None], base[:, None], tolerance=1e-6).value)
    assert 0.02 < values[0] < values[1] < values[2]
    assert values[2] == pytest.approx(kl, rel=0.03)  # the quantiles end where the laws go on


def test_between_samples_of_one_law_kale_falls_as_one_over_n():
    # KALE is then half of δᵀC⁻¹δ, with δ the difference of the mean features of two samples of n,
    # whose covariance is 2C/n: n KALE is χ² with as many degrees as features (Wilks).
    features, repeats = 6, 40
    energy = FourierEnergy((2,), num_features=features, bandwidth=0.8, radius=1e3).double()
    for n in (400, 1600):
        scaled = []
        for seed in range(repeats):
            x = normal(2 * n, 2, seed=seed)
            scaled.append(n * solve_energy(energy, x[:n], x[n:]).value)
        error = math.sqrt(2 * features / repeats)
        assert abs(np.mean(scaled) - features) < 4 * error


# --- special cases of the model ------------------------------------------


class Constant(nn.Module):
    def forward(self, x):
        return torch.full_like(x[:, 0], 3.0)


@pytest.mark.parametrize("kernel", ["HMC", "MALA"])
@pytest.mark.parametrize("prior", [pg.StandardNormal(1), pg.UniformPrior(1, -1.0, 2.0)])
def test_under_a_constant_energy_samples_of_the_model_are_the_bases(prior, kernel):
    generator = nn.Linear(1, 1)
    with torch.no_grad():
        generator.weight.fill_(2.0)
        generator.bias.fill_(0.5)
    gebm = pg.GEBM(pg.Base(generator, prior), Constant())
    with torch.no_grad():
        gebm.log_partition.fill_(-3.0)
        assert gebm.log_density_ratio(gebm.base.sample(5)).abs().max() < 1e-6
    x = pg.generate(
        gebm,
        1000,
        kernel=kernel,
        num_chains=500,
        warmup_steps=60,
        thinning=20,
        global_moves=None,
        seed=0,
        progress=False,
    )
    law = stats.norm(0.5, 2.0) if isinstance(prior, pg.StandardNormal) else stats.uniform(-1.5, 6.0)
    assert stats.kstest(x[:, 0].numpy(), law.cdf).pvalue > 1e-4


class Bowl(nn.Module):
    """r(x) = |x|²/2 + a network: integrable, with a tail inside that of the bases below."""

    def __init__(self, dim):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, 12), nn.Tanh(), nn.Linear(12, 1))

    def forward(self, x):
        return 0.7 * x.square().sum(-1) + 2 * self.network(x).squeeze(-1)


def grid(dim, half=9.0, num=301):
    """Points (N, dim) of a lattice and the log of a cell's volume."""
    line = torch.linspace(-half, half, num if dim > 1 else 4001, dtype=torch.float64)
    return torch.cartesian_prod(*[line] * dim).reshape(-1, dim), dim * math.log(line[1] - line[0])


def flow_of(kind, dim):
    torch.manual_seed(2)
    made = NVP(dim, transforms=2, hidden=(8,)) if kind == "nvp" else NSF(dim, transforms=2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return flow_base(made.double().eval())


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("kind", ["nvp", "nsf"])
def test_on_a_base_with_a_density_a_free_energy_is_learned_by_maximum_likelihood(kind, dim):
    # L(r + log h) = E_P[log exp(-r)/∫exp(-r)] - E_P[log h], and so are the gradients in r.
    base = flow_of(kind, dim)
    torch.manual_seed(3)
    r = Bowl(dim).double()
    energy, params = FreeEnergy(r, base), list(r.parameters())
    real = 0.7 * normal(500, dim) + 0.3
    torch.manual_seed(4)
    with torch.no_grad():
        shift = log_prob(base, real).mean()

    def value_and_gradient(value):
        return torch.cat([value[None], *(g.flatten() for g in torch.autograd.grad(value, params))])

    points, log_cell = grid(dim)
    log_z = torch.logsumexp(-r(points), 0) + log_cell
    ordinary = value_and_gradient(-r(real).mean() - log_z - shift).detach()
    runs = [
        value_and_gradient(donsker_varadhan(energy(real), energy(base.sample(4000)))).detach()
        for _ in range(12)
    ]
    errors = torch.stack(runs).std(0) / math.sqrt(len(runs))
    off = torch.stack(runs).mean(0) - ordinary
    assert ordinary[1:].norm() > 0.1 > errors.norm()
    assert off[0].abs() < 4 * errors[0]
    assert off.norm() < 3 * errors.norm()  # its square is the expected one of |off|


class Wells(nn.Module):
    """Two unequal ones."""

    def forward(self, x):
        return (2 * (x.square() - 1).square() + 0.5 * x).squeeze(-1)


def test_on_a_base_with_a_density_samples_are_those_of_the_ordinary_ebm():
    base, r = flow_of("nvp", 1), Wells()
    gebm = pg.GEBM(base, FreeEnergy(r, base))
    x = pg.generate(
        gebm, 500, kernel="MALA", num_chains=500, warmup_steps=60, seed=0, progress=False
    )
    points, _ = grid(1)
    cdf = torch.softmax(-r(points), 0).cumsum(0)

    def law(q):
        return np.interp(q, points[:, 0].numpy(), cdf.numpy())

    assert stats.kstest(x[:, 0].double().numpy(), law).pvalue > 1e-4


# --- weak convergence ------------------------------------------


def lines(shift, num=100):
    """Data on x₁ = 0, base samples on x₁ = shift, at the same heights in [0, 1]."""
    height = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return [torch.stack([torch.full_like(height, at), height], 1) for at in (0.0, shift)]


def test_between_parallel_lines_kale_of_a_ball_goes_to_zero_and_jensen_shannon_does_not():
    radius = 10.0
    energy = FourierEnergy((2,), num_features=48, bandwidth=0.5, radius=radius).double()
    shifts = [0.0, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4, 0.6]
    values = [solve_energy(energy, *lines(s), tolerance=1e-7).value for s in shifts]
    assert abs(values[0]) < 1e-12 and values[1] < 0.02 and values[-1] > 5
    # |φ(x) - φ(y)| <= |frequencies · (x - y)|/ℓ √(2/m): L moves by no more than r times that.
    steepest = radius * float(energy.frequencies[:, 0].norm()) / 0.5 * math.sqrt(2 / 48)
    for (s, low), (t, high) in pairwise(zip(shifts, values, strict=True)):
        assert low < high <= low + steepest * (t - s) + 1e-6
    for shift, value in zip(shifts[1:], values[1:], strict=True):
        real, base = lines(shift)
        # Jensen: L(E) <= E_B[E] - E_P[E], at most the radius times the distance of mean features.
        apart = energy.features(base).mean(0) - energy.features(real).mean(0)
        assert value <= radius * apart.norm() + 1e-6
        # 2 log 2 - loss is twice a lower bound of Jensen-Shannon, whose maximum is log 2.
        steep = 100 / shift * (real[:, 0] - shift / 2), 100 / shift * (base[:, 0] - shift / 2)
        jensen_shannon = math.log(2) - gan_energy_loss(*steep).item() / 2
        assert jensen_shannon == pytest.approx(math.log(2), abs=1e-12)
