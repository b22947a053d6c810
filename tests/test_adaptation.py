"""Warm-up: the step size it finds, the masses it estimates, and what must not disturb it."""

import pytest
import torch
from helpers import Counting, make_tuning, normal, quiet_sample, rng, stats_of

from pyro_gebm.mcmc import HMC, MALA, NUTS, ChEES, Draws, Kinetic, Langevin, Tuning, run
from pyro_gebm.mcmc.adaptation import (
    MAX_DOUBLINGS,
    close_window,
    find_step_size,
    start_adaptation,
    window_ends,
)
from pyro_gebm.mcmc.averaging import (
    average_step,
    estimate_variance,
    no_moments,
    start_dual_averaging,
    update_dual_averaging,
    update_moments,
)
from pyro_gebm.mcmc.kernel import evaluate

SCALES = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)


def scaled(z):
    """N(0, diag(SCALES²))."""
    return normal(z / SCALES)


# Steps fitted to a normal are accepted whatever their size.
LEAPING_HMC = HMC(integrator="leapfrog")
LEAPING_NUTS = NUTS(max_tree_depth=6, integrator="leapfrog")


def sampled(kernel, potential_fn=scaled, chains=64, **settings) -> Draws:
    start = torch.randn(chains, 3, generator=rng(1), dtype=torch.float64)
    settings = {"num_samples": 100, "warmup_steps": 200, **settings}
    return run(kernel, potential_fn, settings.pop("start", start), **settings)


@pytest.mark.parametrize(
    ("kernel", "accept"),
    [
        (LEAPING_HMC, 0.8),
        (LEAPING_HMC, 0.9),
        (ChEES(integrator="leapfrog"), 0.75),
        (ChEES(integrator="leapfrog"), 0.9),
        (MALA(), 0.574),
        (MALA(), 0.8),
        (LEAPING_NUTS, 0.8),
    ],
    ids=lambda value: value if isinstance(value, float) else type(value).__name__,
)
def test_warmup_finds_the_step_size_and_the_masses(kernel, accept):
    given = {} if accept == kernel.target_accept_prob else {"target_accept_prob": accept}
    draws = sampled(kernel, **given)
    # Over seeds the deviation from the target scatters by 0.01 to 0.02.
    assert abs(draws.info.accept_prob.mean() - accept) < 0.05
    # Of a normal, whose gradients are its draws over the variance, the estimate has no error
    # but the weight of what came before: 5 of 5 + 90 x 64 draws in the last window.
    ratio = draws.tuning.inverse_mass_matrix / SCALES**2
    assert (ratio - 1).abs().max() < 0.01


@pytest.mark.parametrize("kernel", [Langevin(), Kinetic()], ids=["Langevin", "Kinetic"])
def test_unadjusted_kernels_are_tuned_by_mala(kernel):
    assert kernel.target_accept_prob == 0.95
    tuning = [sampled(k, target_accept_prob=0.95).tuning for k in (kernel, MALA())]
    assert torch.equal(tuning[0].step_size, tuning[1].step_size)
    assert torch.equal(tuning[0].inverse_mass_matrix, tuning[1].inverse_mass_matrix)


def test_chees_learns_a_length():
    # At unit masses the widest scale, 10, wants trajectories of its size; at the masses of the
    # target those of N(0, I), whatever was learned before the masses were known.
    settings = {"chains": 64, "warmup_steps": 400}
    unit = sampled(ChEES(adapt_mass_matrix=False), **settings).tuning.trajectory_length
    assert 10 < unit < 65
    fitted = sampled(ChEES(), **settings).tuning.trajectory_length
    assert 1 < fitted < 6.5


def test_step_sizes_by_chain():
    draws = sampled(HMC(step_size_per_chain=True), target_accept_prob=0.8)
    assert len(draws.tuning.step_size.unique()) == 64
    by_chain = draws.info.accept_prob.mean(1)
    assert abs(by_chain.mean() - 0.8) < 0.05
    assert (by_chain - 0.8).abs().max() < 0.25
    assert (sampled(HMC()).tuning.step_size.unique()).shape == (1,)


