"""Objectives against hand-written steps, c by its closed form, and contrastive divergence."""

import math

import pytest
import torch
from helpers import small_gebm
from torch import nn

import pyro_gebm as pg
from pyro_gebm.training import ReplayConfig
from pyro_gebm.training.replay import ReplayBuffer

RATES = {"energy_lr": 0.01, "base_lr": 0.02, "log_partition_lr": 0.03, "momentum": 0.4}


def model():
    gebm = small_gebm().double()
    # Where a loss does not change with the energy's constant, the gradient of this bias is pure
    # rounding, of which Adam would make steps of 1e-11.
    gebm.energy[-1].bias.requires_grad_(False)
    return gebm


def pair(**settings):
    """Two equal models, the first with a trainer."""
    mine, twin = model(), model()
    return pg.Trainer(mine, pg.TrainConfig(**RATES, **settings)), twin


def data(num=16):
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(1)).double() + 0.5


def by_hand(parameters, lr):
    return torch.optim.Adam(parameters, lr=lr, betas=(RATES["momentum"], 0.99))


def assert_same(trainer, twin):
    """Weights and c, after a few steps of 1e-2: rounding grows to about 1e-15."""
    torch.testing.assert_close(trainer.gebm.state_dict(), twin.state_dict(), rtol=0, atol=1e-12)


# --- each objective by hand ------------------------------------------


def energy_loss(objective, real, fake):
    """With the discriminator D = 1/(1 + e^E) and the critic -E."""
    if objective == "donsker_varadhan":
        return real.mean() + (-fake).exp().mean().log()
    if objective == "gan":
        return -torch.sigmoid(-real).log().mean() - torch.sigmoid(fake).log().mean()
    return real.mean() - fake.mean()


def base_loss(objective, fake):
    if objective == "donsker_varadhan":
        return -(-fake).exp().mean().log()
    return -torch.sigmoid(-fake).log().mean() if objective == "gan" else fake.mean()


