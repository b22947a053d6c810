"""Latent chains of training: their law, their step size, what they leave alone, resuming."""

import io
import math

import pytest
import torch
from helpers import linear_gaussian, linear_gaussian_posterior, small_gebm
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc.random import draw_seed
from pyro_gebm.training.latents import GAIN, LatentChains

MANY = 20_000


def positions_at(chains, z, step_size=1.0):
    """Let persistent chains go on from ``z`` with a step."""
    log_step = torch.tensor(step_size, dtype=z.dtype).log()
    chains.load_state_dict({"calls": 0, "log_step": log_step, "positions": z})


def exact_draws(gebm, num):
    mean, covariance = map(torch.as_tensor, linear_gaussian_posterior(gebm))
    return torch.distributions.MultivariateNormal(mean, covariance).sample((num,))


def worst_score(gebm, z):
    """Largest |error| of mean and covariance of independent draws of ν, in standard errors."""
    mean, covariance = map(torch.as_tensor, linear_gaussian_posterior(gebm))
    variance, deviation = covariance.diagonal(), z - mean
    mean_score = deviation.mean(0) / (variance / len(z)).sqrt()
    error = deviation.T @ deviation / len(z) - covariance
    spread = (variance[:, None] * variance + covariance.square()).sqrt() / math.sqrt(len(z))
    return float(torch.cat([mean_score.abs(), (error / spread).abs().flatten()]).max())


class Walled(nn.Module):
    """|x|², NaN from x₁ = 0.4 on."""

    def forward(self, x):
        return torch.where(x[:, 0] < 0.4, x.square().sum(-1), torch.nan)


def walled_gebm():
    return pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2).double()), Walled())


def mala_by_hand(gebm, z, num_steps, step_size, generator):
    """Positions, acceptance (step, chain) and rejections of what is not finite."""
    gamma, accepts, bad = step_size**2 / 2, [], 0

    def potential(z):
        z = z.clone().requires_grad_()
        energy = gebm.energy(gebm.base(z)) - gebm.base.latent_prior.log_prob(z)
        return energy.detach(), torch.autograd.grad(energy.sum(), z)[0]

    def log_q(to, start, slope):
        return -(to - start + gamma * slope).square().sum(-1) / (4 * gamma)

    for _ in range(num_steps):
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        energy, slope = potential(z)
        new = z - gamma * slope + math.sqrt(2 * gamma) * noise
        new_energy, new_slope = potential(new)
        log_ratio = energy - new_energy + log_q(z, new, new_slope) - log_q(new, z, slope)
        bad += int((~log_ratio.isfinite()).sum())
        accepts.append(torch.where(log_ratio.isfinite(), log_ratio.exp().clamp(max=1), 0.0))
        uniform = torch.rand(len(z), generator=generator, dtype=z.dtype)
        z = torch.where((uniform < accepts[-1])[:, None], new, z)
    return z, torch.stack(accepts), bad


# --- the law ------------------------------------------


@pytest.mark.parametrize("build", [linear_gaussian, walled_gebm])
def test_a_call_is_hand_written_mala(build):
    gebm, num, steps = build(), 200, 4
    chains = LatentChains(gebm, steps=steps, persistent=False, target_accept_prob=0.7)
    for gain in [1, 1 / 2, 1 / 3]:
        step_size = chains.step_size
        torch.manual_seed(3)
        start = gebm.base.latent_prior.sample(num)
        generator = torch.Generator().manual_seed(draw_seed(torch.default_generator))
        z, accept, bad = mala_by_hand(gebm, start, steps, float(step_size), generator)
        torch.manual_seed(3)
        draws = chains.draw(num)
        torch.testing.assert_close(draws.z, z, rtol=0, atol=1e-12)
        torch.testing.assert_close(draws.accept_prob, accept.mean(), rtol=0, atol=1e-12)
        assert (int(draws.num_diverging), draws.num_gradients) == (bad, steps + 1)
        # Those that start behind the wall stay there, and have no say.
        awake = gebm.energy(gebm.base(start)).isfinite()
        assert torch.equal(draws.z[~awake], start[~awake])
        assert bad >= steps * int((~awake).sum())
        expected = step_size * (gain * (accept[:, awake].mean() - 0.7)).exp()
        torch.testing.assert_close(chains.step_size, expected, rtol=1e-12, atol=0)
    assert (bad > 0) == (build is walled_gebm)


def test_exact_draws_of_nu_stay_exact_draws():
    gebm = linear_gaussian()
    chains = LatentChains(gebm, steps=8, persistent=True)
    positions_at(chains, exact_draws(gebm, MANY))
    for _ in range(3):
        draws = chains.draw(MANY)
    assert 0.4 < draws.accept_prob < 0.8
    assert worst_score(gebm, draws.z) < 4