DUE = torch.tensor([True, True, False])


def test_dual_averaging_solves_a_known_equation():
    # Acceptance exp(-ε) from ε = 5. The pull of the start leaves an error of the acceptance of
    # γ |log ε - log 5| / √t = 0.2 * 2.6 / √500 = 0.023. The second chain has exp(-2ε), and the
    # third is not due.
    dual = start_dual_averaging(torch.full((3,), 5.0, dtype=torch.float64))
    slopes = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    for _ in range(500):
        dual = update_dual_averaging(dual, (-slopes * dual.log_step.exp()).exp(), DUE, 0.7)
    accept = (-slopes * average_step(dual)).exp()
    assert (accept[:2] - 0.7).abs().max() < 0.03
    torch.testing.assert_close(average_step(dual)[2], torch.tensor(5.0, dtype=torch.float64))


def test_dual_averaging_is_bounded():
    dual = start_dual_averaging(torch.ones(3))
    for _ in range(1000):
        dual = update_dual_averaging(dual, torch.ones(3), DUE, 0.5)
    assert torch.isfinite(dual.log_step.exp()).all()
    for _ in range(5000):
        dual = update_dual_averaging(dual, torch.zeros(3), DUE, 0.5)
    assert (dual.log_step.exp() > 0).all()


def some_draws():
    return 100 + torch.randn(7, 6, 3, generator=rng(), dtype=torch.float64) * SCALES


@pytest.mark.parametrize("groups", [1, 2])
def test_pooled_moments_are_those_of_all_draws(groups):
    draws = some_draws()
    moments = no_moments(draws[0], groups)
    for z in draws:
        moments = update_moments(moments, z)
    every = draws.view(7, groups, -1, 3).transpose(0, 1).reshape(groups, -1, 3)
    assert moments.num == 42 // groups
    torch.testing.assert_close(moments.mean, every.mean(1), rtol=1e-12, atol=0)
    variance = moments.squares / (moments.num - 1)
    torch.testing.assert_close(variance, every.var(1), rtol=1e-10, atol=0)


def test_moments_leave_out_what_does_not_count():
    draws, keep = some_draws(), torch.tensor([True, False, True, True, False, True])
    moments = no_moments(draws[0])
    for z in draws:
        moments = update_moments(moments, z, keep)
    torch.testing.assert_close(moments.mean[0], draws[:, keep].flatten(0, 1).mean(0))
    assert moments.num == 28


def test_masses_are_geometric_means_of_draws_and_gradients():
    # √(Var z / Var ∇U), in logarithms with weight n/(n + 5) against what was before.
    draws, before = some_draws(), torch.tensor([[2.0, 3.0, 0.1]], dtype=torch.float64)
    gradients = draws.pow(2)
    pair = [update_moments(no_moments(z[0]), z.flatten(0, 1)) for z in (draws, gradients)]
    ratio = (draws.flatten(0, 1).var(0) / gradients.flatten(0, 1).var(0)).sqrt()
    wanted = (42 / 47 * ratio.log() + 5 / 47 * before.log()).exp()
    torch.testing.assert_close(estimate_variance(*pair, before), wanted, rtol=1e-10, atol=0)


def test_masses_are_those_of_a_mode_between_modes():
    # Modes of scale 1 at ±20: Var z is 401, that of the gradients 1.
    sign = torch.sign(torch.randn(20_000, 1, generator=rng(2), dtype=torch.float64))
    noise = torch.randn(20_000, 1, generator=rng(3), dtype=torch.float64)
    pair = [update_moments(no_moments(z), z) for z in (20 * sign + noise, noise)]
    assert abs(float(estimate_variance(*pair, torch.ones(1, 1).double())) - 20) < 1


