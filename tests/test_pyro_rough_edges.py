"""Draws at which a model has no density, or an error: only the chain that is there is rejected."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_gebm as pg
from pyro_gebm.mcmc.gradients import value_and_grad
from pyro_gebm.sampling import pyro_model, recorded
from pyro_gebm.sampling.pyro_lenient import LenientAlgebra
from pyro_gebm.sampling.pyro_model import pyro_target
from pyro_gebm.sampling.pyro_support import LOGARITHM_OF, is_possible
from pyro_gebm.sampling.start import draw_start

pytestmark = pytest.mark.usefixtures("double_precision_and_no_params")

Y = torch.tensor([1.7, 2.5, 1.9], dtype=torch.float64)
TIMES = torch.linspace(0.0, 1.0, 8, dtype=torch.float64)
IN_BATCH = pytest.mark.parametrize("batched", [True, False])


def standard(*values):
    """log N(values; 0, 1), summed."""
    return sum(dist.Normal(0.0, 1.0).log_prob(v) for v in values)


def fails_alone(target, bad, good, expected):
    """At ``good`` value and gradient are as expected; at ``bad`` the value is not finite."""
    u = torch.stack([good, bad, good]).requires_grad_()
    value, gradient = value_and_grad(target.potential_fn, u)
    truth = -expected(u[0])
    (slope,) = torch.autograd.grad(truth, u)
    assert not value[1].isfinite()
    for row in (0, 2):
        torch.testing.assert_close(value[row], truth)
        torch.testing.assert_close(gradient[row], slope[0])
    return value[1]


# Distributions made before.


def made_outside(y, prior, noise):
    w = pyro.sample("w", prior)
    s = pyro.sample("s", dist.HalfNormal(1.0))
    pyro.sample("noise", noise)
    pyro.sample("y", dist.Normal(w.sum(), s).expand([3]).to_event(1), obs=y)


@IN_BATCH
def test_a_distribution_made_outside_of_the_model_does_not_raise(batched):
    with pyro.validation_enabled():  # other tests may have left it off
        prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        noise = dist.TransformedDistribution(
            dist.Normal(0.0, 1.0, validate_args=True),
            dist.transforms.AffineTransform(0.0, 1.0),
            validate_args=True,
        )
        target = pyro_target(made_outside, (Y, prior, noise), {}, batched=batched)

        def expected(u):
            s = u[2].exp()
            prior = standard(u[0], u[1], s, u[3]) + math.log(2) + u[2]
            return prior + dist.Normal(u[0] + u[1], s).log_prob(Y).sum()

        good, bad = torch.tensor([0.3, 0.2, 0.1, 0.5]), torch.tensor([math.nan, 0.0, 0.0, 0.0])
        fails_alone(target, bad, good, expected)
        # It is the user's, and as it was.
        assert prior._validate_args and prior.base_dist._validate_args
        with pytest.raises(ValueError, match="within the support"):
            prior.log_prob(torch.full((2,), math.nan))


# Matrices.


def gaussian_process(y):
    length = pyro.sample("length", dist.LogNormal(-1.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-2.0, 1.0))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(8), covariance(length, noise)), obs=y)


def covariance(length, noise):
    distance = (TIMES[:, None] - TIMES) / length
    return torch.exp(-0.5 * distance**2) + noise**2 * torch.eye(8)


def of_process(u):
    factor = torch.linalg.cholesky(covariance(u[0].exp(), u[1].exp()))
    likelihood = dist.MultivariateNormal(torch.zeros(8), scale_tril=factor)
    return standard(u[0] + 1, u[1] + 2) + likelihood.log_prob(torch.sin(6 * TIMES))


GOOD, NO_FACTOR = torch.tensor([-1.0, -2.0]), torch.tensor([4.0, -30.0])


@IN_BATCH
def test_a_matrix_without_a_factor_rejects_only_its_chain(batched):
    target = pyro_target(gaussian_process, (torch.sin(6 * TIMES),), {}, batched=batched)
    good, bad = GOOD.double(), NO_FACTOR.double()
    with pytest.raises(torch.linalg.LinAlgError):
        of_process(bad)
    fails_alone(target, bad, good, of_process)


def test_such_a_model_is_recorded(monkeypatch):
    monkeypatch.setattr(recorded, "CALLS_BEFORE", 0)
    target = pyro_target(gaussian_process, (torch.sin(6 * TIMES),), {})
    fails_alone(target, NO_FACTOR.double(), GOOD.double(), of_process)
    (tape,) = target.potential_fn.tapes.values()
    assert tape is not None


def test_a_model_that_helps_itself_is_not_disturbed():
    """Chain by chain, where the exception is that of the chain."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        try:
            factor = torch.linalg.cholesky(x * torch.eye(2))
        except torch.linalg.LinAlgError:
            factor = torch.eye(2)
        law = dist.MultivariateNormal(torch.zeros(2), scale_tril=factor)
        pyro.sample("y", law, obs=torch.ones(2))

    target = pyro_target(model, (), {}, batched=False)
    expected = -standard(*torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(target.potential_fn(torch.tensor([[-1.0]])), expected[None])


@IN_BATCH
def test_starts_without_a_factor_are_drawn_again(batched):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        matrix = torch.stack([torch.stack([x, x * 0]), torch.stack([x * 0, x])])
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), matrix), obs=torch.ones(2))

    target = pyro_target(model, (), {}, batched=batched)
    torch.manual_seed(0)
    assert float(draw_start(target, 20).min()) > 0


