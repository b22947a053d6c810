"""Every kernel leaves its target invariant; each planted bug is seen by the same test.

20,000 exact draws are 20,000 chains. After 20 transitions at an acceptance of 0.6 to 0.9 they
are still exact draws, so that the Kolmogorov-Smirnov p-values against the exact distribution
functions, times their number (Bonferroni), pass 1e-4; a wrong kernel falls below 1e-6.
"""

import math

import pytest
import torch
from helpers import make_tuning, normal, rng, run_chain
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc import HMC, MALA, NUTS, Langevin, hmc, integrators, nuts
from pyro_gebm.mcmc.kernel import acceptance, select
from pyro_gebm.sampling import target

CHAINS, TRANSITIONS = 20_000, 20
PASS, FAIL = 1e-4, 1e-6

# kernel, step size for an acceptance between 0.6 and 0.9
KERNELS = {
    "HMC": (HMC(), 0.85),
    "MALA": (MALA(), 0.95),
    "NUTS": (NUTS(max_tree_depth=4), 0.8),
}

TURN = torch.tensor(
    [[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]], dtype=torch.float64
)
WEIGHTS, MEANS, SCALES = (0.7, 0.3), (-1.0, 1.5), (0.5, 1.0)


def skewed(z):
    """A Gumbel and a mixture of two normals, rotated so that the dimensions are coupled."""
    x = z @ TURN
    parts = [
        math.log(w / s) - 0.5 * ((x[:, 1] - m) / s) ** 2
        for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)
    ]
    return x[:, 0] + (-x[:, 0]).exp() - torch.logaddexp(*parts)


def exact_draws():
    generator = rng(7)
    noise = torch.rand(3, CHAINS, generator=generator, dtype=torch.float64)
    second = noise[1] < WEIGHTS[1]
    gauss = torch.randn(CHAINS, generator=generator, dtype=torch.float64)
    mixed = torch.where(second, MEANS[1] + SCALES[1] * gauss, MEANS[0] + SCALES[0] * gauss)
    return torch.stack([-(-noise[0].log()).log(), mixed], -1) @ TURN.T


def mixture_cdf(x):
    return sum(w * stats.norm.cdf(x, m, s) for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True))


def p_value(z):
    """Bonferroni-corrected, of positions ``z`` of the target ``skewed``."""
    x = (z @ TURN).numpy()
    tests = [stats.kstest(x[:, 0], stats.gumbel_r.cdf), stats.kstest(x[:, 1], mixture_cdf)]
    return len(tests) * min(test.pvalue for test in tests)


def transit(kernel, step_size, potential_fn, z, mass=None, transitions=TRANSITIONS):
    """Positions after the transitions, and the mean acceptance."""
    history = run_chain(kernel, potential_fn, z, make_tuning(z, step_size, mass), transitions)
    return history[-1][0].z, torch.stack([info.accept_prob.mean() for _, info in history]).mean()


def test_exact_draws_are_exact():
    assert p_value(exact_draws()) > PASS


@pytest.mark.parametrize("name", KERNELS)
def test_invariant(name):
    start = exact_draws()
    # A mass matrix other than one: it must not matter.
    mass = torch.tensor([1.3, 0.8])
    z, accept = transit(*KERNELS[name], skewed, start, mass)
    assert 0.6 < accept < 0.9
    assert (z != start).any(-1).double().mean() > 0.99
    assert p_value(z) > PASS


@pytest.mark.parametrize("name", ["HMC", "MALA"])
def test_square_rooted_acceptance_is_seen(name, monkeypatch):
    def rooted(energy_error, end):
        accept_prob, diverging = acceptance(energy_error, end)
        return accept_prob.sqrt(), diverging

    monkeypatch.setattr(integrators, "acceptance", rooted)
    z, _ = transit(*KERNELS[name], skewed, exact_draws())
    assert p_value(z) < FAIL


@pytest.mark.parametrize("name", ["HMC", "MALA"])
def test_stale_gradient_is_seen(name, monkeypatch):
    # The GEBM authors' HMC keeps the gradient of a rejected proposal.
    def stale(mask, chosen, other):
        return select(mask, chosen, other)._replace(z_grad=chosen.z_grad)

    monkeypatch.setattr(hmc, "select", stale)
    z, _ = transit(*KERNELS[name], skewed, exact_draws())
    assert p_value(z) < FAIL