def test_new_masses_keep_the_step_in_the_narrowest_direction():
    # A step of 0.05 at unit mass is half of the narrowest scale, 0.1, and stays that.
    z = torch.randn(20_000, 3, generator=rng(), dtype=torch.float64) * SCALES
    tuning, state = make_tuning(z, 0.05), evaluate(scaled, z)
    adaptation, _, _ = start_adaptation(HMC(), scaled, state, tuning, rng())
    adaptation = adaptation._replace(
        moments=update_moments(adaptation.moments, z),
        gradients=update_moments(adaptation.gradients, state.z_grad),
    )
    adaptation, renewed = close_window(HMC(), adaptation, tuning)
    assert (renewed.step_size / 0.5 - 1).abs().max() < 0.002
    assert adaptation.moments.num == adaptation.gradients.num == 0
    assert torch.equal(adaptation.dual.log_step, renewed.step_size.log())


def test_windows_cover_the_middle_of_warmup():
    for steps in range(400):
        ends = window_ends(steps)
        first, last = round(0.05 * steps), steps - round(0.15 * steps)
        sizes = [b - a for a, b in zip([first, *ends], ends, strict=False)]
        assert all(size > 0 for size in sizes)
        assert sizes == sorted(sizes)
        assert ends[-1:] == ([last] if last > first else [])


def test_found_step_size_accepts_as_wanted():
    z = torch.randn(500, 3, generator=rng(), dtype=torch.float64) * SCALES
    potential = Counting(scaled)
    state = evaluate(scaled, z)
    step, spent = find_step_size(potential, state, make_tuning(z, 1.0), rng())
    assert spent == potential.calls
    # The narrowest scale, 0.1, decides; halving stops within a factor of 2 of the target.
    assert step.shape == (500,)
    assert ((step >= 0.1 / 4) & (step <= 0.1 * 2)).all()


def test_step_sizes_are_found_by_group():
    # The second half of the chains has scales a hundred times wider.
    wider = torch.tensor([1.0, 100.0], dtype=torch.float64).repeat_interleave(200)[:, None]
    z = torch.randn(400, 3, generator=rng(), dtype=torch.float64) * wider

    def potential_fn(z):
        return normal(z / wider)

    state = evaluate(potential_fn, z)
    step, _ = find_step_size(potential_fn, state, make_tuning(z, 1.0), rng(), groups=2)
    assert len(step.unique()) == 2
    # Each is found to within a factor of 2.
    assert 25 <= step[-1] / step[0] <= 400


@pytest.mark.parametrize("value", [0.0, torch.nan], ids=["flat", "nan"])
def test_step_size_search_ends(value):
    z = torch.zeros(4, 2)
    state = evaluate(normal, z)
    potential = Counting(lambda z: torch.full_like(z[:, 0], value))
    step, spent = find_step_size(potential, state, make_tuning(z, 1.0), rng())
    assert spent == potential.calls == MAX_DOUBLINGS
    assert torch.isfinite(step).all() and (step > 0).all()


def with_isolated_point(z):
    """N(0, I), and a point at (100, 0) surrounded by NaN that no chain can leave."""
    inside = torch.where(z[:, 0] == 100, 0.0, torch.nan)
    return torch.where(z[:, 0] > 50, inside, normal(z))


@pytest.mark.parametrize("chains", [3, 8, 64])
@pytest.mark.parametrize(
    "kernel", [LEAPING_HMC, Langevin(), LEAPING_NUTS], ids=["HMC", "Langevin", "NUTS"]
)
def test_stuck_chain_does_not_disturb_the_others(kernel, chains):
    start = torch.randn(chains, 3, generator=rng(1), dtype=torch.float64)
    start[0] = torch.tensor([100.0, 0.0, 0.0])
    draws = sampled(kernel, with_isolated_point, start=start, target_accept_prob=0.85)
    assert (draws.z[0] == start[0]).all()
    # As in the test of the target above; two chains scatter by more.
    assert abs(draws.info.accept_prob[1:].mean() - 0.85) < (0.1 if chains == 3 else 0.05)
    # 3 chains leave 2 x 90 draws in the last window: relative error of a variance about
    # √(2/60) for one independent draw in three.
    assert (draws.tuning.inverse_mass_matrix - 1).abs().max() < 4 * (2 / 60) ** 0.5