@pytest.mark.parametrize("seed", range(4, 8))
def test_first_runs_without_a_factor_are_forgiven(seed):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        factor = torch.linalg.cholesky(x * torch.eye(2))
        law = dist.MultivariateNormal(torch.zeros(2), scale_tril=factor)
        pyro.sample("y", law, obs=torch.ones(2))

    torch.manual_seed(seed)
    assert pyro_target(model, (), {}).shapes == {"x": ()}


class Quadratic(dist.TorchDistribution):
    """log p = -½ v' M⁻¹ v, with the equations solved for every value."""

    support = dist.constraints.real_vector

    def __init__(self, matrix):
        self.matrix = matrix
        super().__init__(event_shape=matrix.shape[-1:], validate_args=False)

    def log_prob(self, value):
        return -0.5 * (value * torch.linalg.solve(self.matrix, value)).sum(-1)


@IN_BATCH
def test_densities_that_solve_equations(batched):
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", Quadratic(x * torch.eye(2)), obs=torch.ones(2))

    target = pyro_target(model, (), {}, batched=batched)
    bad, good = torch.zeros(1), torch.tensor([0.5])
    fails_alone(target, bad, good, lambda u: standard(u[0]) - 1 / u[0])


def matrices():
    """Three, of which the second is singular."""
    found = torch.eye(2) + torch.tensor([0.0, 0.5, 1.0])[:, None, None]
    found[1] = 0.0
    return found


@pytest.mark.parametrize("operation", [torch.linalg.cholesky, torch.linalg.inv, torch.inverse])
def test_lenient_algebra_gives_nan_where_torch_raises(operation):
    given = matrices() + torch.diag_embed(torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 2.0]]))
    with pytest.raises(torch.linalg.LinAlgError):
        operation(given)
    with LenientAlgebra():
        found = operation(given)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[::2], operation(given[::2]))


@pytest.mark.parametrize("right_shape", [(2,), (3, 2), (2, 4), (3, 2, 4), (5, 3, 2, 1)])
def test_lenient_equations(right_shape):
    right = torch.arange(math.prod(right_shape)).reshape(right_shape).double()
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.solve(matrices(), right)
    with LenientAlgebra():
        found = torch.linalg.solve(matrices(), right)
    expected = torch.linalg.solve(
        matrices() + torch.eye(2) * (matrices() == 0).all(-1, True), right
    )
    one = (slice(None),) * (len(right_shape) == 4) + (1,)
    assert found[one].isnan().all()
    expected[one] = torch.nan
    torch.testing.assert_close(found, expected, equal_nan=True)


# Parameters that are invalid at some forward draws.


def sometimes_negative(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, a).expand([3]).to_event(1), obs=y)


