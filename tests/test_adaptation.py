"""Warm-up: the step size it finds, the masses it estimates, and what must not disturb it."""

import pytest
import torch
from helpers import Counting, make_tuning, normal, quiet_sample, rng, stats_of

from pyro_gebm.mcmc import HMC, MALA, NUTS, Langevin, Tuning, run
from pyro_gebm.mcmc.adaptation import (
    MAX_DOUBLINGS,
    close_window,
    find_step_size,
    no_moments,
    regularised_variance,
    start_adaptation,
    start_dual_averaging,
    update_dual_averaging,
    update_moments,
    window_ends,
)
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.mcmc.run import Draws

SCALES = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)


def scaled(z):
    """N(0, diag(SCALES²))."""
    return normal(z / SCALES)


def sampled(kernel, potential_fn=scaled, chains=64, **settings) -> Draws:
    start = torch.randn(chains, 3, generator=rng(1), dtype=torch.float64)
    settings = {"num_samples": 100, "warmup_steps": 200, "generator": rng(), **settings}
    return run(kernel, potential_fn, settings.pop("start", start), **settings)


@pytest.mark.parametrize(
    ("kernel", "accept"),
    [(HMC(), 0.8), (HMC(), 0.9), (MALA(), 0.574), (MALA(), 0.8), (NUTS(max_tree_depth=6), 0.8)],
    ids=lambda value: value if isinstance(value, float) else type(value).__name__,
)
def test_warmup_finds_the_step_size_and_the_masses(kernel, accept):
    draws = sampled(kernel, target_accept_prob=accept)
    # Over seeds the deviation from the target scatters by 0.01 to 0.02.
    assert abs(draws.info.accept_prob.mean() - accept) < 0.05
    # The last window has 90 draws of 64 chains. Counting every tenth as independent, a
    # variance has relative standard error √(2/576) = 0.06; the prior weight is 5/5760.
    ratio = draws.tuning.inverse_mass_matrix / SCALES**2
    assert (ratio - 1).abs().max() < 4 * 0.06


def test_langevin_is_tuned_by_mala():
    tuning = [sampled(k, target_accept_prob=0.9).tuning for k in (Langevin(), MALA())]
    assert torch.equal(tuning[0].step_size, tuning[1].step_size)
    assert torch.equal(tuning[0].inverse_mass_matrix, tuning[1].inverse_mass_matrix)


def test_dual_averaging_solves_a_known_equation():
    # Acceptance exp(-ε) from ε = 5. The pull of the start leaves an error of the acceptance of
    # γ |log ε - log 5| / √t = 0.2 * 2.6 / √500 = 0.023.
    dual = start_dual_averaging(torch.tensor(5.0, dtype=torch.float64))
    for _ in range(500):
        dual = update_dual_averaging(dual, (-dual.log_step.exp()).exp(), 0.7)
    assert abs((-dual.log_step_avg.exp()).exp() - 0.7) < 0.025


def test_dual_averaging_is_bounded():
    dual = start_dual_averaging(torch.tensor(1.0))
    for _ in range(1000):
        dual = update_dual_averaging(dual, torch.tensor(1.0), 0.5)
    assert torch.isfinite(dual.log_step.exp())
    for _ in range(5000):
        dual = update_dual_averaging(dual, torch.tensor(0.0), 0.5)
    assert dual.log_step.exp() > 0


def test_pooled_moments_are_those_of_all_draws():
    draws = 100 + torch.randn(7, 5, 3, generator=rng(), dtype=torch.float64) * SCALES
    moments = no_moments(draws[0])
    for z in draws:
        moments = update_moments(moments, z)
    every = draws.flatten(0, 1)
    assert moments.num == 35
    torch.testing.assert_close(moments.mean, every.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.squares / 34, every.var(0), rtol=1e-10, atol=0)
    # Stan's shrinkage, 5/(n + 5) towards 1e-3.
    wanted = every.var(0) * 35 / 40 + 1e-3 * 5 / 40
    torch.testing.assert_close(regularised_variance(moments), wanted, rtol=1e-10, atol=0)


def test_new_masses_keep_the_step_in_the_narrowest_direction():
    # A step of 0.05 at unit mass is half of the narrowest scale, 0.1, and stays that.
    z = torch.randn(20_000, 3, generator=rng(), dtype=torch.float64) * SCALES
    tuning = make_tuning(z, 0.05)
    adaptation, _, _ = start_adaptation(HMC(), scaled, evaluate(scaled, z), tuning, rng())
    adaptation = adaptation._replace(moments=update_moments(no_moments(z), z))
    adaptation, renewed = close_window(HMC(), adaptation, tuning, evaluate(scaled, z))
    # Relative standard error of a standard deviation, 1/√(2n).
    assert (renewed.step_size / 0.5 - 1).abs().max() < 4 / 40_000**0.5
    assert adaptation.moments.num == 0
    assert torch.equal(adaptation.dual.log_step, renewed.step_size[0].log())


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
    assert 0.1 / 4 <= step <= 0.1 * 2


@pytest.mark.parametrize("value", [0.0, torch.nan], ids=["flat", "nan"])
def test_step_size_search_ends(value):
    z = torch.zeros(4, 2)
    state = evaluate(normal, z)
    potential = Counting(lambda z: torch.full_like(z[:, 0], value))
    step, spent = find_step_size(potential, state, make_tuning(z, 1.0), rng())
    assert spent == potential.calls == MAX_DOUBLINGS
    assert torch.isfinite(step) and step > 0


def with_isolated_point(z):
    """N(0, I), and a point at (100, 0) surrounded by NaN that no chain can leave."""
    inside = torch.where(z[:, 0] == 100, 0.0, torch.nan)
    return torch.where(z[:, 0] > 50, inside, normal(z))


@pytest.mark.parametrize("chains", [3, 8, 64])
@pytest.mark.parametrize("kernel", [HMC(), Langevin()], ids=["HMC", "Langevin"])
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
    assert all(torch.isfinite(field).all() for field in draws.tuning)
    assert torch.isfinite(draws.z).all()


def test_what_is_not_adapted_stays():
    fixed_step = sampled(HMC(step_size=0.05, adapt_step_size=False, max_num_steps=10))
    assert (fixed_step.tuning.step_size == 0.05).all()
    assert (fixed_step.tuning.inverse_mass_matrix != 1).all()
    fixed_mass = sampled(HMC(adapt_mass_matrix=False, max_num_steps=10))
    assert (fixed_mass.tuning.inverse_mass_matrix == 1).all()
    assert (fixed_mass.tuning.step_size != 0.05).all()


def test_given_tuning_is_kept_without_warmup():
    given = Tuning(torch.full((64,), 0.03, dtype=torch.float64), SCALES**2)
    potential = Counting(scaled)
    draws = sampled(MALA(), potential, tuning=given, warmup_steps=0)
    assert all(torch.equal(a, b) for a, b in zip(draws.tuning, given, strict=True))
    assert (draws.num_warmup_steps == 0).all()
    assert potential.calls == 1 + 100


def test_warmup_counts_its_gradients():
    potential = Counting(scaled)
    draws = sampled(HMC(), potential)
    # One for the start, then what the search, warm-up and draws say they took.
    assert potential.calls == 1 + draws.num_warmup_steps[0] + draws.info.num_steps[0].sum()