@pytest.mark.parametrize("persistent", [False, True])
def test_chains_from_eta_come_to_nu(persistent):
    gebm = linear_gaussian()
    chains = LatentChains(gebm, steps=20, persistent=persistent)
    assert worst_score(gebm, gebm.base.latent_prior.sample(MANY)) > 50
    for _ in range(4):  # the step size settles
        chains.draw(1000)
    draws = chains.draw(MANY) if not persistent else [chains.draw(MANY) for _ in range(3)][-1]
    assert worst_score(gebm, draws.z) < 4


class Slope(nn.Module):
    """3 x₁ + x₂."""

    def forward(self, x):
        return x @ torch.tensor([3.0, 1.0], dtype=x.dtype)


def test_chains_within_walls_come_to_nu():
    # On [-1, 1]² it is a product of truncated exponentials of rates 3 and 1.
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.UniformPrior(2, -1, 1).double()), Slope())
    z = LatentChains(gebm, steps=60, persistent=False).draw(MANY).z
    assert (z.abs() < 1).all()
    for column, rate in zip(z.T.numpy(), (3.0, 1.0), strict=True):
        law = stats.truncexpon(2 * rate, loc=-1, scale=1 / rate)
        assert stats.kstest(column, law.cdf).pvalue > 1e-4


# --- the step size ------------------------------------------


@pytest.mark.parametrize(("target", "first"), [(0.4, 0.3), (0.6, 20.0), (0.85, 0.3)])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_step_size_reaches_the_target_acceptance(target, first, persistent):
    gebm = linear_gaussian()
    chains = LatentChains(gebm, steps=3, persistent=persistent, target_accept_prob=target)
    positions_at(chains, gebm.base.latent_prior.sample(128), first)
    for _ in range(120):
        chains.draw(128)
    accepts = torch.stack([chains.draw(128).accept_prob for _ in range(60)])
    # Acceptance differs by 0.4 between chains, and a step size that lags behind makes up for
    # its errors.
    assert abs(accepts.mean() - target) < 4 * 0.4 / math.sqrt(60 * 128)


def test_the_step_size_follows_a_target_that_narrows():
    gebm = linear_gaussian()
    chains = LatentChains(gebm, steps=3, persistent=False)
    for precision in (1.0, 100.0):
        gebm.energy.precision.mul_(precision)
        for _ in range(60):
            draws = chains.draw(512)
        # At a gain of 0.5 it would be 0.25 and 0.96 in turn.
        assert abs(draws.accept_prob - 0.6) < 0.05


# --- what is not finite ------------------------------------------


class Nowhere(nn.Module):
    """0 at the origin and NaN elsewhere."""

    def forward(self, x):
        return torch.where((x == 0).all(-1), x.sum(-1), torch.nan)


def test_chains_whose_every_proposal_is_not_finite_stay_and_are_counted():
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(3).double()), Nowhere())
    chains = LatentChains(gebm, steps=5, persistent=True)
    positions_at(chains, torch.zeros(7, 3, dtype=torch.float64))
    log_step = 0.0
    for call in range(1, 14):
        draws = chains.draw(7)
        assert torch.equal(draws.z, torch.zeros_like(draws.z))
        assert int(draws.num_diverging) == 7 * 5 and draws.accept_prob == 0
        log_step -= 0.6 * max(1 / call, GAIN)
        assert math.isclose(chains.step_size.log(), log_step, rel_tol=1e-12)


def test_persistent_chains_at_bad_places_start_again():
    gebm = walled_gebm()
    chains = LatentChains(gebm, steps=2, persistent=True)
    start = torch.full((400, 2), 5.0, dtype=torch.float64)
    start[::2] = -0.5
    positions_at(chains, start, step_size=1e-6)
    z = chains.draw(400).z
    assert torch.equal(z[1::2], start[1::2])  # bad ones stay for this call
    torch.testing.assert_close(z[::2], start[::2], rtol=0, atol=1e-4)
    z = chains.draw(400).z
    torch.testing.assert_close(z[::2], start[::2], rtol=0, atol=1e-4)
    again = z[1::2]  # now draws of η, which this step size leaves where they are
    assert (again.mean(0).abs() < 4 / math.sqrt(200)).all()
    assert ((again.var(0) - 1).abs() < 4 * math.sqrt(2 / 200)).all()


def test_bad_starts_have_no_say_in_the_step_size():
    chains = LatentChains(walled_gebm(), steps=2, persistent=True)
    positions_at(chains, torch.full((9, 2), 5.0, dtype=torch.float64))
    chains.draw(9)
    assert chains.step_size == 1


# --- which chains go on ------------------------------------------


def test_persistent_chains_go_on_and_grow_in_number():
    chains = LatentChains(linear_gaussian(), steps=2, persistent=True)
    positions_at(chains, torch.zeros(0, 2, dtype=torch.float64), step_size=1e-8)
    five, three, eight = (chains.draw(num).z for num in (5, 3, 8))
    torch.testing.assert_close(three, five[:3], rtol=0, atol=1e-6)
    torch.testing.assert_close(eight[:5], five, rtol=0, atol=1e-6)
    assert len(eight[:, 0].round(decimals=4).unique()) == 8