def test_square_rooted_tree_weights_are_seen(monkeypatch):
    honest = nuts.record

    def rooted(tree, edge, tuning):
        tree, error = honest(tree, edge, tuning)
        return tree, 0.5 * error

    monkeypatch.setattr(nuts, "record", rooted)
    z, _ = transit(*KERNELS["NUTS"], skewed, exact_draws(), transitions=8)
    assert p_value(z) < FAIL


def test_unchecked_subtrees_are_seen(monkeypatch):
    # A tree that may pass through a U-turn inside would not be grown from every leaf of it.
    honest = nuts.add_leaf

    def unchecked(growth, edge, error, noise, tuning):
        growth, turning = honest(growth, edge, error, noise, tuning)
        return growth, torch.zeros_like(turning)

    monkeypatch.setattr(nuts, "add_leaf", unchecked)
    z, _ = transit(*KERNELS["NUTS"], skewed, exact_draws(), transitions=8)
    assert p_value(z) < FAIL


class Slopes(nn.Module):
    """E(x) = a·x: on the unit box ν is a product of truncated exponentials."""

    def __init__(self):
        super().__init__()
        self.register_buffer("slopes", torch.tensor([1.0, -3.0], dtype=torch.float64))

    def forward(self, x):
        return x @ self.slopes


def boxed():
    """The target in unconstrained coordinates, exact latents, and the p-value of latents."""
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.UniformPrior(2)), Slopes()).double()
    a = gebm.energy.slopes
    noise = torch.rand(CHAINS, 2, generator=rng(8), dtype=torch.float64)
    exact = -(1 - noise * (1 - (-a).exp())).log() / a

    def p_value(z):
        uniform = (1 - (-a * z).exp()) / (1 - (-a).exp())
        return 2 * min(stats.kstest(u.numpy(), stats.uniform.cdf).pvalue for u in uniform.T)

    return gebm, exact, p_value


BOX_CASES = [(HMC(), 1.6), (MALA(), 2.0), (NUTS(max_tree_depth=3), 1.6)]


@pytest.mark.parametrize(("kernel", "step_size"), BOX_CASES, ids=KERNELS)
def test_bounded_prior_is_invariant(kernel, step_size):
    gebm, exact, p_value = boxed()
    assert p_value(exact) > PASS
    box = target.build_target(gebm, 1.0)
    u, accept = transit(kernel, step_size, box.potential_fn, box.from_latent(exact))
    assert 0.6 < accept < 0.95
    assert p_value(box.to_latent(u)) > PASS


def test_missing_jacobian_is_seen(monkeypatch):
    gebm, exact, p_value = boxed()
    monkeypatch.setattr(
        torch.distributions.transforms.ComposeTransform,
        "log_abs_det_jacobian",
        lambda self, u, z: torch.zeros_like(u),
    )
    box = target.build_target(gebm, 1.0)
    u, _ = transit(MALA(), 2.0, box.potential_fn, box.from_latent(exact))
    assert p_value(box.to_latent(u)) < FAIL


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.6])
def test_unadjusted_langevin_has_its_known_bias(step_size):
    # z' = (1 - ε²/2) z + ε ξ is stationary at variance 1/(1 - ε²/4); 20 steps forget the start
    # to within (1 - ε²/2)^40 = 0.005 of it at ε = 0.5.
    z, _ = transit(Langevin(), step_size, normal, torch.randn(CHAINS, 2, generator=rng()).double())
    variance = 1 / (1 - step_size**2 / 4)
    # 2 x 20,000 draws: relative standard error √(2/40,000).
    assert abs(z.var() / variance - 1) < 4 * (2 / z.numel()) ** 0.5
    scaled = (z / variance**0.5).numpy()
    assert 2 * min(stats.kstest(x, stats.norm.cdf).pvalue for x in scaled.T) > PASS


def test_unadjusted_langevin_is_not_invariant():
    z, _ = transit(Langevin(), 0.9, skewed, exact_draws())
    assert p_value(z) < FAIL
