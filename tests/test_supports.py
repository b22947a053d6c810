"""Supports of transformed laws: densities, coordinates and chains against known ones."""

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Flat, draws_of, quiet_sample, standard_scores
from pyro.distributions.torch_distribution import ExpandedDistribution
from scipy import special, stats
from torch import nn
from torch.distributions import biject_to, constraints, transform_to

import pyro_gebm as pg
from pyro_gebm._supports import bare, is_real, true_support

torch.set_num_threads(1)

td = torch.distributions
tr = td.transforms

ONES = torch.ones(2)
DOWN = tr.AffineTransform(-1.0, 1.0)
EXP, UNIFORM = td.Exponential(ONES), td.Uniform(-ONES, ONES)
NORMAL = td.Normal(0 * ONES, ONES)
TWO = td.Categorical(ONES)
PAIR = td.Independent(td.Exponential(torch.ones(2, 2)), 1)


def moved(law, *transforms):
    return td.TransformedDistribution(law, list(transforms))


def vectors(law):
    return law if law.event_shape else td.Independent(law, 1)


class Pushed:
    """The law of an increasing function of a number, by its inverse and log slope of that."""

    def __init__(self, law, inverse, log_slope):
        self.law, self.inverse, self.log_slope = law, inverse, log_slope

    def logpdf(self, z):
        with np.errstate(invalid="ignore", divide="ignore"):
            value = self.law.logpdf(self.inverse(z)) + self.log_slope(z)
        return np.where(np.isnan(value), -np.inf, value)

    def cdf(self, z):
        return self.law.cdf(self.inverse(z))


SQUARED = Pushed(stats.expon(1.0), np.sqrt, lambda z: -np.log(2 * np.sqrt(z)))
TANH = Pushed(
    stats.norm, lambda z: np.arctanh((z - 1) / 2), lambda z: -np.log(2 - (z - 1) ** 2 / 2)
)
MOVED_EXP = stats.expon(-1.0)


class Angle:
    """The von Mises law on [-π, π]; scipy's cdf goes on along the line, from its mode."""

    law = stats.vonmises(2.0, 1.0)

    def logpdf(self, z):
        return np.where(np.abs(z) <= np.pi, self.law.logpdf(z), -np.inf)

    def cdf(self, z):
        return self.law.cdf(z) - self.law.cdf(-np.pi)