@IN_BATCH
@pytest.mark.parametrize("seed", range(6))
def test_a_forward_draw_without_a_density_is_no_reason_to_refuse(seed, batched):
    torch.manual_seed(seed)
    target = pyro_target(sometimes_negative, (Y,), {}, batched=batched)

    def expected(u):
        return standard(u[0]) + dist.Normal(0.0, u[0]).log_prob(Y).sum()

    fails_alone(target, torch.tensor([-0.5]), torch.tensor([0.5]), expected)


@pytest.mark.parametrize(
    ("values", "expected", "agree"),
    [
        ([1.0, math.nan], [1.0, math.inf], True),
        ([1.0, math.nan], [1.1, math.nan], False),
        ([1.0, 2.0], [1.0, math.nan], False),
        ([1.0, math.inf], [1.0, 2.0], False),
        ([math.nan, math.nan], [math.nan, math.nan], True),
    ],
)
def test_rows_that_are_not_finite_hide_nothing(values, expected, agree):
    assert pyro_model._agree(torch.tensor(values), torch.tensor(expected)) is agree


# Values outside of supports and parameters outside of constraints.


def waiting(y):
    t = pyro.sample("t", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Exponential(2.0).expand([3]).to_event(1), obs=y - t)


def pareto(y):
    t = pyro.sample("t", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Pareto(t, 3.0), obs=y)


def transformed_data(y):
    t = pyro.sample("t", dist.Normal(0.0, 1.0))
    law = dist.TransformedDistribution(
        dist.Exponential(torch.ones(3)), dist.transforms.AffineTransform(t, 2.0)
    )
    pyro.sample("y", law.to_event(1), obs=y)


def coin(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Bernoulli(a).expand([3]).mask(torch.ones(3) > 0), obs=(y > 1.8).double())


def heavy(y):
    df = pyro.sample("df", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.StudentT(df, 0.0, 1.0).expand([3]).to_event(1), obs=y)


def zeros_and_more(y):
    rate = pyro.sample("rate", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=torch.tensor(0.5)), obs=y.round()[0] * 0)


def of_two(y):
    t = pyro.sample("t", dist.Normal(0.0, 1.0))
    shifted = dist.Exponential(torch.tensor([1.0, 2.0]))
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), shifted)
    pyro.sample("y", mixture, obs=y[0] - t)