def penalty_by_hand(energy, points, center):
    points = points.detach().requires_grad_()
    (slope,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
    return (slope.square().sum(1).sqrt() - center).square().mean()


# Where the slope is penalised, and what it is drawn to.
OBJECTIVES = [
    ("donsker_varadhan", "interpolates", 0.0),
    ("gan", "data", 0.0),
    ("gan", "both", 0.0),
    ("wgan", "interpolates", 1.0),
]


@pytest.mark.parametrize(("objective", "where", "center"), OBJECTIVES)
def test_steps_are_the_hand_written_ones(objective, where, center):
    trainer, twin = pair(objective=objective, penalty_points=where, gradient_penalty=0.7)
    energy, generator = twin.energy, twin.base.generator
    adam, base_adam = by_hand(energy.parameters(), 0.01), by_hand(generator.parameters(), 0.02)
    x = data()
    for step in range(4):
        torch.manual_seed(step)
        fake = twin.base.sample(16)
        real, negative = energy(x), energy(fake)
        loss = energy_loss(objective, real, negative)
        total, penalty = loss, None
        if step % 2 == 0:
            u = torch.rand(16, 1, dtype=torch.float64)
            between = u * x + (1 - u) * fake
            points = {"data": x, "both": torch.cat([x, between])}.get(where, between)
            penalty = penalty_by_hand(energy, points, center)
            total = loss + 2 * 0.7 * penalty
        adam.zero_grad()
        total.backward()
        adam.step()
        latents = twin.base.latent_prior.sample(128)
        value = base_loss(objective, energy(generator(latents)))
        base_adam.zero_grad()
        value.backward(inputs=list(generator.parameters()))
        base_adam.step()

        torch.manual_seed(step)
        info = trainer.energy_step(x)
        bound = -real.mean() - (-negative).exp().mean().log()
        for figure, expected in (
            (info.bound, bound),
            (info.batch_log_z, (-negative).exp().mean().log()),
            (info.energy_gap, negative.mean() - real.mean()),
            (info.penalty, penalty if penalty is not None else bound * math.nan),
            (trainer.base_step(), value),
        ):
            torch.testing.assert_close(
                figure, expected.detach(), rtol=0, atol=1e-12, equal_nan=True
            )
    assert_same(trainer, twin)
    assert twin.log_partition == trainer.gebm.log_partition == 0  # c has no part in them


@pytest.mark.parametrize(("objective", "where", "center"), OBJECTIVES[:2] + OBJECTIVES[3:])
def test_a_model_of_a_baseline_ends_with_c_at_log_z(objective, where, center):
    gebm = small_gebm()
    config = pg.TrainConfig(objective=objective, base_steps=30, refit_steps=0, energy_lr=0.02)
    infos = list(pg.Trainer(gebm, config).fit([data().float()]))
    assert infos[-1].log_partition == 0
    energies = gebm.evaluate_energy(gebm.base.sample(100_000)).detach()
    weights = (-energies - gebm.log_partition).exp()
    error = weights.std() * (1 / 100_000 + 1 / 8192) ** 0.5
    assert gebm.log_partition.abs() > 10 * error
    assert weights.mean().item() == pytest.approx(1, abs=4 * error.item())


# --- c in closed form ------------------------------------------


@pytest.mark.parametrize("memory", [0.0, 0.7])
@pytest.mark.parametrize("loss", ["self_normalized", "amortized"])
def test_c_in_closed_form_is_the_hand_written_one(memory, loss):
    settings = {"base_loss": loss, "gradient_penalty": 0.0, "log_partition_memory": memory}
    trainer, twin = pair(log_partition_update="closed_form", **settings)
    energy, generator, c = twin.energy, twin.base.generator, twin.log_partition
    adam, base_adam = by_hand(energy.parameters(), 0.01), by_hand(generator.parameters(), 0.02)
    x = data()
    for step in range(4):
        torch.manual_seed(step)
        real, negative = energy(x), energy(twin.base.sample(16))
        # The running mean is that of Z, not of its logarithm.
        mean = memory * c.detach().exp() + (1 - memory) * (-negative).exp().mean().detach()
        with torch.no_grad():
            c.copy_(mean.log())
        bound = 1 - real.mean() - mean.log() - (-negative).exp().mean() / mean
        adam.zero_grad()
        (-bound).backward()
        adam.step()
        z = twin.base.latent_prior.sample(128)
        weights = (-energy(generator(z))).exp()
        value = -weights.mean().log() if loss == "self_normalized" else -weights.mean() / mean
        base_adam.zero_grad()
        value.backward(inputs=list(generator.parameters()))
        base_adam.step()

        torch.manual_seed(step)
        info = trainer.energy_step(x)
        torch.testing.assert_close(info.bound, bound.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(trainer.base_step(), value.detach(), rtol=0, atol=1e-12)
        assert_same(trainer, twin)  # c too, at every step


def test_without_memory_c_is_that_of_the_batch_and_the_gradient_donsker_varadhans():
    settings = {"base_steps": 5, "refit_steps": 3, "ema_decay": 0.0, **RATES}
    fits = []
    for named in ({"log_partition_update": "closed_form"}, {"objective": "donsker_varadhan"}):
        gebm = model()
        torch.manual_seed(0)
        infos = list(pg.Trainer(gebm, pg.TrainConfig(**settings, **named)).fit([data()]))
        fits.append((gebm, infos))
    (gebm, infos), (other, other_infos) = fits
    for info, other_info in zip(infos, other_infos, strict=True):
        assert info.log_partition == info.batch_log_z
        torch.testing.assert_close(info.bound, other_info.bound, rtol=0, atol=1e-12)
    states = [
        {name: value for name, value in which.state_dict().items() if name != "log_partition"}
        for which in (gebm, other)
    ]
    torch.testing.assert_close(*states, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_samples", [0, 500])
def test_c_starts_at_log_z_of_as_many_samples_as_asked_for(num_samples):
    # Steps too small to be seen: what is left is the start.
    tiny = {"energy_lr": 1e-30, "base_lr": 1e-30, "log_partition_lr": 1e-30, "ema_decay": 0.0}
    gebm, twin = model(), model()
    with torch.no_grad():
        gebm.log_partition.fill_(-0.3)
    settings = {"log_partition_start": num_samples, "base_steps": 3, "refit_steps": 0}
    torch.manual_seed(0)
    infos = list(pg.Trainer(gebm, pg.TrainConfig(**settings, **tiny)).fit([data()]))
    torch.manual_seed(0)
    expected = twin.log_partition.detach() - 0.3
    if num_samples:
        expected = (-twin.energy(twin.base.sample(500))).exp().mean().log().detach()
    for info in infos:
        torch.testing.assert_close(info.log_partition, expected, rtol=0, atol=1e-12)


# --- contrastive divergence ------------------------------------------


class Quadratic(nn.Module):
    """E(x) = xᵀAx/2."""

    def __init__(self, dim):
        super().__init__()
        self.A = nn.Parameter(torch.eye(dim))

    def forward(self, x):
        return 0.5 * ((x @ self.A) * x).sum(1)


def test_contrastive_steps_are_the_hand_written_ones():
    replay = ReplayConfig(64, steps=3, step_size=0.1, noise=0.3, restart_probability=0.2)
    trainer, twin = pair(objective="contrastive", mode="energy", gradient_penalty=0, replay=replay)
    energy, x, buffer = twin.energy, data(), None
    adam = by_hand(energy.parameters(), 0.01)
    for step in range(4):
        torch.manual_seed(step)
        buffer = buffer or ReplayBuffer(torch.randn(64, 3, dtype=torch.float64))
        fake = buffer.draw(
            energy,
            16,
            steps=3,
            step_size=0.1,
            noise=0.3,
            restart_probability=0.2,
            fresh=lambda num: torch.randn(num, 3, dtype=torch.float64),
        ).x
        gap = energy(fake).mean() - energy(x).mean()
        adam.zero_grad()
        (-gap).backward()
        adam.step()
        torch.manual_seed(step)
        info = trainer.energy_step(x)
        torch.testing.assert_close(info.energy_gap, gap.detach(), rtol=0, atol=1e-12)
        assert info.bound.isnan()
        assert info.importance_ess.isnan()
    assert_same(trainer, twin)


def test_contrastive_divergence_learns_a_precision():
    # Langevin steps of size γ leave a Gaussian of precision A at covariance (A - γA²/2)⁻¹, and
    # training makes that the data's: A = (I - (I - 2γ S⁻¹)^½)/γ for data of covariance S.
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.7]]).double()
    gamma, num = 0.1, 1024
    x = torch.randn(num, 2)
    x = x - x.mean(0)
    whitener = torch.linalg.inv(torch.linalg.cholesky(x.T @ x / num)).T
    x = x @ whitener @ torch.linalg.cholesky(covariance.float()).T
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2)), Quadratic(2))
    replay = ReplayConfig(num, 20, gamma, math.sqrt(2 * gamma), restart_probability=0.0)
    config = pg.TrainConfig(
        base_steps=250,
        energy_steps=1,
        refit_steps=0,
        mode="energy",
        objective="contrastive",
        energy_lr=0.05,
        gradient_penalty=0.0,
        replay=replay,
    )
    list(pg.Trainer(gebm, config).fit([x]))
    values, vectors = torch.linalg.eigh(torch.linalg.inv(covariance))
    expected = vectors @ ((1 - (1 - 2 * gamma * values).sqrt()) / gamma).diag() @ vectors.T
    # An entry of a covariance of n draws errs by √2/√n of its scale or less; 32 steps' worth of
    # draws are averaged at the end of a cosine schedule, or more.
    A = gebm.energy.A.detach()
    error = math.sqrt(2 / (32 * num)) * values.max().item()
    torch.testing.assert_close((A + A.T).double() / 2, expected, rtol=0, atol=4 * error)


def test_contrastive_chains_run_in_eval_mode_and_leave_the_base_alone():
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.seen = nn.Linear(2, 1), []

        def forward(self, x):
            self.seen.append((self.training, self.linear.weight.requires_grad))
            return self.linear(x)

    base = pg.Base(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), pg.StandardNormal(2))
    gebm = pg.GEBM(base, Modes())
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = pg.TrainConfig(
        base_steps=2,
        energy_steps=1,
        refit_steps=0,
        mode="energy",
        objective="contrastive",
        gradient_penalty=0.0,
        replay=ReplayConfig(64, steps=3),
    )
    infos = pg.Trainer(gebm, config).fit([torch.randn(16, 2)])
    next(infos)
    # Chains of a network in train mode with BatchNorm would not be independent.
    assert gebm.energy.seen == [(False, False)] * 3 + [(True, True)]
    list(infos)
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