def test_other_chains_start_from_eta_every_time():
    chains = LatentChains(linear_gaussian(), steps=2, persistent=False)
    positions_at(chains, torch.zeros(0, 2, dtype=torch.float64), step_size=1e-8)
    z = torch.cat([chains.draw(2500).z for _ in range(4)])
    assert len(z[:, 0].unique()) == len(z)
    assert (z.mean(0).abs() < 4 / math.sqrt(len(z))).all()
    assert ((z.var(0) - 1).abs() < 4 * math.sqrt(2 / len(z))).all()


# --- resuming ------------------------------------------


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resumed_chains_go_on_bit_for_bit(stop, persistent):
    def run(chains, sizes):
        return [(chains.draw(num), torch.rand(2)) for num in sizes]

    gebm, sizes = small_gebm(), [70, 5, 90, 70, 70, 100]
    chains = LatentChains(gebm, steps=3, persistent=persistent)
    run(chains, sizes[:stop])
    saved = through_a_file({"chains": chains.state_dict(), "random": torch.get_rng_state()})
    expected = run(chains, sizes[stop:])
    torch.manual_seed(99)
    resumed = LatentChains(gebm, steps=3, persistent=persistent)
    resumed.load_state_dict(saved["chains"])
    torch.set_rng_state(saved["random"])
    for (draws, noise), (other, other_noise) in zip(
        run(resumed, sizes[stop:]), expected, strict=True
    ):
        assert torch.equal(noise, other_noise)
        for value, truth in zip(draws[:3], other[:3], strict=True):
            assert torch.equal(value, truth)


def test_a_state_is_a_snapshot():
    chains = LatentChains(small_gebm(), steps=3, persistent=True)
    chains.draw(5)
    state = chains.state_dict()
    kept = through_a_file(state)
    chains.draw(5)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)


# --- what is left alone ------------------------------------------


def layered_gebm():
    """BatchNorm and Dropout, modes and frozen parameters of every kind."""
    generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    energy = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Softplus(), nn.Linear(8, 1))
    gebm = pg.GEBM(pg.Base(generator, pg.StandardNormal(2)), energy).train()
    gebm.base.eval()
    gebm.base.generator[1].train()
    energy[0].weight.requires_grad_(False)
    return gebm


def test_parameters_buffers_gradients_and_modes_are_left_alone():
    gebm = layered_gebm()
    gebm.energy[3].weight.grad = torch.ones_like(gebm.energy[3].weight)
    before = {name: value.clone() for name, value in gebm.state_dict().items()}
    modes = [module.training for module in gebm.modules()]
    needs = [parameter.requires_grad for parameter in gebm.parameters()]
    draws = LatentChains(gebm, steps=3, persistent=True).draw(16)
    torch.testing.assert_close(gebm.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in gebm.modules()] == modes
    assert [parameter.requires_grad for parameter in gebm.parameters()] == needs
    for parameter in gebm.parameters():
        given = parameter is gebm.energy[3].weight
        assert (parameter.grad is None) != given
    assert torch.equal(gebm.energy[3].weight.grad, torch.ones_like(gebm.energy[3].weight))
    assert not any(value.requires_grad for value in draws[:3])


def test_networks_are_in_eval_mode_while_chains_run():
    # Dropout or batch statistics would make the same seed give other draws than eval mode.
    gebm, twin = layered_gebm(), layered_gebm()
    twin.load_state_dict(gebm.state_dict())
    twin.eval()
    torch.manual_seed(1)
    z = LatentChains(gebm, steps=3, persistent=False).draw(16).z
    torch.manual_seed(1)
    assert torch.equal(z, LatentChains(twin, steps=3, persistent=False).draw(16).z)


@pytest.mark.parametrize("persistent", [False, True])
def test_gradients_are_counted(persistent):
    gebm, rows = small_gebm(), []

    def count(module, inputs, output):
        output.register_hook(lambda gradient: rows.append(len(gradient)))

    gebm.energy.register_forward_hook(count)
    chains = LatentChains(gebm, steps=4, persistent=persistent)
    told = sum(num * chains.draw(num).num_gradients for num in (6, 2, 9))
    assert told == sum(rows) == (6 + 2 + 9) * 5


# --- refusals ------------------------------------------


def chains_of(prior=None, **settings):
    return LatentChains(small_gebm(prior), **{"steps": 2, "persistent": True, **settings})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chains_of(steps=0), "steps: .*got 0"),
        (lambda: chains_of(persistent="yes"), "persistent: .*got 'yes'"),
        (lambda: chains_of(target_accept_prob=1.0), "target_accept_prob: .*got 1.0"),
        (lambda: chains_of().draw(0), "num: .*got 0"),
        (
            lambda: chains_of().load_state_dict(chains_of(pg.StandardNormal(3)).state_dict()),
            r"state: expected positions \(C, 2\); got \(0, 3\)",
        ),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
