"""Targets that can be drawn from exactly, and p-values of draws against their exact laws.

20,000 exact draws are 20,000 chains. After some transitions at an acceptance of 0.6 to 0.9 they
are still exact draws, so that the Kolmogorov-Smirnov p-values against the exact distribution
functions, times their number (Bonferroni), pass 1e-4; a wrong kernel falls below 1e-6.
"""

import math

import torch
from helpers import make_tuning, rng, run_chain
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc import Reference
from pyro_gebm.sampling.build import build_target

CHAINS, TRANSITIONS = 20_000, 20
PASS, FAIL = 1e-4, 1e-6

TURN = torch.tensor(
    [[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]], dtype=torch.float64
)
WEIGHTS, MEANS, SCALES = (0.7, 0.3), (-1.0, 1.5), (0.5, 1.0)


BASE_MEAN, BASE_SCALE = (0.6, -0.2), (1.4, 1.3)


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


def transit(kernel, step_size, potential_fn, z, mass=None, transitions=TRANSITIONS, curvature=None):
    """Positions after the transitions, and the mean acceptance."""
    tuning = make_tuning(z, step_size, mass, curvature)
    history = run_chain(kernel, potential_fn, z, tuning, transitions)
    return history[-1][0].z, torch.stack([info.accept_prob.mean() for _, info in history]).mean()


def near_skewed():
    """A normal that overlaps well with ``skewed``, as a reference."""
    mean, scale = (torch.tensor(x, dtype=torch.float64) for x in (BASE_MEAN, BASE_SCALE))

    def sample(num):
        return (mean + scale * torch.randn(num, 2, dtype=torch.float64)) @ TURN.T

    def potential_fn(z):
        return 0.5 * ((z @ TURN - mean) / scale).square().sum(-1)

    return Reference(sample, potential_fn)


class Slopes(nn.Module):
    """E(x) = a·x: on the unit box ν is a product of truncated exponentials."""

    def __init__(self):
        super().__init__()
        self.register_buffer("slopes", torch.tensor([1.0, -3.0], dtype=torch.float64))

    def forward(self, x):
        return x @ self.slopes


def boxed():
    """The target in unconstrained coordinates, exact draws u there, and the p-value of such."""
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.UniformPrior(2)), Slopes()).double()
    a = gebm.energy.slopes
    noise = torch.rand(CHAINS, 2, generator=rng(8), dtype=torch.float64)
    exact = -(1 - noise * (1 - (-a).exp())).log() / a

    box = build_target(gebm)

    def p_value(u):
        z = box.to_sites(u)["z"]
        uniform = (1 - (-a * z).exp()) / (1 - (-a).exp())
        return 2 * min(stats.kstest(u.numpy(), stats.uniform.cdf).pvalue for u in uniform.T)

    return box, box.from_sites({"z": exact}), p_value