VON_MISES = Angle()
CASES = {
    "moved": (moved(EXP, DOWN), MOVED_EXP),
    "moved as vectors": (moved(td.Independent(EXP, 1), DOWN), MOVED_EXP),
    "twice": (moved(moved(EXP, tr.AffineTransform(3.0, 2.0)), DOWN), stats.expon(2.0, 2.0)),
    "composed": (moved(EXP, tr.ComposeTransform([tr.AffineTransform(0.0, 1.0), DOWN])), MOVED_EXP),
    "composed after": (
        moved(NORMAL, tr.ComposeTransform([tr.ExpTransform(), DOWN])),
        stats.lognorm(1.0, -1.0),
    ),
    "composed as vectors": (
        moved(NORMAL, tr.IndependentTransform(tr.ComposeTransform([tr.ExpTransform(), DOWN]), 1)),
        stats.lognorm(1.0, -1.0),
    ),
    "expanded": (moved(td.Exponential(torch.tensor(1.0)), DOWN).expand([2]), MOVED_EXP),
    "expanded by Pyro": (
        ExpandedDistribution(
            dist.TransformedDistribution(dist.Exponential(torch.tensor(1.0)), [DOWN]), [2]
        ),
        MOVED_EXP,
    ),
    "Pyro's": (dist.TransformedDistribution(dist.Exponential(ONES), [DOWN]).to_event(1), MOVED_EXP),
    "masked": (dist.TransformedDistribution(dist.Exponential(ONES), [DOWN]).mask(True), MOVED_EXP),
    "of a class of its own": (
        moved(td.HalfNormal(ONES), tr.AffineTransform(3.0, 2.0)),
        stats.halfnorm(3.0, 2.0),
    ),
    "uniform": (moved(UNIFORM, tr.AffineTransform(1.0, 2 * ONES)), stats.uniform(-1.0, 4.0)),
    "beta": (
        moved(td.Beta(2 * ONES, 3 * ONES), tr.AffineTransform(-1.0, 4.0)),
        stats.beta(2.0, 3.0, -1.0, 4.0),
    ),
    "squared": (moved(moved(EXP, DOWN.inv), tr.PowerTransform(torch.tensor(2.0))), SQUARED),
    "root": (
        moved(td.Uniform(0 * ONES, ONES), tr.PowerTransform(torch.tensor(0.5))),
        stats.beta(2, 1),
    ),
    "logistic": (moved(td.Uniform(0 * ONES, ONES), tr.SigmoidTransform().inv), stats.logistic),
    "tanh": (moved(NORMAL, tr.TanhTransform(), tr.AffineTransform(1.0, 2.0)), TANH),
    "each its own": (moved(EXP, tr.CatTransform([DOWN, DOWN], -1, [1, 1])), MOVED_EXP),
    "from a matrix": (
        moved(
            td.Exponential(torch.ones(1, 2)),
            tr.AffineTransform(-1.0, 1.0, event_dim=2),
            tr.ReshapeTransform((1, 2), (2,)),
        ),
        MOVED_EXP,
    ),
    "angles": (td.VonMises(ONES, 2 * ONES), VON_MISES),
    "skewed angles": (
        dist.SineSkewed(dist.VonMises(ONES, 2 * ONES).to_event(1), 0 * ONES),
        VON_MISES,
    ),
    "mixture": (
        td.MixtureSameFamily(TWO, td.Independent(moved(PAIR.base_dist, DOWN), 1)),
        MOVED_EXP,
    ),
    "moved mixture": (
        moved(td.MixtureSameFamily(TWO, PAIR), tr.AffineTransform(-1.0, 1.0, event_dim=1)),
        MOVED_EXP,
    ),
    "mixture of one support": (
        td.MixtureSameFamily(
            TWO, td.Independent(td.Uniform(torch.zeros(2, 2), torch.ones(2, 2)), 1)
        ),
        stats.uniform,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    law, truth = CASES[request.param]
    return pg.LatentPrior(vectors(law)), truth


def test_density_and_draws(case):
    prior, truth = case
    torch.manual_seed(0)
    z = prior.sample(2000)
    assert all(stats.kstest(column, truth.cdf).pvalue > 1e-4 for column in z.double().numpy().T)
    assert torch.isfinite(prior.log_prob(z)).all()
    # None of these is on an edge of a support; the second number of the last is always inside.
    grid = torch.linspace(-5.93, 6.11, 41)
    inside = z[:1, 1].expand(41)
    for first, second in ((grid, grid), (grid, inside), (inside, grid)):
        found = prior.log_prob(torch.stack([first, second], -1)).double().numpy()
        expected = sum(truth.logpdf(part.double().numpy()) for part in (first, second))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        for one in (0, 20, 40):
            alone = prior.log_prob(torch.stack([first[one], second[one]]))
            np.testing.assert_allclose(alone, expected[one], rtol=1e-4, atol=1e-4)


def test_coordinates_go_both_ways_and_their_volume_is_right(case):
    prior, _ = case
    to_latent, from_latent, log_det = prior.coordinates()
    torch.manual_seed(0)
    z = prior.sample(500)
    u = from_latent(z)
    assert u.shape == (500, 2) and from_latent(z[:0]).shape == (0, 2)
    torch.testing.assert_close(to_latent(u), z, rtol=1e-4, atol=1e-5)
    spread = 2 * torch.randn(200, 2)
    assert torch.isfinite(prior.log_prob(to_latent(spread))).all(), "no walls in u"
    jacobians = torch.func.vmap(torch.func.jacrev(to_latent))(spread[:20])
    found = torch.as_tensor(log_det(spread[:20], to_latent(spread[:20])))
    wanted = torch.linalg.slogdet(jacobians).logabsdet
    torch.testing.assert_close(found.expand(20), wanted, rtol=1e-3, atol=1e-3)


def test_copies_know_the_support(case):
    prior, _ = case
    z = torch.linspace(-5.93, 6.11, 41)[:, None].expand(41, 2)
    for twin in (copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))):
        assert torch.equal(twin.log_prob(z), prior.log_prob(z))
        assert twin.is_unconstrained is prior.is_unconstrained


def test_the_constraint_is_one_of_events_with_transforms_to_it(case):
    law = case[0].distribution
    support = true_support(law)
    z = law.sample((3, 4))
    assert support.event_dim == 1 and support.check(z).shape == (3, 4) and support.check(z).all()
    for registry in (biject_to, transform_to):
        onto = registry(support)
        torch.testing.assert_close(onto(onto.inv(z)), z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "law",
    [
        moved(NORMAL, DOWN),
        moved(td.MultivariateNormal(0 * ONES, torch.eye(2)), DOWN),
        moved(td.Uniform(0 * ONES, ONES), tr.SigmoidTransform().inv, tr.AffineTransform(1.0, 2.0)),
        moved(td.Dirichlet(torch.ones(3)), tr.StickBreakingTransform().inv),
        moved(td.LogNormal(0 * ONES, ONES), tr.ExpTransform().inv),
        moved(moved(NORMAL, tr.ExpTransform()), tr.ExpTransform().inv),
        dist.TransformedDistribution(dist.Normal(0 * ONES, ONES), [dist.transforms.Planar(2)]),
        dist.Gumbel(0 * ONES, ONES),
    ],
)
def test_what_covers_the_domain_of_its_transform_has_no_walls(law):
    # Chains then move in z itself; Planar, for one, has no inverse that one could ask.
    prior = pg.LatentPrior(vectors(law))
    assert prior.is_unconstrained and is_real(true_support(law))


def test_transforms_that_are_no_bijections_are_believed():
    law = moved(NORMAL, tr.AbsTransform())
    assert true_support(law) is constraints.positive
    assert true_support(moved(law, DOWN)).check(torch.tensor([-1.5, -0.5])).tolist() == [
        False,
        True,
    ]