def scale_below(y):
    """A latent site whose parameter depends on another."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Gamma(a.abs() + 0.1, 1.0))
    c = pyro.sample("c", dist.Gamma(2.0, 1.0))
    pyro.sample("y", dist.Beta(a + c, 1.0), obs=torch.tensor(0.5))


def exponential(x, rate):
    return (math.log(rate) - rate * x).sum()


RESTRICTED = {
    waiting: (1.0, 1.75, lambda u: standard(u) + exponential(Y - u, 2.0)),
    pareto: (
        1.0,
        1.75,
        lambda u: standard(u) + (math.log(3.0) + 3 * u.log() - 4 * Y.log()).sum(),
    ),
    transformed_data: (
        1.0,
        1.75,
        lambda u: standard(u) + exponential((Y - u) / 2, 1.0) - 3 * math.log(2),
    ),
    coin: (0.3, 1.2, lambda u: standard(u) + 2 * u.log() + (1 - u).log()),
    heavy: (0.7, -0.7, lambda u: standard(u) + dist.StudentT(u).log_prob(Y).sum()),
    zeros_and_more: (
        0.7,
        -0.7,
        lambda u: standard(u) + (0.5 + 0.5 * (-u).exp()).log(),
    ),
    of_two: (
        1.0,
        1.75,
        lambda u: standard(u) + (0.5 * (u - Y[0]).exp() + (2 * (u - Y[0])).exp()).log(),
    ),
}


@IN_BATCH
@pytest.mark.parametrize("model", RESTRICTED, ids=lambda model: model.__name__)
def test_what_is_impossible_has_density_zero(model, batched):
    inside, outside, log_prob = RESTRICTED[model]
    target = pyro_target(model, (Y,), {}, batched=batched)
    bad, good = torch.tensor([outside]), torch.tensor([inside])
    at_bad = fails_alone(target, bad, good, lambda u: log_prob(u).sum())
    assert at_bad == math.inf


@IN_BATCH
@pytest.mark.parametrize("how", ["handler", "method", "inside"])
def test_what_is_masked_may_be_impossible(how, batched):
    mask = torch.tensor([False, True, True])

    def model(y):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        law = dist.Exponential(2.0).expand([3])
        if how == "handler":
            with poutine.mask(mask=mask):
                pyro.sample("y", law, obs=y - t)
        else:
            law = law.mask(mask)
            pyro.sample("y", law.to_event(1) if how == "inside" else law, obs=y - t)

    target = pyro_target(model, (Y,), {}, batched=batched)

    def expected(u):
        return standard(u[0]) + exponential(Y[1:] - u[0], 2.0)

    # Between the first, which is masked, and the smallest of the others; then beyond that.
    fails_alone(target, torch.tensor([1.95]), torch.tensor([1.8]), expected)


def test_a_mixture_is_possible_where_one_component_is():
    # torch's own check wants all of them.
    pieces = dist.Uniform(torch.arange(2.0), torch.arange(2.0) + 1, validate_args=False)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), pieces, validate_args=False)
    found = [
        bool(is_possible(mixture, torch.tensor(value), held=False, in_batch=False))
        for value in (-0.5, 0.5, 1.5, 2.5)
    ]
    assert found == [False, True, True, False]


def test_components_of_a_masked_mixture():
    shape = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2, 2)), dist.Gamma(shape, 1.0, validate_args=False)
    )
    found = [
        bool(is_possible(mixture, torch.ones(2), mask, held=False, in_batch=False))
        for mask in (None, torch.tensor([False, True]), torch.tensor([True, False]))
    ]
    assert found == [False, True, False]


@IN_BATCH
def test_a_formula_that_holds_where_the_base_has_no_density_is_kept(batched):
    """Gumbel is a transformed Uniform, whose values round to one far out."""

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 100.0))
        pyro.sample("y", dist.Gumbel(loc, 1.0).expand([3]).to_event(1), obs=y)

    def expected(u):
        return dist.Normal(0.0, 100.0).log_prob(u[0]) + (u[0] - Y - (u[0] - Y).exp()).sum()

    target = pyro_target(model, (Y,), {}, batched=batched)
    fails_alone(target, torch.tensor([math.nan]), torch.tensor([-60.0]), expected)


@pytest.mark.parametrize("seed", range(6))
def test_a_prior_under_which_the_data_are_seldom_possible(seed):
    torch.manual_seed(seed)
    assert pyro_target(waiting, (Y - 3.0,), {}).shapes == {"t": ()}


@IN_BATCH
def test_parameters_that_depend_on_latent_sites_are_checked(batched):
    target = pyro_target(scale_below, (Y,), {}, batched=batched)
    u = torch.tensor([[0.5, 0.0, 0.0], [-2.0, 0.0, 0.0]])
    assert target.potential_fn(u).isfinite().tolist() == [True, False]


@IN_BATCH
def test_a_check_that_the_user_has_switched_off_stays_off(batched):
    """Quasi-likelihoods: counts that are no integers."""

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        law = dist.Poisson(rate.expand(3), validate_args=False)
        pyro.sample("y", law.to_event(1), obs=y)

    target = pyro_target(model, (Y,), {}, batched=batched)

    def expected(u):
        rate = u[0].exp()
        return u[0] + u[0] - rate + (Y * u[0] - rate - (Y + 1).lgamma()).sum()

    fails_alone(target, torch.tensor([math.nan]), torch.tensor([0.2]), expected)


def test_a_posterior_that_ends_at_a_wall():
    """Against quadrature; the formula alone has mass up to infinity."""
    y = (torch.arange(12) < 9).double()

    def model():
        a = pyro.sample("a", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Bernoulli(a).expand([12]).to_event(1), obs=y)

    with pytest.warns(UserWarning):
        found = pg.sample(model, num_samples=150, warmup_steps=100, seed=2, progress=False)
    grid = torch.linspace(0.0, 1.0, 2001)
    density = grid**9 * (1 - grid) ** 3 * (-0.5 * grid**2).exp()
    mean = float((grid * density).sum() / density.sum())
    draws = found.posterior["a"]
    assert float(draws.max()) <= 1.0
    assert float(draws.mean()) == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("log_prob", LOGARITHM_OF, ids=lambda f: f.__qualname__)
@pytest.mark.parametrize("parameter", [0.0, -0.7])
def test_parameters_that_need_no_check(log_prob, parameter):
    kind = getattr(dist, log_prob.__qualname__.split(".")[0])
    assert kind.log_prob is log_prob
    given = dict.fromkeys(kind.arg_constraints, 1.0) | {LOGARITHM_OF[log_prob]: parameter}
    law = kind(**{name: torch.tensor(value) for name, value in given.items()}, validate_args=False)
    for value in (0.0, 0.3, 1.0, 4.0):
        assert not law.log_prob(torch.tensor(value)).isfinite()


def test_plain_models_pay_nothing():
    def checked(u):
        law = dist.Normal(u[0], u[1], validate_args=False).expand([3]).to_event(1)
        counts = dist.Poisson(torch.ones(3), validate_args=False).to_event(1)
        for fn, value in ((law, Y), (counts, Y)):
            assert is_possible(fn, value, held=False, in_batch=True) is None
        assert is_possible(law, Y - u[1], held=False, in_batch=True) is None
        assert is_possible(counts, Y - u[1], held=False, in_batch=True) is not None
        return u.sum()

    torch.func.vmap(checked)(torch.ones(2, 2))


# Without gradients, with missing data, on a circle.


def test_without_gradients():
    with torch.no_grad():
        target = pyro_target(waiting, (Y,), {})
        _, gradient = value_and_grad(target.potential_fn, torch.tensor([[1.0]]))
    torch.testing.assert_close(gradient, torch.tensor([[1.0 - 6.0]]))


@IN_BATCH
def test_missing_data_are_imputed(batched):
    mask = torch.tensor([True, False, True])

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=mask)

    target = pyro_target(model, (Y,), {}, batched=batched)

    def expected(u):
        return standard(u[0], *(Y[mask] - u[0]), *(u[1:] - u[0]))

    fails_alone(target, torch.full((4,), math.nan), torch.tensor([0.3, 1.0, -2.0, 0.5]), expected)


@IN_BATCH
def test_angles_stay_on_the_circle(batched):
    def model():
        pyro.sample("angle", dist.VonMises(torch.tensor(0.5), torch.tensor(2.0)))
        pyro.sample("pair", dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, 0.1))

    target = pyro_target(model, (), {}, batched=batched)
    u = torch.tensor([[-30.0, 0.0, 30.0], [0.2, 0.3, 0.4]])
    sites = target.to_sites(u)
    assert sites["angle"].abs().max() <= math.pi and sites["pair"].abs().max() <= math.pi
    # The mass of angles on the whole of the line that is sampled.
    line = torch.linspace(-12.0, 12.0, 1201)
    rows = torch.stack([line, 0 * line, 0 * line], -1)
    rest = target.potential_fn(torch.tensor([[0.0, 0.0, 0.0]]))
    density = (rest - target.potential_fn(rows)).exp()
    mean = (density * target.to_sites(rows)["angle"].sin()).sum() / density.sum()
    ratio = torch.special.i1(torch.tensor(2.0)) / torch.special.i0(torch.tensor(2.0))
    torch.testing.assert_close(mean, ratio * math.sin(0.5), rtol=1e-3, atol=1e-3)


@IN_BATCH
def test_a_law_that_is_moved_has_coordinates_of_its_own(batched):
    def moved(y):
        shift = dist.transforms.AffineTransform(0.5, 1.0)
        x = pyro.sample("x", dist.TransformedDistribution(dist.HalfNormal(1.0), shift))
        pyro.sample("y", dist.Normal(x, 1.0).expand([3]).to_event(1), obs=y)

    target = pyro_target(moved, (Y,), {}, batched=batched)
    u = torch.tensor([[-3.0], [0.2], [1.1]], dtype=torch.float64)
    x = 0.5 + u[:, 0].exp()
    truth = standard(x - 0.5) + math.log(2) + u[:, 0] + standard(*(Y[:, None] - x))
    torch.testing.assert_close(target.potential_fn(u), -truth)
    torch.testing.assert_close(target.to_sites(u)["x"], x)
