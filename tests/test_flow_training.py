"""Training on a base with a density, and the likelihood of what comes out."""

import copy
import math

import arviz
import numpy as np
import pytest
import torch
from helpers import Quadratic, rng, same, snapshot
from test_flows import grid, integral, normal_energy, shaken
from torch import nn

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader
from pyro_gebm.flows import NSF, NVP, FreeEnergy, flow_base, log_prob
from pyro_gebm.metrics import likelihood
from pyro_gebm.metrics.likelihood import (
    TrustedLogZ,
    UntrustedLogZError,
    log_density,
    log_likelihood,
    trusted_log_z,
)
from pyro_gebm.metrics.pareto import tail_shape
from pyro_gebm.nets import MLPEnergy
from pyro_gebm.training.max_likelihood import FlowConfig, fit_flow, mean_nll

torch.set_num_threads(1)

LOG_2PI = math.log(2 * math.pi)


def correlated(num, seed):
    """Draws of a Gaussian, and its entropy."""
    root = torch.tensor([[1.0, 0.0], [1.5, 0.5]])
    x = torch.tensor([2.0, -1.0]) + torch.randn(num, 2, generator=rng(seed)) @ root.T
    return x, 1 + LOG_2PI + math.log(0.5)


# --- maximum likelihood ------------------------------------------


@pytest.mark.parametrize("make", [NVP, NSF])
def test_maximum_likelihood_reaches_the_entropy(make):
    torch.manual_seed(0)
    x, _ = correlated(8000, 0)
    test, entropy = correlated(8000, 1)
    base = flow_base(make(2, transforms=2, hidden=(16,)))
    config = FlowConfig(steps=250, lr=2e-2)
    loader = BatchLoader(x, 256, generator=rng(2))
    first, *_, last = fit_flow(base, loader, config)
    assert (first.step, last.step, last.total) == (1, 250, 250)
    assert not last.nll.requires_grad and last.held_out is None
    # The test set's own figure under the truth has a standard error of 1/√8000.
    assert mean_nll(base, test) == pytest.approx(entropy, abs=0.04 + 4 / math.sqrt(8000))
    assert mean_nll(base, test) > entropy - 4 / math.sqrt(8000)


def test_early_stopping_returns_to_the_best():
    torch.manual_seed(0)
    x, _ = correlated(40, 0)
    held_out, _ = correlated(500, 1)
    base = flow_base(NSF(2, hidden=(64,)))
    config = FlowConfig(steps=3000, lr=1e-2, schedule="constant", evaluate_every=10, patience=5)
    infos = list(fit_flow(base, [x], config, held_out=held_out))
    figures = [info.held_out for info in infos if info.held_out is not None]
    assert len(infos) < 3000 and figures.index(min(figures)) == len(figures) - 1 - 5
    assert mean_nll(base, held_out) == pytest.approx(min(figures), rel=1e-6)
    assert figures[-1] > min(figures) + 0.01, "else there was nothing to return from"


def test_left_early_it_returns_to_the_best_and_to_its_modes():
    torch.manual_seed(0)
    x, _ = correlated(64, 0)
    base = flow_base(NVP(2, hidden=(8,)))
    base.eval()
    steps = fit_flow(base, [x], FlowConfig(evaluate_every=5, lr=1e-3), held_out=x)
    weights = None
    for info in steps:
        if info.step == 5:
            weights = snapshot(base)
        if info.step == 8:
            break
    assert not same(weights, base.state_dict()) and base.training
    steps.close()
    assert same(weights, base.state_dict()) and not base.training


def test_what_cannot_be_fitted_is_refused():
    base = flow_base(NVP(2, hidden=(8,)))
    x, _ = correlated(16, 0)
    with pytest.raises(ValueError, match="base: expected one with a density"):
        list(fit_flow(pg.Base(nn.Linear(2, 2), pg.StandardNormal(2)), [x]))
    with pytest.raises(ValueError, match="x: expected shape"):
        list(fit_flow(base, [x[:, :1]]))
    with pytest.raises(ValueError, match="held_out: expected shape"):
        fit_flow(base, [x], held_out=x[0])
    with pytest.raises(ValueError, match="held_out: expected at least one"):
        fit_flow(base, [x], held_out=x[:0])
    with pytest.raises(ValueError, match="lr: expected"):
        FlowConfig(lr=0.0)
    before = snapshot(base)
    x[3] = math.inf
    with pytest.raises(pg.TrainingError, match="at step 1 the loss"):
        list(fit_flow(base, [x]))
    assert same(before, base.state_dict())
    with pytest.raises(ValueError, match="parameters to train"):
        fit_flow(flow_base(NVP(2).requires_grad_(False)), [x])


# --- KALE ------------------------------------------


def model(kind, flow=None):
    torch.manual_seed(1)
    base = flow_base(flow or NVP(2, transforms=2, hidden=(16,)))
    r = MLPEnergy((2,), (32,))
    if kind == "residual":
        return pg.GEBM(base, r)
    return pg.GEBM(base, FreeEnergy(Bowl(r), base))