def test_a_shape_that_changes():
    # Of a simplex: 3 numbers that sum to 2, moved to a sum of 5, by 2 coordinates.
    law = moved(td.Dirichlet(torch.ones(3)), tr.AffineTransform(1.0, 2.0, event_dim=1))
    prior = pg.LatentPrior(law)
    z = prior.sample(50)
    u = prior.coordinates().from_latent(z)
    assert u.shape == (50, 2)
    torch.testing.assert_close(prior.coordinates().to_latent(u), z)
    assert prior.log_prob(torch.tensor([1.0, 1.0, 1.0])) == -torch.inf


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (
            moved(td.Poisson(ONES), DOWN),
            "distribution: expected a continuous one; got a discrete support",
        ),
        (
            td.MixtureSameFamily(
                TWO, td.Independent(td.Uniform(0.0, torch.tensor([[1.0, 1.0], [1.0, 2.0]])), 1)
            ),
            "components have one support; got different ones",
        ),
        (
            td.MixtureSameFamily(
                TWO,
                td.Independent(
                    moved(
                        td.Exponential(torch.ones(2, 2)),
                        tr.AffineTransform(torch.tensor([[0.0], [1.0]]), 1.0),
                    ),
                    1,
                ),
            ),
            "transform the mixture instead",
        ),
        (
            td.MixtureSameFamily(
                TWO, td.Independent(moved(td.Uniform(torch.zeros(2, 2), 1.0), DOWN), 1)
            ),
            "transform the mixture instead",
        ),
    ],
)
def test_refusals(law, message):
    with pytest.raises(ValueError, match=message):
        pg.LatentPrior(vectors(law))


def test_wrappers_say_what_is_within_them():
    inner = dist.TransformedDistribution(dist.Exponential(torch.ones(3, 2)), [DOWN])
    for law in (inner, inner.to_event(1), inner.to_event(2), inner.mask(torch.ones(3, 2) > 0)):
        support = true_support(law)
        assert support.event_dim == law.event_dim and repr(bare(support)).startswith("AffineT")
        assert support.check(law.sample()).shape == law.batch_shape
        assert not support.check(torch.full((3, 2), -1.5)).any()
    assert true_support(dist.Gamma(1.0, 1.0)) is constraints.nonnegative


# --- chains --------------------------------------------------------------------------------------


class Slope(nn.Module):
    """E(x) = x₁ + x₂."""

    def forward(self, x):
        return x.sum(-1)


# Each law under its energy, with first and second moments of a number that is easy to integrate.
CHAINS = {
    # Exp(1) tilted by exp(-x): Exp(2).
    "exponential": (moved(EXP, DOWN), Slope(), lambda z: z + 1, 1 / 2, 1 / 2),
    # Uniform on [0, 4], tilted: Exp(1) cut at 4.
    "uniform": (
        moved(UNIFORM, tr.AffineTransform(1.0, 2.0)),
        Slope(),
        lambda z: z + 1,
        (1 - 5 * math.exp(-4)) / (1 - math.exp(-4)),
        (2 - 26 * math.exp(-4)) / (1 - math.exp(-4)),
    ),
    # The mean of a cosine is I₁/I₀, that of its square 1/2 + I₂/(2 I₀).
    "angles": (
        td.VonMises(0 * ONES, 2 * ONES),
        Flat(),
        np.cos,
        special.iv(1, 2.0) / special.iv(0, 2.0),
        (1 + special.iv(2, 2.0) / special.iv(0, 2.0)) / 2,
    ),
    # Beta(2, 3), from the right to the left.
    "beta": (
        moved(td.Beta(2 * ONES, 3 * ONES), tr.AffineTransform(1.0, -2.0)),
        Flat(),
        lambda z: (1 - z) / 2,
        2 / 5,
        1 / 5,
    ),
}


@pytest.mark.parametrize("kernel", ["HMC", "ChEES", "NUTS"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_keep_to_the_law(name, kernel):
    law, energy, number, first, second = CHAINS[name]
    prior = pg.LatentPrior(vectors(law))
    gebm = pg.GEBM(pg.Base(nn.Identity(), prior), energy)
    steps = {"num_samples": 100, "warmup_steps": 100, "global_moves": None}
    z = draws_of(quiet_sample(gebm, kernel=kernel, num_chains=64, **steps))
    assert torch.isfinite(prior.log_prob(torch.as_tensor(z))).all()
    x = number(z)
    for values, truth in ((x, first), (x**2, second)):
        assert (abs(standard_scores(values, truth)) < 4).all()
        assert values.mean(1).std() < 0.5 * values.std(), "chains that stand still prove nothing"


def test_pyros_own_kernel_sees_the_support_of_the_model():
    torch.manual_seed(0)
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.LatentPrior(vectors(moved(EXP, DOWN)))), Slope())
    kernel = pyro.infer.NUTS(gebm.model, max_tree_depth=4)
    mcmc = pyro.infer.MCMC(kernel, num_samples=400, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["z"].flatten() + 1
    assert (x >= 0).all()
    # Exp(2), as if every second of the 800 numbers were independent.
    assert abs(x.mean() - 1 / 2) < 4 * 0.5 / math.sqrt(400)
