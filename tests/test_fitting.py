"""Steps fitted to the curvature of a target: what is measured, when it pays, what it is worth."""

import numpy as np
import pytest
import torch
from helpers import Flat, gumbel, make_tuning, normal, rng
from pyro import distributions as dist

import pyro_gebm as pg
from pyro_gebm.inverse.problems import tuned_by_problem
from pyro_gebm.mcmc import HMC, IMH, MALA, NUTS, ChEES, Kinetic, Moves, Reference, draw, fitting
from pyro_gebm.mcmc.averaging import start_dual_averaging, update_dual_averaging
from pyro_gebm.mcmc.fitting import Curvature, fit_steps, measure_curvature
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.mcmc.run import warm_up
from pyro_gebm.mcmc.tempering import temper
from pyro_gebm.mcmc.tuning import LONGEST_FITTED_STEP
from pyro_gebm.sampling.ready import take_chains

MANY = 4000


def bowl(curvatures):
    """N(0, diag(1/c)): its potential, and draws of it."""
    c = torch.as_tensor(curvatures, dtype=torch.float64)
    z = torch.randn(MANY, len(c), generator=rng(2), dtype=torch.float64) / c.sqrt()
    return (lambda z: 0.5 * (c * z.square()).sum(-1)), z


def measured(potential_fn, z, step_size, before=None, groups=1, mass=None):
    tuning = make_tuning(z, step_size, mass, before)
    return measure_curvature(potential_fn, evaluate(potential_fn, z), tuning, 2, rng(3), groups)


@pytest.mark.parametrize("before", [None, 0.5, 2.0])
@pytest.mark.parametrize("step_size", [0.1, 0.9])
def test_the_curvature_of_a_round_normal_is_exact(step_size, before):
    found = measured(*bowl([1.3] * 5), step_size, before)
    torch.testing.assert_close(found.mean, torch.tensor([1.3], dtype=torch.float64))
    assert found.variance < 1e-12 / step_size**4


def test_curvature_is_in_scaled_coordinates():
    scales = torch.tensor([0.1, 3.0, 20.0])
    potential_fn, z = bowl(0.7 / scales.square().double())
    found = measured(potential_fn, z, 0.5, mass=scales.square())
    torch.testing.assert_close(found.mean, torch.tensor([0.7], dtype=torch.float64))


def test_mean_and_variance_over_directions():
    # To lowest order in ε the energy error is -ε²/4 Σ c ΔK_c, and ΔK_c of four steps from the
    # stationary law has a variance that grows as c: trials see directions by that weight.
    curvatures = np.array([0.5, 0.5, 1.0, 2.0])
    found = measured(*bowl(curvatures), 0.02)
    mean = (curvatures**2).sum() / curvatures.sum()
    variance = (curvatures * (curvatures - mean) ** 2).sum() / curvatures.sum()
    assert abs(found.mean - mean) < 0.05 and abs(found.variance - variance) < 0.05


