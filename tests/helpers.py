"""What several test files of the samplers share."""

import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc import Reference, Tuning
from pyro_gebm.mcmc.tempering import ReplicaExchange


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make_tuning(z, step_size, inverse_mass=None, curvature=None):
    """The same step for every chain of ``z`` (C, D), unit mass unless given, (D,) or (C, D)."""
    mass = torch.ones_like(z[0]) if inverse_mass is None else inverse_mass.to(z)
    fitted = None if curvature is None else torch.full_like(z[:, 0], curvature)
    return Tuning(torch.full_like(z[:, 0], step_size), mass, curvature=fitted)


def normal(z):
    """Potential of N(0, I)."""
    return 0.5 * z.square().sum(-1)


def gumbel(z):
    """Potential of independent standard Gumbels: skewed, with a wall on its left."""
    return (z + (-z).exp()).sum(-1)


class Counting:
    """A potential that counts its calls, and raises ``error`` at call number ``fail_at``."""

    def __init__(self, potential_fn, fail_at=0, error=KeyboardInterrupt):
        self.potential_fn, self.fail_at, self.error = potential_fn, fail_at, error
        self.calls = 0

    def __call__(self, z):
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error
        return self.potential_fn(z)


def wide_normal(z, mean=0.5, scale=1.5):
    """N(mean, scale² I) in the dimensions and dtype of ``z`` (C, D), to propose from."""

    def sample(num):
        return mean + scale * torch.randn(num, z.shape[1], dtype=z.dtype)

    return Reference(sample, lambda z: normal((z - mean) / scale))


def with_reference(kernel, z):
    """A kernel that proposes gets ``wide_normal`` to propose from, unless it has a reference."""
    if isinstance(kernel, ReplicaExchange) and kernel.reference is None:
        return replace(kernel, reference=wide_normal(z))
    return kernel.bind(wide_normal(z))


def run_chain(kernel, potential_fn, z, tuning, num_steps, seed=0):
    """The states and infos of ``num_steps`` transitions from ``z``."""
    kernel, generator = with_reference(kernel, z), rng(seed)
    state = kernel.init(potential_fn, z)
    history = []
    for _ in range(num_steps):
        state, info = kernel.step(potential_fn, state, tuning, generator=generator)
        history.append((state, info))
    return history


def quiet_sample(model, **settings):
    """``pg.sample`` without progress bar and convergence warnings, seeded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return pg.sample(model, **{"progress": False, "seed": 0, **settings})


def draws_of(idata, name="z"):
    return np.asarray(idata["posterior"][name].values)


def stats_of(idata, name):
    return np.asarray(idata["sample_stats"][name].values)


def stat_names(idata):
    return {str(name) for name in idata["sample_stats"].data_vars}


def standard_scores(values, truth):
    """(mean - truth) / standard error for values (chain, draw, ...).

    The chains are independent, so the spread of their means gives the Monte-Carlo error
    without any estimate of autocorrelation.
    """
    means = np.asarray(values).mean(1)
    return (means.mean(0) - truth) / (means.std(0, ddof=1) / np.sqrt(len(means)))


class Flat(nn.Module):
    """E = 0: the model is its base."""

    def forward(self, x):
        return 0 * x.sum(-1)


class Quadratic(nn.Module):
    """E(x) = (x - m)ᵀ diag(p) (x - m) / 2."""

    def __init__(self, mean, precision):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("precision", torch.as_tensor(precision))

    def forward(self, x):
        return 0.5 * ((x - self.mean).square() * self.precision).sum(-1)


def linear_gaussian():
    """A GEBM of float64 whose ν_β is Gaussian: G linear, E quadratic, η standard normal."""
    generator = nn.Linear(2, 3).double()
    with torch.no_grad():
        generator.weight.copy_(torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.6, 0.6]]))
        generator.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    mean = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    precision = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    prior = pg.StandardNormal(2).double()
    return pg.GEBM(pg.Base(generator, prior), Quadratic(mean, precision))


def linear_gaussian_posterior(gebm, beta=1.0):
    """Mean (2,) and covariance (2, 2) of ν_β of ``linear_gaussian``: completing the square."""
    A, b = gebm.base.generator.weight.detach(), gebm.base.generator.bias.detach()
    P = torch.diag(gebm.energy.precision)
    covariance = torch.linalg.inv(torch.eye(2, dtype=A.dtype) + beta * A.T @ P @ A)
    mean = covariance @ (beta * A.T @ P @ (gebm.energy.mean - b))
    return mean.numpy(), covariance.numpy()


def small_gebm(prior=None, seed=0):
    """A small nonlinear GEBM of float32 on 2 latents and 3 data dimensions."""
    torch.manual_seed(seed)
    prior = prior or pg.StandardNormal(2)
    generator = nn.Sequential(nn.Linear(prior.dim, 8), nn.Tanh(), nn.Linear(8, 3))
    energy = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 1))
    return pg.GEBM(pg.Base(generator, prior), energy)


def snapshot(module):
    """Weights and buffers as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(state, other):
    """Equal to the last bit, in all that ``state`` has."""
    return all(torch.equal(state[name], other[name]) for name in state)
