"""Draws of the reference follow its potential, however one site depends on another."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_gebm.sampling import pyro_prior
from pyro_gebm.sampling.pyro_model import pyro_target

NUM_DRAWS = 4000
CELLS = (8, 13)  # of the chi-square test, over mu in (-4, 4) and theta in (-13, 13)
FINE = 20  # midpoints of the quadrature in every cell, per axis


def where():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("theta", dist.Normal(0.0, torch.where(mu > 0, 0.5, 3.0)))


def detach():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("theta", dist.Normal(2 * mu.detach(), 0.5))


def rounded():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("theta", dist.Normal(2 * mu.round(), 1.0))


def looked_up():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    index = 1 + (mu > 1).long() - (mu < -1).long()
    pyro.sample("theta", dist.Normal(torch.tensor([-6.0, 0.0, 6.0])[index], 1.0))


def midpoints(half_width, cells):
    return half_width * ((2 * torch.arange(cells * FINE) + 1) / (cells * FINE) - 1)


def cell_probs(model):
    """The mass of exp(-U_0) in every cell; jumps at multiples of 1/2 lie between midpoints."""
    u = torch.cartesian_prod(midpoints(4.0, CELLS[0]), midpoints(13.0, CELLS[1]))
    density = (-pyro_target(model, (), {}).reference.potential_fn(u).double()).exp()
    cells = density.reshape(CELLS[0], FINE, CELLS[1], FINE).sum((1, 3))
    return (cells * 8 * 26 / len(u)).reshape(-1)


def fitting(model, batched=True):
    """p of the draws under exp(-U_0), by a chi-square test on cells."""
    u = pyro_target(model, (), {}, batched=batched).reference.sample(NUM_DRAWS).double()
    edges = [torch.linspace(-half, half, n + 1).double() for half, n in ((4, 8), (13, 13))]
    return chi_square(torch.histogramdd(u, edges).hist.reshape(-1), cell_probs(model))


def chi_square(counts, probs):
    """The unlikely cells, and what lies outside of all, are one cell more."""
    likely = probs * NUM_DRAWS >= 5
    counts, probs = counts[likely], probs[likely]
    rest = max(float(1 - probs.sum()), 1e-12)
    expected = torch.cat([probs, torch.tensor([rest])]) * NUM_DRAWS
    found = torch.cat([counts, (NUM_DRAWS - counts.sum())[None]])
    statistic = float(((found - expected).square() / expected).sum())
    return stats.chi2.sf(statistic, len(expected) - 1)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("model", [where, detach, rounded, looked_up])
def test_draws_follow_the_potential(model, batched):
    assert fitting(model, batched) > 1e-4


@pytest.mark.parametrize("model", [where, detach, rounded])
def test_a_site_wrongly_called_free_is_noticed(model, monkeypatch):
    """Plant it: dependence is missed, so theta is drawn at one value of mu."""
    monkeypatch.setattr(pyro_prior, "is_batchedtensor", lambda log_prob: False)
    assert fitting(model) < 1e-6


def test_variance_behind_a_branch():
    u = pyro_target(where, (), {}).reference.sample(NUM_DRAWS)
    for side, variance in ((u[:, 0] <= 0, 9.0), (u[:, 0] > 0, 0.25)):
        theta = u[side, 1]
        assert abs(float(theta.var()) / variance - 1) < 4 * (2 / len(theta)) ** 0.5


def runs_of(model, num_draws=1000):
    """How often 1000 draws ran the model, how often the construction did, and the draws."""
    runs = []

    def counted():
        runs.append(1)
        model()

    target = pyro_target(counted, (), {})
    built = len(runs)
    u = target.reference.sample(num_draws)
    return len(runs) - built, built, u


def independent():
    for i in range(20):
        pyro.sample(f"x{i}", dist.Gamma(2.0, 1.0 + i))
    with pyro.plate("rows", 3):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=torch.tensor(0.0))


def test_independent_sites_are_drawn_without_the_model():
    runs, built, u = runs_of(independent)
    assert runs == 0 and built < 15  # a number that does not grow with that of sites
    assert len(u.unique()) > 0.99 * u.numel()


@pytest.mark.parametrize("model", [where, detach, rounded])
def test_dependent_sites_take_one_run(model):
    runs, _, u = runs_of(model)
    assert runs == 1 and len(u.unique()) > 0.99 * u.numel()


def test_without_batching_the_model_runs_for_every_draw():
    """Where ``vmap`` cannot tell, no site is free; where it cannot draw, the model loops."""

    class Reading(dist.Normal):
        """Draws by reading its parameters, which ``vmap`` refuses."""

        def sample(self, sample_shape=()):
            return torch.normal(self.loc.item(), self.scale.item(), sample_shape)

        rsample = sample

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("theta", Reading(2 * mu.detach(), 0.5))

    runs, _, u = runs_of(model, 400)
    assert runs == 400
    # Var(theta - 2 mu) = 1/4; the error of a normal's variance is its sqrt(2 / n).
    assert abs(float((u[:, 1] - 2 * u[:, 0]).var()) / 0.25 - 1) < 4 * (2 / 400) ** 0.5


@pytest.mark.parametrize("batched", [True, False])
def test_a_density_without_gradient_is_not_blamed_on_the_batch(batched):
    class Stiff(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("no gradient here")

    def stiff():
        pyro.factor("f", Stiff.apply(pyro.sample("x", dist.Normal(0.0, 1.0))))

    with pytest.raises(
        ValueError, match=r"expected a differentiable log density.*no gradient here"
    ):
        pyro_target(stiff, (), {}, batched=batched)


def test_values_written_in_place_are_told_to_be_stacked():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        mean = torch.zeros(2)
        mean[0] = mu
        pyro.sample("theta", dist.Normal(mean, 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"torch\.stack, not in place"):
        pyro_target(model, (), {})
