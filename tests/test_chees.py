"""ChEES-HMC: its gradient, and the trajectory length it learns, against closed forms.

Of a normal the flow is known: in each direction of scale s, q' = q cos(t/s) + s p sin(t/s).
The paper's criterion of a trajectory of length t is then Σ s⁴ sin²(t/s) (for mass one), and with
t uniform on (τ/5, τ) its mean is Σ s⁴ (1/2 - (sin(2τ/s) - sin(2τ/5s)) / (4 · 0.8 τ/s)). Ours is
that over τ^0.05.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import make_tuning, normal, quiet_sample, rng, stats_of

from pyro_gebm.mcmc import ChEES
from pyro_gebm.mcmc.chees import FIRST_LENGTH, THRIFT, chees_gradient
from pyro_gebm.mcmc.integrators import trajectory
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.mcmc.length import Length, start_length, update_length
from pyro_gebm.mcmc.random import Streams

SCALES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def scaled(z):
    return normal(z / SCALES.to(z))


def paired(chains, seed=0):
    """Starts and momenta with mean zero, so that the centres of start and end stand still."""
    z, p = torch.randn(2, chains, 3, generator=rng(seed), dtype=torch.float64)
    z = z * SCALES
    return torch.cat([z, -z]), torch.cat([p, -p])


def exact_criterion(z, p, t, mass):
    """¼ (|q'|² - |q|²)² / t^0.05 in scaled coordinates, of the exact flow of length t, (C,)."""
    own = SCALES / mass.sqrt()
    q = z / mass.sqrt()
    end = q * (t / own).cos() + own * p * (t / own).sin()
    return 0.25 * (end.square().sum(-1) - q.square().sum(-1)).square() / t**THRIFT


@pytest.mark.parametrize("length", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("mass", [(1.0, 1.0, 1.0), (0.2, 1.0, 5.0)])
def test_gradient_against_finite_differences(length, mass):
    mass = torch.tensor(mass, dtype=torch.float64)
    z, p = paired(50)
    tuning, steps = make_tuning(z, length / 4000, mass), 4000
    proposal = trajectory(scaled, evaluate(scaled, z), tuning, steps, p)
    assert (proposal.info.accept_prob > 1 - 1e-4).all()
    shift = 1e-5
    ends = [exact_criterion(z, p, length * math.exp(sign * shift), mass).mean() for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * shift) * length**THRIFT
    torch.testing.assert_close(
        chees_gradient(z, proposal, tuning), expected, rtol=1e-3, atol=1e-4 * float(ends[0])
    )


def test_gradient_weighs_by_acceptance():
    z, p = paired(4)
    tuning = make_tuning(z, 0.3)
    proposal = trajectory(scaled, evaluate(scaled, z), tuning, 3, p)
    one = torch.tensor([1.0, 0, 0, 0] * 2, dtype=torch.float64)  # a chain and its mirror image
    alone = proposal._replace(info=proposal.info._replace(accept_prob=one))
    end, change = proposal.state.z[0], proposal.state.z[0].square().sum() - z[0].square().sum()
    expected = 3 * 0.3 * change * (end @ proposal.momentum[0]) - 0.05 / 4 * change**2
    torch.testing.assert_close(chees_gradient(z, alone, tuning), expected)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_chains_that_diverge_have_no_weight(junk):
    def walled(z):
        return torch.where(z[:, 0].abs() > 3, junk, scaled(z))

    z, p = paired(50)
    p[7, 0] = 1e3
    tuning = make_tuning(z, 0.4)
    proposal = trajectory(walled, evaluate(walled, z), tuning, 4, p)
    assert proposal.info.diverging[7]
    gradient = chees_gradient(z, proposal, tuning)
    # Whatever else that chain were doing.
    calm = trajectory(scaled, evaluate(scaled, z), tuning, 4, p.index_fill(0, torch.tensor([7]), 0))
    info = calm.info._replace(
        accept_prob=proposal.info.accept_prob, diverging=proposal.info.diverging
    )
    same = ~proposal.info.diverging
    torch.testing.assert_close(proposal.state.z[same], calm.state.z[same])
    assert torch.isfinite(gradient)
    torch.testing.assert_close(gradient, chees_gradient(z, calm._replace(info=info), tuning))


@pytest.mark.parametrize("place", [1e2, 1e3])
def test_a_chain_that_is_stuck_far_away_changes_nothing(place):
    z, p = paired(50)
    far = z.clone()
    far[3] = place
    tuning, weight = make_tuning(z, 0.3), torch.ones(100, dtype=torch.float64)
    weight[3] = 0.0
    found = []
    for start in (z, far):
        proposal = trajectory(scaled, evaluate(scaled, start), tuning, 4, p)
        info = proposal.info._replace(accept_prob=weight)
        found.append(chees_gradient(start, proposal._replace(info=info), tuning))
    torch.testing.assert_close(*found)


def test_a_chain_whose_square_overflows_changes_nothing():
    z, p = paired(50)
    z[3] = 1e200
    tuning = make_tuning(z, 0.3)
    proposal = trajectory(scaled, evaluate(scaled, z), tuning, 4, p)
    assert proposal.info.diverging[3] and torch.isfinite(chees_gradient(z, proposal, tuning))


def fresh_length():
    return start_length(torch.tensor(2.0), is_scaled=True)


def test_nothing_is_learned_where_all_diverge():
    z, p = paired(3)
    tuning = make_tuning(z, 0.4)
    proposal = trajectory(lambda z: z.sum(-1) * torch.nan, evaluate(scaled, z), tuning, 2, p)
    gradient = chees_gradient(z, proposal, tuning)
    state = fresh_length()
    assert update_length(state, gradient) is state


def test_ascent_is_bounded_and_averages():
    path = [fresh_length()]
    for gradient in (1e15, -1e-15, 0.0, 5.0):
        path.append(update_length(path[-1], torch.tensor(gradient)))
    logs = torch.stack([step.log_length for step in path])
    assert logs.diff().abs().max() <= 0.35 and torch.isfinite(logs).all()
    assert isinstance(path[-1], Length) and path[-1].num == 4
    assert logs.min() - 1e-6 <= path[-1].log_average <= logs.max() + 1e-6
    # The first step of Adam has the length of its rate, whatever the gradient.
    assert abs(logs[1] - logs[0] - 0.05) < 1e-6


@pytest.mark.parametrize("gradient", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_one_bad_gradient_does_not_end_the_ascent(gradient):
    state = update_length(fresh_length(), torch.tensor(gradient))
    for _ in range(20):
        before, state = state, update_length(state, torch.tensor(1.0))
    assert state.log_length > before.log_length > math.log(2)


def best_length(scales):
    """τ of the largest mean criterion, on a grid (mass one)."""
    grid = np.linspace(0.05, 6, 2000)[:, None] * max(scales)
    s = np.asarray(scales)
    waves = np.sin(2 * grid / s) - np.sin(0.4 * grid / s)
    criterion = (s**4 * (0.5 - waves / (3.2 * grid / s))).sum(1) / grid[:, 0] ** THRIFT
    return float(grid[criterion.argmax(), 0])


CASES = {
    "isotropic": (np.ones(10), ChEES(adapt_mass_matrix=False)),
    "ill-conditioned": (np.logspace(-1, 1, 10), ChEES(adapt_mass_matrix=False)),
    "ill-conditioned, scaled": (np.logspace(-1, 1, 10), ChEES()),
}


@pytest.mark.parametrize("case", CASES)
def test_learned_length_is_near_the_optimum(case):
    scales, kernel = CASES[case]
    widths = torch.as_tensor(scales, dtype=torch.float32)
    start = widths * torch.randn(64, 10, generator=rng())
    idata = quiet_sample(
        lambda z: normal(z / widths),
        initial_params=start,
        num_chains=64,
        num_samples=50,
        warmup_steps=400,
        kernel=kernel,
    )
    # A mass matrix that fits makes any normal an isotropic one.
    best = best_length(np.ones(10) if kernel.adapt_mass_matrix else scales)
    # Whole steps make trajectories longer than h τ by half a step: compare what they cover.
    mean = stats_of(idata, "int_time").mean()
    assert 1 / 1.4 < mean / (0.6 * best) < 1.4
    # What is fitted to a normal is never rejected.
    accept = stats_of(idata, "acceptance_rate").mean()
    assert 0.6 < accept < (1.01 if "curvature" in idata.attrs else 0.9)


def test_it_starts_where_a_standard_normal_is_best():
    assert best_length([1.0]) == pytest.approx(FIRST_LENGTH, abs=0.02)


def regression():
    """Logistic, of ten weights and a hundred points: its posterior is nearly normal."""
    x = torch.randn(100, 10, generator=rng(1))
    truth = torch.randn(10, generator=rng(2))
    y = (torch.rand(100, generator=rng(3)) < (x @ truth).sigmoid()).float()
    return lambda w: F.softplus(w @ x.T).sum(-1) - w @ (y @ x) + normal(w)


@pytest.mark.parametrize("warmup_steps", [40, 600])
def test_lengths_do_not_stray_to_where_the_criterion_is_high_again(warmup_steps):
    # With trajectories of any length down to zero, and τ carried over from the unit of the first
    # window, it ended between 4 and 33.
    for seed in range(4):
        start = torch.randn(64, 10, generator=rng(seed))
        idata = quiet_sample(
            regression(),
            initial_params=start,
            kernel="ChEES",
            num_chains=64,
            num_samples=64,
            warmup_steps=warmup_steps,
            seed=seed,
        )
        assert 1.5 < stats_of(idata, "int_time").max() < 4


def test_lengths_run_evenly_up_to_the_longest():
    z = torch.randn(8, 2, generator=rng(), dtype=torch.float64)
    kernel, tuning = ChEES(), make_tuning(z, 0.01)._replace(trajectory_length=torch.tensor(3.2))
    state, streams, lengths = kernel.init(normal, z), Streams(0, 8, z.device), []
    for step in range(63, 127):
        state, info = kernel.step(normal, state, tuning, generator=streams.at(step))
        assert (info.num_steps == info.num_steps[0]).all()
        torch.testing.assert_close(info.trajectory_length, info.num_steps.double() * 0.01)
        lengths.append(float(info.trajectory_length[0]))
    # 64 steps fall into 64 equal parts of (τ/5, τ), to a step size each.
    parts = 3.2 * (0.2 + 0.8 * (np.arange(64) + 0.5) / 64)
    np.testing.assert_allclose(np.sort(lengths), parts, atol=0.031)


def test_without_a_length_it_takes_that_of_a_standard_normal():
    z = torch.randn(2000, 1, generator=rng(), dtype=torch.float64)
    state, streams, longest = ChEES().init(normal, z), Streams(0, 2000, z.device), 0.0
    for step in range(64):
        state, info = ChEES().step(normal, state, make_tuning(z, 0.05), generator=streams.at(step))
        longest = max(longest, float(info.trajectory_length[0]))
    assert abs(longest - FIRST_LENGTH) < 0.1
    assert info.length_gradient is None


@pytest.mark.parametrize("limit", [0, -1, 2.5])
def test_limit_is_checked(limit):
    with pytest.raises(ValueError, match="max_num_steps"):
        ChEES(max_num_steps=limit)
