"""The Fourier energy against its kernel, and its exact solver against closed forms and others."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

import pyro_gebm as pg
from pyro_gebm.nets import FourierEnergy, MLPGenerator, build
from pyro_gebm.objectives import donsker_varadhan, kale_bound, log_partition_estimate
from pyro_gebm.training.convex import SolverError, solve_energy


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def make(dim=2, **options):
    return FourierEnergy((dim,), **options).double()


def samples(dim=2, num_real=150, num_base=200, seed=0):
    """Two clumps as data, a normal as base."""
    generator = torch.Generator().manual_seed(seed)
    real = 0.4 * torch.randn(num_real, dim, generator=generator, dtype=torch.float64)
    real[::2] += 1.0
    return real, torch.randn(num_base, dim, generator=generator, dtype=torch.float64)


def likelihood(energy, real, base, weight, base_weights=None):
    """L(w), from the definition."""
    on_base = energy.features(base) @ weight
    logs = torch.zeros(len(base)).double() if base_weights is None else base_weights
    log_partition = torch.logsumexp(logs - on_base, 0) - torch.logsumexp(logs, 0)
    return -(energy.features(real) @ weight).mean() - log_partition


def gradient_of(function, weight):
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(function(weight), weight)[0].detach()


# --- the features ------------------------------------------


def cosines(points, seeds, num_features, bandwidth):
    """<φ(x), φ(0)> for every seed and every point, (seeds, points)."""
    rows = []
    for seed in range(seeds):
        energy = make(1, num_features=num_features, bandwidth=bandwidth, seed=seed)
        rows.append(energy.features(points) @ energy.features(torch.zeros_like(points[:1]))[0])
    return torch.stack(rows)


def test_inner_products_have_the_mean_and_the_variance_of_the_theory():
    seeds, m, bandwidth = 2000, 16, 0.7
    points = double([0.1, 0.5, 1.0, 2.0])[:, None]
    found = cosines(points, seeds, m, bandwidth)
    kernel = torch.exp(-points[:, 0].square() / (2 * bandwidth**2))
    variance = (1 - kernel**2) ** 2 / m
    assert ((found.mean(0) - kernel).abs() < 4.5 * (variance / seeds).sqrt()).all()
    # The relative error of a variance is sqrt(2/n) for normals; those near x = y are skewed.
    assert (found.var(0) / variance - 1).abs().max() < 0.25
    random_phase = (1 - kernel**2 + kernel**4 / 2) / m
    assert (found.var(0) < random_phase)[:3].all()  # at the last they are equal to 3e-4


def test_one_set_of_features_approximates_the_gaussian_kernel():
    energy = make(3, num_features=20_000, bandwidth=1.5)
    x = double(np.random.default_rng(0).normal(size=(30, 3)))
    kernel = torch.exp(-torch.cdist(x, x).square() / (2 * 1.5**2))
    error = energy.features(x) @ energy.features(x).T - kernel
    assert error.abs().max() < 5 / math.sqrt(20_000)  # the variance is at most 1/m
    torch.testing.assert_close(energy.features(x).norm(dim=1), double(1.0).expand(30))


def test_the_energy_is_linear_in_the_features_and_within_the_radius():
    energy = make(2, num_features=10, radius=3.0)
    real, _ = samples()
    angles = real @ energy.frequencies.T
    by_hand = torch.cat([angles.cos(), angles.sin()], 1) * math.sqrt(2 / 10)
    energy.set_weight(3 * by_hand[0])
    torch.testing.assert_close(energy(real), 3 * by_hand @ by_hand[0])
    assert energy(real).abs().max().item() == pytest.approx(3.0, rel=1e-7)


@pytest.mark.parametrize("trained", [False, True])
def test_the_bandwidth_scales_the_data(trained):
    real, _ = samples()
    wide = make(2, num_features=10, bandwidth=2.5, train_bandwidth=trained)
    expected = make(2, num_features=10).features(real / 2.5)
    torch.testing.assert_close(wide.features(real), expected, rtol=1e-6, atol=1e-6)
    assert ("log_bandwidth" in dict(wide.named_parameters())) == trained


def test_the_seed_alone_makes_the_features():
    state = torch.get_rng_state()
    first = FourierEnergy((2, 2), num_features=8, seed=3)
    torch.manual_seed(99)
    same, other = build(first.spec), FourierEnergy((2, 2), num_features=8, seed=4)
    assert torch.equal(first.frequencies, same.frequencies)
    assert not torch.equal(first.frequencies, other.frequencies)
    assert not torch.equal(first.weight, same.weight)
    torch.set_rng_state(state)
    twin = FourierEnergy((2, 2), num_features=8, seed=4)
    assert torch.equal(first.weight, twin.weight)  # no draw of the frequencies between


def test_a_saved_energy_comes_back(tmp_path):
    energy = FourierEnergy((3,), num_features=8, bandwidth=0.5, train_bandwidth=True, seed=7)
    with torch.no_grad():
        energy.log_bandwidth.add_(0.3)
    gebm = pg.GEBM(pg.Base(MLPGenerator(2, (3,), hidden=(4,)), pg.StandardNormal(2)), energy)
    pg.save(gebm, tmp_path / "gebm.pt")
    x = torch.randn(5, 3)
    assert torch.equal(pg.load(tmp_path / "gebm.pt").energy(x), energy(x))


# --- the ball ------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.0])
def test_a_weight_of_the_ball_can_be_set_and_trained_from(share):
    energy = make(2, num_features=6, radius=4.0)
    weight = share * 4 * nn.functional.normalize(double([1.0, -2, 3, -4, 5, 6]), dim=0)
    energy.set_weight(weight)
    torch.testing.assert_close(energy.weight.detach(), weight, rtol=1e-8, atol=1e-12)
    energy(samples()[0]).sum().backward()
    grad = energy.direction.grad
    assert torch.isfinite(grad).all() and grad.abs().max() > 1e-3


def test_no_parameter_leaves_the_ball():
    energy = make(2, num_features=6, radius=0.3)
    assert energy.weight.norm().item() == pytest.approx(0.15)
    for scale in (1e-6, 1.0, 1e6):
        with torch.no_grad():
            energy.direction.copy_(scale * torch.randn(7))
        assert energy.weight.norm() <= 0.3 * (1 + 1e-12)


def adam(energy, real, base, steps, lr=0.05):
    """The best KALE bound in training on full batches, over the energy and c."""
    c = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([energy.direction, c], lr=lr)
    best = -math.inf
    for _ in range(steps):
        bound = kale_bound(energy(real), energy(base), c)
        best = max(best, bound.item())
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
    return best


@pytest.mark.parametrize("reached_by", ["training", "solver"])
def test_training_comes_back_from_the_edge_when_the_base_has_learned(reached_by):
    energy = make(2, num_features=32, radius=2.0)
    real, base = samples()
    if reached_by == "training":
        adam(energy, real + 2, base, steps=300)
    else:
        energy.set_weight(solve_energy(energy, real + 2, base).weights)
    assert energy.weight.norm().item() == pytest.approx(2.0, abs=1e-3)
    adam(energy, base, base, steps=300)
    assert energy.weight.norm() < 1.5


# --- the solver ------------------------------------------


def test_one_base_sample_in_closed_form():
    # L is linear, r |φ(y) - mean φ(x)| at the end of the ball.
    energy = make(2, num_features=40, radius=5.0)
    real, base = samples(num_base=1)
    slope = energy.features(base)[0] - energy.features(real).mean(0)
    found = solve_energy(energy, real, base)
    assert found.value == pytest.approx(5 * slope.norm().item(), rel=1e-10)
    assert found.multiplier == pytest.approx(slope.norm().item() / 5, rel=1e-6)
    torch.testing.assert_close(found.weights, 5 * nn.functional.normalize(slope, dim=0))


def test_atoms_have_their_kl_and_their_density_ratio():
    atoms = double([[-1.0], [0.2], [1.5]])
    real = torch.repeat_interleave(atoms, torch.tensor([1, 3, 6]), dim=0)
    base = torch.repeat_interleave(atoms, torch.tensor([4, 4, 2]), dim=0)
    p, b = double([0.1, 0.3, 0.6]), double([0.4, 0.4, 0.2])
    energy = make(1, num_features=16, radius=50.0)
    found = solve_energy(energy, real, base)
    assert found.value == pytest.approx((p * (p / b).log()).sum().item(), abs=3 * 50 * 1e-8)
    assert found.multiplier == 0 and found.weights.norm() < 50
    energy.set_weight(found.weights)
    ratio = -energy(atoms).detach() - found.log_partition
    torch.testing.assert_close(ratio, (p / b).log(), rtol=1e-5, atol=1e-5)


def test_nothing_is_found_between_equal_samples():
    _, base = samples()
    found = solve_energy(make(2, num_features=32), base, base)
    assert abs(found.value) < 1e-15 and found.weights.norm() < 1e-8 and found.multiplier == 0


SLSQP_CASES = {"binds": (8, 2.0), "binds-hardly": (4, 2.5), "free": (4, 5.0)}


def slsqp(function, m, radius):
    """The maximum of a concave function over a ball, by SciPy."""
    options = {"maxiter": 2000, "ftol": 1e-15}
    ball = {
        "type": "ineq",
        "fun": lambda w: radius**2 - w @ w,
        "jac": lambda w: -2 * w,
    }
    found = optimize.minimize(
        lambda w: -function(double(w)).item(),
        np.zeros(m),
        jac=lambda w: -gradient_of(function, double(w)).numpy(),
        method="SLSQP",
        constraints=[ball],
        options=options,
    )
    return -found.fun, found.x


@pytest.mark.parametrize(("m", "radius"), SLSQP_CASES.values(), ids=SLSQP_CASES)
def test_agrees_with_slsqp(m, radius):
    energy = make(2, num_features=m, radius=radius)
    real, base = samples()
    found = solve_energy(energy, real, base)
    value, weight = slsqp(lambda w: likelihood(energy, real, base, w), m, radius)
    assert found.value == pytest.approx(value, abs=1e-7)
    torch.testing.assert_close(found.weights, double(weight), rtol=1e-3, atol=1e-3)
    assert (found.multiplier > 0) == (radius < 5)


def test_agrees_with_projected_gradient_where_features_outnumber_samples():
    energy = make(2, num_features=64, radius=3.0)
    real, base = samples(num_base=30)
    found = solve_energy(energy, real, base)
    weight = torch.zeros(64, dtype=torch.float64)
    for _ in range(1500):  # of step 1: the covariance of features of norm 1 is at most 1
        weight = weight + gradient_of(lambda w: likelihood(energy, real, base, w), weight)
        weight = weight * min(1.0, 3.0 / weight.norm().item())
    assert found.value == pytest.approx(likelihood(energy, real, base, weight).item(), abs=1e-8)


@pytest.mark.parametrize("radius", [1e-3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("weighted", [False, True])
def test_optimality_conditions(radius, weighted):
    energy = make(2, num_features=48, radius=radius)
    real, base = samples()
    log_weights = base[:, 0] - 300 if weighted else None
    found = solve_energy(energy, real, base, base_log_weights=log_weights)

    def value(w):
        return likelihood(energy, real, base, w, log_weights)

    grad = gradient_of(value, found.weights)
    assert (grad - found.multiplier * found.weights).norm() < 1e-8
    norm = found.weights.norm().item()
    assert found.multiplier > 0 and norm <= radius * (1 + 1e-12)
    assert norm == pytest.approx(radius, abs=1e-8 / found.multiplier, rel=1e-12)
    assert found.residual <= 1e-8
    direction = nn.functional.normalize(torch.randn(48, dtype=torch.float64), dim=0)
    step = 1e-5 * direction
    difference = (value(found.weights + step) - value(found.weights - step)) / 2e-5
    slope = found.multiplier * (found.weights @ direction)
    assert difference.item() == pytest.approx(slope.item(), abs=1e-8)


@pytest.mark.parametrize("radius", [2.0, 1e3])
def test_the_written_energy_attains_the_value(radius):
    energy = FourierEnergy((2,), num_features=8, radius=radius).double()
    real, base = samples()
    found = solve_energy(energy, real, base)
    energy.set_weight(found.weights)
    on_real, on_base = energy(real), energy(base)
    assert donsker_varadhan(on_real, on_base).item() == pytest.approx(found.value, abs=1e-7)
    assert kale_bound(on_real, on_base, found.log_partition).item() == pytest.approx(
        found.value, abs=1e-7
    )
    assert log_partition_estimate(on_base).item() == pytest.approx(found.log_partition, abs=1e-5)


@pytest.mark.parametrize("radius", [3.0, 30.0])
def test_agrees_with_training_on_full_batches(radius):
    energy = make(2, num_features=8, radius=radius)
    real, base = samples()
    found = solve_energy(energy, real, base)
    best = adam(energy, real, base, steps=800, lr=0.1)
    assert found.value - 1e-3 < best <= found.value + 1e-7


def test_an_energy_in_single_precision_is_solved_in_double():
    energy = FourierEnergy((2,), num_features=24, radius=5.0)
    before = energy.direction.detach().clone()
    real, base = samples()
    found = solve_energy(energy, real.float(), base.float())
    exact = solve_energy(energy.double(), real.float(), base.float())
    assert found == exact._replace(weights=found.weights)
    assert torch.equal(found.weights, exact.weights) and found.weights.dtype == torch.float64
    assert torch.equal(energy.float().direction, before)


# --- the bound on what is left ------------------------------------------


def test_weights_stand_for_repeated_samples():
    energy = make(2, num_features=24, radius=5.0)
    real, base = samples(num_base=40)
    counts = torch.randint(1, 5, (40,))
    repeated = solve_energy(energy, real, base.repeat_interleave(counts, 0))
    weighted = solve_energy(energy, real, base, base_log_weights=counts.double().log() + 7)
    assert weighted.value == pytest.approx(repeated.value, abs=1e-7)
    torch.testing.assert_close(weighted.weights, repeated.weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("radius", [0.1, 1.0, 5.0])
def test_the_model_is_closer_than_its_base(seed, radius):
    energy = make(2, num_features=16, radius=radius, seed=seed)
    real, base = samples(seed=seed)
    first = solve_energy(energy, real, base)
    tilt = -energy.features(base) @ first.weights
    second = solve_energy(energy, real, base, base_log_weights=tilt)
    assert 0 < second.value < first.value

    def shifted(w):  # L of the model, by that of the base: L(E* + E) - L(E*)
        return likelihood(energy, real, base, first.weights + w) - first.value

    value, _ = slsqp(shifted, 16, radius)
    assert second.value == pytest.approx(value, abs=1e-6)


def test_a_linear_class_leaves_nothing():
    energy = make(2, num_features=4, radius=1e3)
    real, base = samples()
    first = solve_energy(energy, real, base)
    tilt = -energy.features(base) @ first.weights
    second = solve_energy(energy, real, base, base_log_weights=tilt)
    assert first.value > 0.05
    assert abs(second.value) < 3e3 * 1e-8


# --- refusals ------------------------------------------


def test_a_tolerance_beyond_rounding_is_an_error_that_says_so():
    real, base = samples()
    with pytest.raises(SolverError, match=r"no convergence to 1e-30 after .*raise the tolerance"):
        solve_energy(make(2, num_features=8), real, base, tolerance=1e-30)


GOOD = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FourierEnergy(()), r"data_shape: .*got \[\]"),
        (lambda: FourierEnergy((2,), num_features=7), "num_features: .*even.*7"),
        (lambda: FourierEnergy((2,), num_features=0), "num_features: .*0"),
        (lambda: FourierEnergy((2,), bandwidth=0.0), r"bandwidth: .*0\.0"),
        (lambda: FourierEnergy((2,), radius=math.inf), "radius: .*inf"),
        (lambda: FourierEnergy((2,), seed=-1), "seed: .*-1"),
        (lambda: FourierEnergy((2,), train_bandwidth="no"), "train_bandwidth: .*'no'"),
        (lambda: make().features(torch.zeros(2)), r"x: .*\(2,\)"),
        (lambda: make(num_features=4).set_weight(torch.zeros(5)), r"weight: .*\(4,\).*\(5,\)"),
        (lambda: make(num_features=4).set_weight(torch.full((4,), torch.nan)), "weight: .*nan"),
        (
            lambda: make(num_features=4, radius=1.0).set_weight(torch.ones(4)),
            r"weight: .*<= 1\.0.*got 2\.0",
        ),
        (lambda: solve_energy(make(), torch.zeros(3, 3), GOOD), r"real: .*\(3, 3\)"),
        (lambda: solve_energy(make(), GOOD, torch.zeros(0, 2)), "base: .*empty"),
        (lambda: solve_energy(make(), GOOD / 0, GOOD), "real: .*nan"),
        (
            lambda: solve_energy(make(), GOOD, GOOD, base_log_weights=torch.zeros(2)),
            r"base_log_weights: .*\(3,\).*\(2,\)",
        ),
        (
            lambda: solve_energy(make(), GOOD, GOOD, base_log_weights=-torch.ones(3) / 0),
            "base_log_weights: .*-inf",
        ),
        (lambda: solve_energy(make(), GOOD, GOOD, tolerance=0.0), r"tolerance: .*0\.0"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