@pytest.mark.parametrize("kernel", [HMC(max_num_steps=50), Langevin()], ids=["HMC", "Langevin"])
def test_all_chains_stuck_ends(kernel):
    idata = quiet_sample(
        with_isolated_point,
        initial_params=torch.tensor([[100.0, 0.0]] * 4),
        num_chains=4,
        num_samples=5,
        warmup_steps=30,
        kernel=kernel,
    )
    step_size = stats_of(idata, "step_size")
    assert (step_size > 0).all() and (step_size < 1e-3).all()


@pytest.mark.parametrize("kernel", [HMC(), MALA()], ids=["HMC", "MALA"])
def test_flat_potential_keeps_a_finite_tuning(kernel):
    # float32: the squares of the widening walk overflow, and no mass follows from them.
    start = torch.zeros(4, 3)
    draws = sampled(kernel, lambda z: 0.0 * z[:, 0], start=start, warmup_steps=600)
    assert all(torch.isfinite(field).all() for field in draws.tuning[:2])
    assert torch.isfinite(draws.z).all()


def test_chains_that_have_not_left_their_one_start_tell_no_scale():
    def almost_equal(z):
        # Gradients of equal rows that differ by rounding, as those of a matrix product do.
        return normal(z) + (1e-17 * torch.arange(len(z)) * z.sum(-1))

    # All chains refuse such a step, though none is certain to, in a window of one transition.
    for seed in range(10):
        start = torch.zeros(6, 3, dtype=torch.float64)
        settings = {"start": start, "num_samples": 2, "warmup_steps": 10, "seed": seed}
        draws = sampled(HMC(step_size=2.7), almost_equal, **settings)
        assert (draws.tuning.inverse_mass_matrix > 0).all()
        assert draws.tuning.step_size.isfinite().all()


def test_what_is_not_adapted_stays():
    fixed_step = sampled(HMC(step_size=0.05, adapt_step_size=False, max_num_steps=10))
    assert (fixed_step.tuning.step_size == 0.05).all()
    assert (
        fixed_step.tuning.inverse_mass_matrix[[0, 2]] / SCALES[[0, 2]] ** 2 - 1
    ).abs().max() < 0.1
    fixed_mass = sampled(HMC(adapt_mass_matrix=False, max_num_steps=10))
    assert (fixed_mass.tuning.inverse_mass_matrix == 1).all()
    assert (fixed_mass.tuning.step_size != 0.05).all()


def test_given_tuning_is_kept_without_warmup():
    given = Tuning(torch.full((64,), 0.03, dtype=torch.float64), SCALES**2)
    potential = Counting(scaled)
    draws = sampled(MALA(), potential, tuning=given, warmup_steps=0)
    assert all(torch.equal(a, b) for a, b in zip(draws.tuning[:2], given[:2], strict=True))
    assert (draws.num_warmup_steps == 0).all()
    assert potential.calls == 1 + 100


@pytest.mark.parametrize("kernel", [HMC(), ChEES(), NUTS()], ids=["HMC", "ChEES", "NUTS"])
def test_warmup_counts_its_gradients(kernel):
    potential = Counting(scaled)
    draws = sampled(kernel, potential)
    # One for the start, then what the search, warm-up and draws say they took.
    assert potential.calls == 1 + draws.num_warmup_steps[0] + draws.batch_steps
    assert (draws.num_warmup_steps == draws.num_warmup_steps[0]).all()
    if not isinstance(kernel, NUTS):  # whose chains need not take the same steps
        assert draws.batch_steps == draws.info.num_steps[0].sum()
