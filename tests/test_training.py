"""Training steps against hand-written ones, and what training learns against closed forms."""

import math

import pytest
import torch
from helpers import linear_gaussian, same, small_gebm, snapshot
from torch import nn

import pyro_gebm as pg
from pyro_gebm.nets import MLPEnergy, MLPGenerator

HALVES = [("energy", "amortized"), ("base", "amortized"), ("base", "self_normalized")]


def pair(dtype=torch.float64, **settings):
    """Two equal models, the first with a trainer."""
    model, twin = small_gebm().to(dtype), small_gebm().to(dtype)
    return pg.Trainer(model, pg.TrainConfig(**settings)), twin


def exp_then_tangent(t, linear_from):
    tangent = math.exp(linear_from) * (1 + t - linear_from)
    return torch.where(t < linear_from, t.exp(), tangent)


# --- steps by hand ------------------------------------------


def adam_by_hand(gebm, momentum):
    energy = {"params": gebm.energy.parameters(), "lr": 0.01}
    constant = {"params": [gebm.log_partition], "lr": 0.03}
    return torch.optim.Adam([energy, constant], betas=(momentum, 0.99))


def energy_step_by_hand(gebm, optimizer, x, weight, linear_from):
    """Bound and penalty before the step, which goes down their gradient."""
    energy, c, fake = gebm.energy, gebm.log_partition, gebm.base.sample(len(x))
    weights = exp_then_tangent(-(energy(fake) + c), linear_from)
    bound = -(energy(x) + c).mean() - weights.mean() + 1
    u = torch.rand(len(x), 1, dtype=x.dtype) if weight else torch.zeros(len(x), 1)
    points = (u * x + (1 - u) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
    penalty = slope.square().sum(1).mean()
    optimizer.zero_grad()
    (-bound + weight * penalty).backward()
    optimizer.step()
    return bound, penalty


@pytest.mark.parametrize("linear_from", [6.0, 0.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_energy_steps_are_the_hand_written_ones(dtype, tolerance, linear_from):
    # Five steps of Adam 1e-2: rounding grows to about 1e-15 and 1e-7.
    settings = {"energy_lr": 0.01, "log_partition_lr": 0.03, "momentum": 0.4}
    trainer, twin = pair(dtype, **settings, gradient_penalty=0.7, linear_from=linear_from)
    optimizer = adam_by_hand(twin, momentum=0.4)
    x = torch.randn(32, 3, dtype=dtype) + 1
    for step, given in enumerate([None, None, 1.1, 1.1, 0.2]):
        # Every second step, twice as heavy; the configured weight where none is given.
        weight = 2 * (given or 0.7) * (step % 2 == 0)
        torch.manual_seed(step)
        bound, penalty = energy_step_by_hand(twin, optimizer, x, weight, linear_from)
        torch.manual_seed(step)
        info = trainer.energy_step(x, penalty_weight=given)
        torch.testing.assert_close(info.bound, bound.detach(), rtol=0, atol=tolerance)
        expected = penalty.detach() if weight else torch.full_like(bound, torch.nan)
        torch.testing.assert_close(info.penalty, expected, rtol=0, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(trainer.gebm.state_dict(), twin.state_dict(), rtol=0, atol=tolerance)


def test_refit_starts_at_log_z_with_the_usual_momentum():
    settings = {"refit_lr": 0.01, "log_partition_lr": 0.03, "refit_gradient_penalty": 0.0}
    trainer, twin = pair(**settings, refit_steps=4, schedule="constant")
    x = torch.randn(32, 3).double()
    torch.manual_seed(0)
    list(trainer.refit_energy([x]))
    torch.manual_seed(0)
    pg.Trainer(twin).set_log_partition()
    optimizer = adam_by_hand(twin, momentum=0.9)
    for _ in range(4):
        energy_step_by_hand(twin, optimizer, x, 0.0, 6.0)
    torch.testing.assert_close(trainer.gebm.state_dict(), twin.state_dict(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("base_loss", ["self_normalized", "amortized"])
def test_base_steps_are_the_hand_written_ones(base_loss):
    trainer, twin = pair(base_lr=0.01, momentum=0.4, linear_from=0.0, base_loss=base_loss)
    with torch.no_grad():
        trainer.gebm.log_partition.fill_(-0.2)
    generator = twin.base.generator
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.4, 0.99))
    for step in range(5):
        torch.manual_seed(step)
        energy = twin.energy(generator(twin.base.latent_prior.sample(128))).squeeze(1)
        if base_loss == "amortized":
            loss = -exp_then_tangent(-(energy - 0.2), 0.0).mean()
            weights = (-(energy - 0.2)).clamp(max=0.0).exp() / 128
        else:
            loss = -(-energy).exp().mean().log()
            weights = (-energy).exp() / (-energy).exp().sum()
        optimizer.zero_grad()
        (weights.detach() * energy).sum().backward()
        optimizer.step()
        torch.manual_seed(step)
        torch.testing.assert_close(trainer.base_step(), loss.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        trainer.gebm.base.state_dict(), twin.base.state_dict(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("which", "base_loss"), HALVES)
def test_a_step_touches_only_its_own_half_and_leaves_no_gradient(which, base_loss):
    trainer, _ = pair(base_loss=base_loss)
    gebm = trainer.gebm
    own = [*gebm.energy.parameters(), gebm.log_partition]
    others = list(gebm.base.parameters())
    if which == "base":
        own, others = others, own
    for parameter in others:
        parameter.grad = torch.full_like(parameter, 7.0)
    own_before, others_before = [[p.detach().clone() for p in ps] for ps in (own, others)]
    if which == "energy":
        trainer.energy_step(torch.randn(8, 3).double())
    else:
        trainer.base_step()
    assert all(map(torch.equal, others, others_before))
    assert all((p.grad == 7).all() for p in others)
    assert not any(map(torch.equal, own, own_before))
    assert all(p.grad is None for p in own)


@pytest.mark.parametrize("which", ["energy", "base"])
def test_gradients_that_someone_left_behind_do_not_count(which):
    trainer, twin = pair()
    other = pg.Trainer(twin, trainer.config)
    for parameter in twin.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    for chosen in (trainer, other):
        torch.manual_seed(1)
        chosen.energy_step(torch.ones(8, 3).double()) if which == "energy" else chosen.base_step()
    assert same(trainer.gebm.state_dict(), twin.state_dict())


def test_what_is_frozen_on_the_way_stays_as_it_is_from_then_on():
    trainer, _ = pair()
    layers = [trainer.gebm.energy[0], trainer.gebm.base.generator[0]]
    for layer in layers:
        layer.requires_grad_(False)
    before = snapshot(trainer.gebm)
    trainer.energy_step(torch.randn(8, 3).double())
    trainer.base_step()
    after = trainer.gebm.state_dict()
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    assert stayed == {name for name in before if ".0." in name}


@pytest.mark.parametrize(("which", "base_loss"), HALVES)
@pytest.mark.parametrize("spoil", ["value", "gradient"])
def test_a_step_that_is_not_finite_is_refused_and_leaves_no_trace(which, spoil, base_loss):
    class Spoilt(nn.Module):
        def forward(self, energy):
            # Infinite, or of an infinite slope at a finite value.
            bad = -math.inf if spoil == "value" else (energy - energy.detach()).sqrt()
            return energy + bad

    trainer, twin = pair(base_loss=base_loss)
    other = pg.Trainer(twin, trainer.config)
    x = torch.randn(16, 3).double()

    def step(trainer):
        trainer.energy_step(x) if which == "energy" else trainer.base_step()

    for chosen in (trainer, other):
        torch.manual_seed(1)
        chosen.energy_step(x)
        chosen.energy_step(x)
        step(chosen)
    before, energy = snapshot(trainer.gebm), trainer.gebm.energy
    trainer.gebm.energy = nn.Sequential(energy, Spoilt())
    done = 3 if which == "energy" else 2
    with pytest.raises(pg.TrainingError, match=rf"^{which}: .*energy step {done};"):
        step(trainer)
    trainer.gebm.energy = energy
    assert same(before, trainer.gebm.state_dict())
    for chosen in (trainer, other):  # nor did the optimiser remember it
        torch.manual_seed(2)
        step(chosen)
    assert same(trainer.gebm.state_dict(), other.gebm.state_dict())


# --- what is learned ------------------------------------------


class Polynomial(nn.Module):
    """E(x) = a x + b x²/2 on the line."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return torch.cat([x, 0.5 * x.square()], 1) @ self.weights


def on_the_line(mean, sd, num_data=4096):
    """Data (N, 1) whose mean and standard deviation are exact: the optimum is then that of P."""
    x = torch.randn(num_data, 1)
    return mean + sd * (x - x.mean()) / x.std(correction=0)


# The last steps of a cosine schedule average over more base samples than those of 16 steps.
AVERAGED_STEPS = 16


def last(infos):
    return list(infos)[-1]


def test_refit_finds_the_optimal_energy_the_constant_and_kl():
    # P = N(m, s²), B = N(0, 1): E* + c = -log p/b = (x - m)²/2s² + log s - x²/2.
    mean, sd = 0.5, 0.7
    x = on_the_line(mean, sd)
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(1)), Polynomial())
    config = pg.TrainConfig(
        refit_steps=400, refit_lr=0.02, log_partition_lr=0.02, refit_gradient_penalty=0.0
    )
    info = last(pg.Trainer(gebm, config).refit_energy([x]))
    truth = torch.tensor([-mean / sd**2, sd**-2 - 1, 0.5 * (mean / sd) ** 2 + math.log(sd)])
    kl = 0.5 * (sd**2 + mean**2 - 1) - math.log(sd)

    # Monte-Carlo error of an estimate from base samples: sandwich formula, exact weights.
    z = torch.randn(100_000, 1)
    features = torch.cat([z, 0.5 * z.square(), torch.ones_like(z)], 1)
    weighted = features * (-features @ truth).exp()[:, None]
    hessian = torch.linalg.inv(weighted.T @ features / len(z))
    covariance = hessian @ weighted.T.cov() @ hessian
    errors = covariance.diagonal().div(AVERAGED_STEPS * len(x)).sqrt()
    learned = torch.cat([gebm.energy.weights.detach(), gebm.log_partition.detach()[None]])
    assert ((learned - truth).abs() < 4 * errors).all()
    # At the optimum the bound errs by the mean weight of its own batch.
    error = weighted[:, 2].std().item() / len(x) ** 0.5
    assert info.bound.item() == pytest.approx(kl, abs=4 * error)


@pytest.mark.parametrize("base_loss", ["self_normalized", "amortized"])
def test_alternation_moves_the_base_onto_the_data(base_loss):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(2))

        def forward(self, z):
            return z + self.mean

    x = torch.cat([on_the_line(1.5, 1.0, 1024), on_the_line(-0.5, 1.0, 1024)], 1)
    gebm = pg.GEBM(pg.Base(Shift(), pg.StandardNormal(2)), nn.Linear(2, 1))
    config = pg.TrainConfig(
        base_steps=300,
        num_latents=1024,
        base_lr=0.02,
        energy_lr=0.02,
        base_loss=base_loss,
        ema_decay=0.0,
        refit_steps=0,
    )
    info = last(pg.Trainer(gebm, config).fit([x]))
    # One batch knows a mean to 1/√1024, those that are averaged to a quarter of it.
    target = torch.tensor([1.5, -0.5])
    assert (gebm.base.generator.mean.detach() - target).abs().max() < 1 / 32
    # Then P = B and E is flat, up to a slope of 1/32 in either direction: ESS exp(-2/32²),
    # KL 1/32², and 4 standard errors √2/32² of the mean weight of a batch.
    assert info.importance_ess > 0.998
    assert info.bound.abs() < 0.001 + 0.006


def test_refit_corrects_a_wrong_base_by_its_weights():
    # B = N(0, 1) for data of N(0.7, 1), and an energy that does not know about Gaussians.
    x = on_the_line(0.7, 1.0)
    generator = MLPGenerator(1, (1,), hidden=(), output="identity")
    nn.init.ones_(generator.layers[0].weight)
    nn.init.zeros_(generator.layers[0].bias)
    gebm = pg.GEBM(pg.Base(generator, pg.StandardNormal(1)), MLPEnergy((1,), hidden=(16,)))
    config = pg.TrainConfig(refit_steps=300, refit_lr=0.01, refit_gradient_penalty=0.0)
    last(pg.Trainer(gebm, config).refit_energy([x]))
    fresh = gebm.base.sample(50_000)
    assert abs(fresh.mean()) < 4 / 50_000**0.5  # as wrong as before
    weights = gebm.log_density_ratio(fresh).exp().detach()[:, None]
    # Errors: of these samples, and of those that the training averaged over.
    share = 1 / len(fresh) + 1 / (AVERAGED_STEPS * len(x))
    mean = (weights * fresh).mean() / weights.mean()
    error = (weights * (fresh - 0.7)).square().mean().mul(share).sqrt()
    assert mean.item() == pytest.approx(0.7, abs=4 * error.item())
    error = weights.var().mul(share).sqrt()
    assert weights.mean().item() == pytest.approx(1.0, abs=4 * error.item())


def test_large_sample_constant_is_log_z():
    # x = A z + b and E = (x - m)ᵀP(x - m)/2:
    # log Z(P) = -½ log|I + P AAᵀ| - ½ (b - m)ᵀ (P⁻¹ + AAᵀ)⁻¹ (b - m).
    gebm = linear_gaussian()
    A, off = gebm.base.generator.weight, gebm.base.generator.bias - gebm.energy.mean

    def log_z(precision):
        P, spread = precision.diag(), A @ A.T
        solved = torch.linalg.solve(torch.linalg.inv(P) + spread, off)
        return -0.5 * torch.logdet(torch.eye(3).double() + P @ spread) - 0.5 * off @ solved

    expected = log_z(gebm.energy.precision).item()
    # Delta method: var(exp(-E)) / Z² = Z(2P) / Z(P)² - 1.
    variance = math.exp(log_z(2 * gebm.energy.precision).item() - 2 * expected) - 1
    pg.Trainer(gebm).set_log_partition(50_000)
    error = math.sqrt(variance / 50_000)
    assert gebm.log_partition.item() == pytest.approx(expected, abs=4 * error)