def test_groups_have_curvatures_of_their_own():
    _, z = bowl([1.0] * 3)
    half = torch.where(torch.arange(MANY) < MANY // 2, 0.5, 2.0).double()
    found = measured(lambda z: half * normal(z), z, 0.3, groups=2)
    torch.testing.assert_close(found.mean, torch.tensor([0.5, 2.0], dtype=torch.float64))
    tuning = fit_steps(found, make_tuning(z, 0.3), least_growth=1.05)
    torch.testing.assert_close(tuning.curvature, half)
    assert tuning.step_size[0] > tuning.step_size[-1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_trials_that_tell_nothing_change_nothing(bad):
    z = torch.zeros(20, 2, dtype=torch.float64)
    found = measured(lambda z: bad + 0 * z.sum(-1), z, 0.3)
    assert found.mean.isnan().all()
    tuning = fit_steps(found, make_tuning(z, 0.3), least_growth=1.05)
    assert tuning.curvature is None and (tuning.step_size == 0.3).all()


def test_chains_far_off_do_not_count():
    _, z = bowl([1.0] * 3)
    z[:100] = torch.nan
    z[100:200] += 1e4

    def potential_fn(z):
        return torch.where(z[:, 0] > 100, 0.3, 1.0) * normal(z)

    clean = measured(potential_fn, z, 0.5)
    torch.testing.assert_close(clean.mean, torch.tensor([1.0], dtype=torch.float64))


def test_chains_may_have_steps_of_their_own():
    potential_fn, z = bowl([1.0] * 3)
    sizes = (0.2 * torch.randn(MANY, generator=rng(5), dtype=torch.float64)).exp()
    tuning = make_tuning(z, 0.3)._replace(step_size=0.3 * sizes)
    found = measure_curvature(potential_fn, evaluate(potential_fn, z), tuning, 2, rng(3))
    # To lowest order: the rest is of the size of ε²/4 = 0.02.
    assert abs(found.mean - 1) < 0.03 and found.variance < 0.01


def chosen(mean, variance, step_size, before=None, least_growth=1.05):
    found = Curvature(*(torch.tensor([x], dtype=torch.float64) for x in (mean, variance)))
    z = torch.zeros(3, 1, dtype=torch.float64)
    return fit_steps(found, make_tuning(z, step_size, curvature=before), least_growth)


def test_steps_grow_by_the_fourth_root():
    tuning = chosen(1.0, 1 / 15, 0.3)
    assert (tuning.curvature == 1.0).all()
    torch.testing.assert_close(tuning.step_size, torch.full_like(tuning.step_size, 0.6))


def test_steps_are_no_longer_than_the_limit():
    tuning = chosen(4.0, 1e-9, 0.3)
    expected = torch.full_like(tuning.step_size, LONGEST_FITTED_STEP / 2)
    torch.testing.assert_close(tuning.step_size, expected)


def test_where_curvature_varies_it_is_leapfrog():
    assert chosen(1.0, 2.0, 0.6).curvature is None
    assert (chosen(1.0, 2.0, 0.6).step_size == 0.6).all()
    assert chosen(-0.5, 0.01, 0.6).curvature is None


def test_where_the_limit_leaves_no_longer_steps_it_is_leapfrog():
    # In a plane leapfrog's steps on a normal are longer than the limit, at an acceptance of 0.8.
    tuning = chosen(1.0, 1e-9, 1.4)
    assert tuning.curvature is None and (tuning.step_size == 1.4).all()


def test_what_was_fitted_is_taken_back_where_it_pays_no_more():
    # (1.5 - 1)² + 2 = 2.25 with the fit, 1 + 2 without.
    tuning = chosen(1.0, 2.0, 0.6, before=1.5)
    assert tuning.curvature is None
    expected = torch.full_like(tuning.step_size, 0.6 * (2.25 / 3) ** 0.25)
    torch.testing.assert_close(tuning.step_size, expected)


def test_no_variance_at_all_keeps_the_steps():
    tuning = chosen(1.0, 0.0, 1.1, before=1.0)
    assert (tuning.curvature == 1.0).all() and (tuning.step_size >= 1.1).all()


def test_groups_are_fitted_if_most_of_them_gain():
    z = torch.zeros(3, 1, dtype=torch.float64)
    for gain, variances in ((True, [0.1, 0.1, 5.0]), (False, [0.1, 5.0, 5.0])):
        found = Curvature(torch.ones(3).double(), torch.tensor(variances).double())
        tuning = fit_steps(found, make_tuning(z, 0.4), 1.05)
        assert (tuning.curvatures() > 0).tolist() == [gain, gain, False]


def test_trees_double_so_that_little_growth_is_none():
    assert chosen(1.0, 0.4, 0.5).curvature is not None
    assert chosen(1.0, 0.4, 0.5, least_growth=NUTS.least_growth).curvature is None


def test_dual_averaging_stays_within_the_limit():
    dual, longest = start_dual_averaging(torch.full((2,), 0.5)), torch.tensor([1.2, torch.inf])
    every = torch.ones(2, dtype=torch.bool)
    for _ in range(200):
        dual = update_dual_averaging(dual, torch.ones(2), every, 0.8, longest)
    step = dual.log_step_avg.exp()
    assert 1.1 < step[0] <= 1.2 + 1e-6 and step[1] > 10


def steeper(z):
    """Near a normal, and lighter in its tails."""
    return (0.5 * z.square() + 0.01 * z.pow(4)).sum(-1)


def steeper_moments():
    """E z² and E z⁴ of each coordinate, by quadrature."""
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = (-steeper(grid[:, None])).exp()
    return [float((weight * grid**k).sum() / weight.sum()) for k in (2, 4)]


def warmed(kernel, potential_fn, dim=20, chains=32, steps=100):
    z = torch.randn(chains, dim, generator=rng(1), dtype=torch.float64)
    moves = Moves(kernel, potential_fn)
    return moves, warm_up(moves, z, steps, seed=3)


@pytest.mark.parametrize("kernel", [HMC, ChEES], ids=["HMC", "ChEES"])
def test_longer_steps_of_no_lower_acceptance_and_the_same_moments(kernel):
    steps = {}
    for integrator in ("leapfrog", "fitted"):
        moves, ready = warmed(kernel(integrator=integrator), steeper)
        draws = draw(moves, ready, 200, seed=4)
        target = kernel.target_accept_prob
        assert draws.info.accept_prob.mean() > target - 0.05
        steps[integrator] = float(ready.tuning.step_size[0])
        assert (ready.tuning.curvature is not None) == (integrator == "fitted")
        # 32 x 200 draws in 20 dimensions, of which one in four is independent at least: the
        # standard deviation of z² is about √2 times its mean, that of z⁴ three times.
        for power, exact in zip((2, 4), steeper_moments(), strict=True):
            error = exact * 3 / (32 * 200 * 20 / 4) ** 0.5
            assert abs(draws.z.pow(power).mean() - exact) < 4 * error
    assert steps["fitted"] > 1.2 * steps["leapfrog"]


def test_nuts_makes_half_the_steps_on_a_normal():
    spent = {}
    for integrator in ("leapfrog", "fitted"):
        moves, ready = warmed(NUTS(integrator=integrator), normal)
        draws = draw(moves, ready, 100, seed=4)
        spent[integrator] = float(draws.info.num_steps.double().mean())
        assert abs(draws.z.square().mean() - 1) < 0.03
    assert spent["fitted"] < 0.6 * spent["leapfrog"]


@pytest.mark.parametrize("chains", [1, 32])
def test_a_skewed_target_is_left_to_leapfrog_bit_for_bit(chains):
    # Gumbels have curvature e^(-z), from 0.2 to 10.
    both = [
        draw(*warmed(HMC(integrator=integrator), gumbel, chains=chains, steps=400), 20, seed=4)
        for integrator in ("leapfrog", "fitted")
    ]
    assert torch.equal(both[0].z, both[1].z)


@pytest.mark.parametrize(("chains", "trials"), [(1, 14), (20, 7 + 1)])
def test_its_gradients_are_counted(chains, trials):
    def spent(integrator):
        kernel = HMC(max_num_steps=1, integrator=integrator)
        return int(warmed(kernel, normal, dim=3, chains=chains, steps=700)[1].spent[0])

    # The last window has as many as it takes, the one before has one if chains are many; with
    # one gradient a transition a tenth of what was spent is 14 trials.
    assert spent("fitted") - spent("leapfrog") == trials * fitting.NUM_STEPS


def test_a_short_warmup_is_not_spent_on_trials():
    _, ready = warmed(HMC(), normal, chains=4, steps=20)
    _, plain = warmed(HMC(integrator="leapfrog"), normal, chains=4, steps=20)
    assert torch.equal(ready.spent, plain.spent) and ready.tuning.curvature is None


@pytest.mark.parametrize("kernel", [HMC(integrator="leapfrog"), MALA(), Kinetic()])
def test_what_was_fitted_is_nothing_to_a_kernel_that_does_not_fit(kernel):
    _, ready = warmed(HMC(), normal)
    assert ready.tuning.curvature is not None
    moves, z = Moves(kernel, normal), ready.position.state.z
    tunings = [
        warm_up(moves, z, 50, seed=5, tuning=ready.tuning._replace(curvature=curvature)).tuning
        for curvature in (ready.tuning.curvature, None)
    ]
    assert tunings[0].curvature is None
    assert torch.equal(tunings[0].step_size, tunings[1].step_size)


def test_levels_of_tempering_are_fitted_each_for_itself():
    # λ (4 normal) + (1 - λ) normal: curvatures 2.5 and 4 at unit masses.
    reference = Reference(lambda n: torch.randn(n, 10), normal)
    local = HMC(adapt_mass_matrix=False)
    moves = Moves(temper(local, (0.5, 1.0), reference), lambda z: 4 * normal(z))
    ready = warm_up(moves, torch.randn(80, 10, generator=rng()), 100, seed=1)
    assert ready.tuning.curvature.shape == (80,)
    for level, curvature in zip(ready.tuning.curvature.view(2, 40), (2.5, 4.0), strict=True):
        torch.testing.assert_close(level, torch.full((40,), curvature), rtol=1e-3, atol=0)


def test_wrapped_kernels_ask_for_the_growth_of_what_they_wrap():
    reference = Reference(lambda n: torch.randn(n, 2), normal)
    assert temper(NUTS(), (0.5, 1.0), reference).least_growth == NUTS.least_growth
    assert tuned_by_problem(NUTS(), 3).least_growth == NUTS.least_growth


def test_unfitted_by_default_and_refused():
    assert MALA().integrator == "leapfrog"
    with pytest.raises(ValueError, match="integrator: expected"):
        HMC(integrator="verlet")
    for kernel in (Kinetic, IMH):  # which take no leapfrog step
        with pytest.raises(ValueError, match="integrator: expected"):
            kernel(integrator="fitted")


def test_some_chains_take_theirs_along():
    _, ready = warmed(HMC(), normal)
    curvature = torch.arange(32.0)
    tuning = ready.tuning._replace(curvature=curvature)
    some = take_chains(ready._replace(tuning=tuning), slice(2, 5), 2).tuning
    assert some.curvature.tolist() == [2, 3, 4, 18, 19, 20]


def test_it_is_told_and_travels():
    scale = torch.full((4,), 0.5)
    prior = pg.LatentPrior(dist.Normal(torch.zeros(4), scale).to_event(1))
    model = pg.GEBM(pg.Base(torch.nn.Identity(), prior), Flat())
    settings = {"kernel": "HMC", "num_chains": 16, "global_moves": None, "seed": 1}
    whole = pg.sample(model, num_samples=6, warmup_steps=100, **settings)
    assert abs(whole.attrs["curvature"] - 1) < 0.2
    first = pg.sample(model, num_samples=3, warmup_steps=100, **settings)
    rest = pg.sample(model, num_samples=3, resume=first, **settings | {"seed": None})
    joined = np.concatenate([first.posterior.z.values, rest.posterior.z.values], 1)
    assert np.array_equal(joined, whole.posterior.z.values)