class Bowl(nn.Module):
    """r(x) = |x|²/2 + a network: integrable whatever the network's slope."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return 0.5 * x.square().sum(-1) + self.network(x)


@pytest.mark.parametrize("kind", ["residual", "free"])
@pytest.mark.parametrize("mode", ["energy", "base", "both"])
def test_the_trainer_moves_what_its_mode_says(kind, mode):
    gebm = model(kind)
    flow, energy = snapshot(gebm.base.generator), snapshot(gebm.energy)
    config = pg.TrainConfig(base_steps=4, refit_steps=0, mode=mode, gradient_penalty=0.1)
    x, _ = correlated(64, 0)
    assert len(list(pg.Trainer(gebm, config).fit([x]))) == 4
    assert same(flow, gebm.base.generator.state_dict()) is (mode == "energy")
    assert same(energy, gebm.energy.state_dict()) is (mode == "base")
    assert gebm.energy.base is gebm.base if kind == "free" else True


def test_a_base_step_under_a_free_energy_follows_it_as_it_stands():
    gebm = model("free")
    shaken(gebm)
    apart = pg.GEBM(gebm.base, FreeEnergy(gebm.energy.r, copy.deepcopy(gebm.base)))
    z = torch.randn(500, 2, generator=rng()).double()

    def gradient(gebm):
        loss = -gebm.latent_energy(z).neg().logsumexp(0)
        return torch.autograd.grad(loss, list(gebm.base.parameters()))

    for own, other in zip(gradient(gebm), gradient(apart), strict=True):
        torch.testing.assert_close(own, other)
    assert max(g.abs().max() for g in gradient(gebm)) > 0.1


@pytest.mark.parametrize("kind", ["residual", "free"])
def test_kale_on_a_frozen_base_approaches_the_truth(kind):
    # P = N((1, 0), 0.6² I) on h = N(0, I): the energy has nats to win, and none beyond.
    gebm = model(kind)
    mean, std = torch.tensor([1.0, 0.0]), 0.6
    x, test = (mean + std * torch.randn(4000, 2, generator=rng(s)) for s in (0, 1))
    config = pg.TrainConfig(
        base_steps=400, mode="energy", refit_steps=0, energy_lr=1e-2, gradient_penalty=0.01,
        gradient_penalty_end=0.01, momentum=0.9, log_partition_lr=2e-2,
    )  # fmt: skip
    torch.manual_seed(0)
    for _ in pg.Trainer(gebm, config).fit(BatchLoader(x, 128, generator=rng(2))):
        pass
    log_z = trusted_log_z(gebm, num_latents=20_000, generator=rng(3))
    found = log_likelihood(gebm, test, log_z)
    start = -mean_nll(gebm.base, test)
    truth = -(1 + LOG_2PI + 2 * math.log(std))
    assert start < truth - 0.5
    assert truth - 0.08 < found.mean < truth + 4 * found.standard_error
    assert gebm.log_partition.item() == pytest.approx(log_z.log_z, abs=0.1)


# --- likelihood ------------------------------------------


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x.new_full((len(x),), self.value)


def a_base(scale=0.25):
    return flow_base(shaken(NVP(2, transforms=3, hidden=(8,)), scale))


def test_a_constant_energy_leaves_the_base():
    base = a_base()
    gebm = pg.GEBM(base, Constant(3.0))
    log_z = trusted_log_z(gebm, num_latents=1000, generator=rng())
    assert (log_z.log_z, log_z.standard_error) == pytest.approx((-3.0, 0.0), abs=1e-12)
    assert log_z.ess == pytest.approx(1000) and log_z.tail_shape == -math.inf
    x = torch.randn(50, 2, generator=rng()).double()
    torch.testing.assert_close(log_density(gebm, x, log_z.log_z), log_prob(base, x).detach())
    found = log_likelihood(gebm, x, log_z)
    assert found.mean == pytest.approx(-mean_nll(base, x), abs=1e-9)


@pytest.mark.parametrize("flow", [None, 0.15])
def test_a_free_quadratic_is_the_ordinary_ebm_whatever_the_base(flow):
    base = flow_base(NVP(2).double()) if flow is None else a_base(flow)
    mean, std = [0.3, -0.2], 0.7
    gebm = pg.GEBM(base, FreeEnergy(normal_energy(mean, std), base))
    log_z = trusted_log_z(gebm, num_latents=20_000, generator=rng())
    expected = LOG_2PI + 2 * math.log(std)  # of ∫ exp(-r)
    assert 0 < log_z.standard_error < 0.05
    assert abs(log_z.log_z - expected) < 4 * log_z.standard_error
    x = torch.randn(200, 2, generator=rng(1)).double()
    truth = torch.distributions.Normal(torch.tensor(mean).double(), std).log_prob(x).sum(1)
    torch.testing.assert_close(log_density(gebm, x, expected), truth)
    found = log_likelihood(gebm, x, log_z)
    assert abs(found.mean - float(truth.mean())) < 4 * found.log_z_error
    assert found.data_error == pytest.approx(float(truth.std()) / math.sqrt(200))
    assert found.standard_error == pytest.approx(math.hypot(found.data_error, found.log_z_error))
    assert (found.log_z, found.ess) == (log_z.log_z, log_z.ess)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_residual_energy_against_quadrature(dim):
    flow = NSF(dim, transforms=2, hidden=(8,))
    base = flow_base(shaken(flow, 0.3))
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(dim, 8), nn.Softplus(), nn.Linear(8, 1)).double()
    gebm = pg.GEBM(base, energy)
    points, log_cell = grid(dim, half=14.0, num=(40_001, 601)[dim - 1])
    expected = integral(log_density(gebm, points, 0.0), log_cell)
    for method in ("importance", "annealed"):
        log_z = trusted_log_z(
            gebm, method=method, num_latents=20_000, num_chains=256, generator=rng()
        )
        assert log_z.method == method and 0 < log_z.standard_error < 0.1
        assert abs(log_z.log_z - expected) < 4 * log_z.standard_error + 2e-4


def test_heavy_tails_are_noticed_and_annealed_away():
    # Wider than the base: the weights have no variance, however even they look.
    base = flow_base(NVP(2).double())
    gebm = pg.GEBM(base, FreeEnergy(normal_energy([0.0, 0.0], 4.0), base))
    with pytest.raises(UntrustedLogZError, match="tail has shape"):
        trusted_log_z(gebm, method="importance", num_latents=20_000, max_error=9.0, generator=rng())
    found = trusted_log_z(gebm, num_latents=20_000, num_chains=512, generator=rng())
    assert found.method == "annealed" and found.ess > 100
    assert abs(found.log_z - (LOG_2PI + 2 * math.log(4.0))) < 4 * found.standard_error < 0.4


def test_a_far_and_narrow_model_is_annealed():
    base = flow_base(NVP(2).double())
    gebm = pg.GEBM(base, FreeEnergy(normal_energy([3.5, 0.0], 0.4), base))
    with pytest.raises(UntrustedLogZError, match="fewer than 400"):
        trusted_log_z(gebm, method="importance", num_latents=5000, generator=rng())
    found = trusted_log_z(gebm, num_latents=5000, num_chains=512, generator=rng())
    assert found.method == "annealed"
    assert abs(found.log_z - (LOG_2PI + 2 * math.log(0.4))) < 4 * found.standard_error < 0.4
    with pytest.raises(UntrustedLogZError, match=r"annealing.*standard error is .*nor is it by"):
        trusted_log_z(gebm, num_latents=5000, num_chains=32, max_error=1e-3, generator=rng())


def test_annealing_that_lost_a_mode_is_refused(monkeypatch):
    gebm = pg.GEBM(flow_base(NVP(2).double()), Constant(0.0))
    true = likelihood.annealed_log_z(gebm, 32, generator=rng())

    def refused(**changes):
        monkeypatch.setattr(
            likelihood, "annealed_log_z", lambda *args, **kw: true._replace(**changes)
        )
        with pytest.raises(UntrustedLogZError) as caught:
            trusted_log_z(gebm, method="annealed", num_latents=1000, generator=rng())
        return str(caught.value)

    assert "have missed something" in refused(log_z=-7.0)
    assert "moves were accepted" in refused(accept_prob=torch.tensor([0.9, 0.1]))
    assert "standard error" in refused(standard_error=0.2)


def test_what_has_no_likelihood_is_refused():
    plain = pg.GEBM(pg.Base(nn.Linear(2, 2), pg.StandardNormal(2)), Constant(0.0))
    log_z = TrustedLogZ(0.0, 0.0, 1000.0, 0.0, "importance")
    x = torch.randn(5, 2, generator=rng())
    with pytest.raises(ValueError, match="base: expected one with a density"):
        log_likelihood(plain, x, log_z)
    base = flow_base(NVP(2))
    gebm = pg.GEBM(base, Quadratic(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ValueError, match="at least two data"):
        log_likelihood(gebm, x[0], log_z)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match="log density of x: expected finite"):
        log_likelihood(gebm, x, log_z)
    other = pg.GEBM(base, FreeEnergy(Constant(0.0), flow_base(NVP(2))))
    with pytest.raises(ValueError, match="model's own base"):
        trusted_log_z(other, generator=rng())
    with pytest.raises(ValueError, match="method: expected one of"):
        trusted_log_z(gebm, method="ais", generator=rng())


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_tail_shape_against_arviz(shape):
    log_weights = -shape * torch.rand(5000, generator=rng(), dtype=torch.float64).log()
    _, expected = arviz.psislw(log_weights.numpy())
    assert tail_shape(log_weights) == pytest.approx(float(np.asarray(expected)), abs=1e-6)
    assert tail_shape(log_weights + 700.0) == pytest.approx(tail_shape(log_weights))
