"""Copies are caught, honest samples are not; minima against closed forms and SciPy."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from helpers import linear_gaussian, linear_gaussian_posterior, small_gebm, snapshot
from torch import nn

import pyro_gebm as pg
from pyro_gebm.metrics.memorisation import _label_test, _ranks, memorisation_score, training_share
from pyro_gebm.metrics.minima import energy_minima

D = 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(count, seed):
    """Draws of the true law: a Gaussian."""
    return torch.randn(count, D, generator=rng(seed), dtype=torch.float64)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# --- distances to training data ------------------------------------------


def test_score_is_scipys_mann_whitney():
    samples, train, held_out = draws(60, 0) * 0.9, draws(200, 1), draws(90, 2)
    got = memorisation_score(samples, train, held_out)
    to_train = [torch.cdist(x, train).min(dim=1) for x in (samples, held_out)]
    own, others = (found.values.numpy() for found in to_train)
    options = {"use_continuity": False, "method": "asymptotic"}
    nearer = scipy.stats.mannwhitneyu(own, others, alternative="less", **options)
    farther = scipy.stats.mannwhitneyu(own, others, alternative="greater", **options)
    assert got.auc == pytest.approx(1 - nearer.statistic / (60 * 90), rel=1e-12)
    assert got.p_memorised == pytest.approx(nearer.pvalue, rel=1e-9)
    assert got.p_underfitted == pytest.approx(farther.pvalue, rel=1e-9)
    assert got.median_samples == pytest.approx(np.median(own), rel=1e-9)
    assert got.median_held_out == pytest.approx(np.median(others), rel=1e-9)
    assert torch.equal(got.nearest, to_train[0].indices)
    np.testing.assert_allclose(got.distances, own, rtol=1e-6)
    assert (got.num_samples, got.num_held_out) == (60, 90)


def test_ties_count_half_as_scipy_has_it():
    train, samples, held_out = double([[0.0]]), [0, 1, 1, 2, 5], [1, 2, 2, 3, 3, 3, 1]
    got = memorisation_score(double(samples)[:, None], train, double(held_out)[:, None])
    oracle = scipy.stats.mannwhitneyu(
        samples, held_out, alternative="less", use_continuity=False, method="asymptotic"
    )
    assert got.auc == pytest.approx(1 - oracle.statistic / 35, rel=1e-12)
    assert got.p_memorised == pytest.approx(oracle.pvalue, rel=1e-9)


def test_permutations_come_to_the_exact_distribution():
    train, samples, held_out = double([[0.0]]), [0.1, 0.3, 0.5, 1.2], [0.4, 0.6, 0.9, 1.0, 2.0]
    exact = scipy.stats.mannwhitneyu(samples, held_out, alternative="less", method="exact").pvalue
    found = memorisation_score(
        double(samples)[:, None],
        train,
        double(held_out)[:, None],
        num_permutations=4000,
        generator=rng(),
    )
    assert abs(found.p_memorised - exact) < 4 * math.sqrt(exact * (1 - exact) / 4000) + 1 / 4000


def test_a_memoriser_is_caught():
    train, held_out = draws(500, 0), draws(200, 1)
    copies = train[:200] + 0.05 * draws(200, 2)
    got = memorisation_score(copies, train, held_out)
    assert got.p_memorised < 1e-3 and got.p_underfitted > 0.99
    assert got.auc > 0.95 and got.z > 10
    assert torch.equal(got.nearest, torch.arange(200))
    exact = memorisation_score(copies, train, held_out, num_permutations=2000, generator=rng())
    assert exact.p_memorised == 1 / 2001


def test_a_few_copies_among_honest_samples_show_in_the_tail():
    train, held_out = draws(500, 0), draws(400, 11)
    mixed = torch.cat([train[:20], draws(380, 5)])  # one in twenty
    got = memorisation_score(mixed, train, held_out, tail=0.02)
    assert got.tail_p < 1e-3 and got.tail_share == 0.05
    assert got.p_memorised > 0.01, "the ranks of all hardly move"


def test_an_underfitted_sampler_has_the_other_sign():
    train, held_out = draws(500, 0), draws(200, 1)
    got = memorisation_score(2 * draws(200, 2), train, held_out)
    assert got.p_underfitted < 1e-3 and got.p_memorised > 0.99
    assert got.auc < 0.3 and got.z < -5


@pytest.fixture(scope="module")
def honest():
    """Scores of honest samplers, each with training and held-out data of its own."""
    return [
        memorisation_score(
            *draws(260, seed).split([80, 100, 80]), num_permutations=199, generator=rng(seed)
        )
        for seed in range(200)
    ]


def test_an_honest_sampler_is_not_caught(honest):
    # With 199 permutations p is uniform on 1/200, 2/200, ..., 1: spread it within its step.
    spread = np.random.default_rng(0).random(200) / 200
    for name in ("p_memorised", "p_underfitted"):
        p = np.array([getattr(score, name) for score in honest]) - spread
        assert scipy.stats.kstest(p, "uniform").pvalue > 1e-4
    z = np.array([score.z for score in honest])
    assert abs(z.mean()) < 4 / math.sqrt(200)
    assert abs(z.std() - 1) < 4 / math.sqrt(400)


def test_the_tail_of_an_honest_sampler_is_not_caught(honest):
    # Few distances are in the tail, so that p is coarse: at most, not exactly, its level.
    tail_p = np.array([score.tail_p for score in honest])
    for level in (0.05, 0.2, 0.5):
        assert (tail_p <= level).mean() < level + 4 * math.sqrt(level * (1 - level) / 200)
    shares = np.array([score.tail_share for score in honest])
    assert abs(shares.mean() - 0.05) < 4 * shares.std() / math.sqrt(200)


def test_distances_may_be_of_features():
    train, held_out = draws(300, 0), draws(100, 1)
    moved = train[:100].clone()
    moved[:, 1:] = draws(100, 2)[:, 1:]  # copies of the first coordinate only
    assert memorisation_score(moved, train, held_out).p_memorised > 1e-3
    got = memorisation_score(moved, train, held_out, feature_fn=lambda x: x[:, :1])
    assert got.p_memorised < 1e-3
    images = memorisation_score(
        *(x.reshape(-1, 1, D, 1) for x in (train[:100] + 0.01, train, held_out))
    )
    assert images.p_memorised < 1e-3


def test_one_sample_is_judged_by_its_rank():
    train, held_out = double([[0.0]]), double([[1.0], [2.0], [3.0]])
    found = memorisation_score(
        double([[0.5]]), train, held_out, num_permutations=4000, generator=rng()
    )
    assert found.auc == 1
    assert abs(found.p_memorised - 1 / 4) < 4 * math.sqrt(3 / 16 / 4000) + 1 / 4000


# --- whether the nearest datum was trained on ------------------------------------------


def test_share_catches_copies_and_spares_samples_that_only_look_typical():
    train, held_out = draws(300, 0), draws(300, 1)
    copies = train[:100] + 0.05 * draws(100, 2)
    got = training_share(copies, train, held_out, generator=rng())
    assert got.share > 0.95 and got.expected == 0.5 and got.p_value == 1 / 2001
    assert got.z > 5
    central = 0.3 * draws(100, 3)  # nearer to any data than data are, as modes would be
    assert memorisation_score(central, train, held_out).p_memorised < 1e-3
    assert training_share(central, train, held_out, generator=rng()).p_value > 0.01


def test_share_by_hand():
    train, held_out = double([[0.0], [1.0]]), double([[2.0], [3.0], [4.0], [5.0]])
    samples = double([[0.1], [1.2], [1.9], [2.9]])
    got = training_share(samples, train, held_out, num_permutations=0)
    assert got.share == pytest.approx(1 / 2) and got.expected == pytest.approx(1 / 3)
    assert got.nearest.tolist() == [0, 1, 2, 3]
    # Hits 1, 1, 1, 1, 0, 0: two drawn without replacement have mean 4/3, variance 2·4/6·4/15.
    assert got.z == pytest.approx((2 - 4 / 3) / math.sqrt(2 * 4 / 6 * 4 / 15))
    assert got.p_value == pytest.approx(scipy.stats.norm.sf(got.z))


def test_share_is_exact_for_samples_that_depend_on_each_other():
    # Ten samples in one place are one fact: without that, half of all p-values would be tiny.
    p = [
        training_share(
            draws(10, seed).repeat(10, 1),
            *draws(80, 1000 + seed).split([40, 40]),
            num_permutations=199,
            generator=rng(seed),
        ).p_value
        for seed in range(200)
    ]
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.array(p) <= level)
        assert share < level + 4 * math.sqrt(level * (1 - level) / 200)


# --- parts ------------------------------------------


def test_ranks_share_ties():
    values = [3.0, 1.0, 3.0, 2.0, 3.0, 1.0]
    np.testing.assert_array_equal(_ranks(double(values)), scipy.stats.rankdata(values))


def test_values_that_are_all_equal_tell_nothing():
    for permutations, p in ((0, 0.5), (9, 1.0)):
        found = _label_test(torch.ones(6).double(), 3, permutations, rng(), False)
        assert found == (0.0, p, p)


def test_randomness_is_the_generators_only():
    state = torch.get_rng_state()
    sets = draws(10, 0), draws(20, 1), draws(10, 2)
    one, two = (training_share(*sets, generator=rng(3)).p_value for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)


# --- minima ------------------------------------------


def test_minimum_of_a_quadratic_potential_is_its_mean():
    gebm = linear_gaussian()
    mean, _ = linear_gaussian_posterior(gebm)
    starts = 5 * torch.randn(7, 2, generator=rng(), dtype=torch.float64)
    got = energy_minima(gebm, starts, tolerance=1e-8)
    np.testing.assert_allclose(got.z, np.tile(mean, (7, 1)), atol=1e-8)
    assert got.converged.all() and (got.grad_norm <= 1e-8).all()
    assert got.num_steps < 100
    torch.testing.assert_close(got.potential, gebm.potential_fn(got.z))
    torch.testing.assert_close(got.energy, gebm.latent_energy(got.z))
    torch.testing.assert_close(got.x, gebm.base(got.z))


def test_minimum_of_a_quadratic_energy_is_least_squares():
    gebm = linear_gaussian()
    A, b = gebm.base.generator.weight.detach(), gebm.base.generator.bias.detach()
    root = gebm.energy.precision.sqrt()
    target = root * (gebm.energy.mean - b)
    expected = torch.linalg.lstsq(root[:, None] * A, target[:, None]).solution[:, 0]
    got = energy_minima(gebm, torch.zeros(3, 2).double(), objective="energy", tolerance=1e-8)
    torch.testing.assert_close(got.z, expected.expand(3, 2), atol=1e-7, rtol=0)


class Wells(nn.Module):
    """E(x) = (x₀² - 4)² + x₁²: two wells, a saddle at the origin."""

    def forward(self, x):
        return (x[:, 0].square() - 4).square() + x[:, 1].square()


def wells(prior=None):
    prior = prior or pg.StandardNormal(2).double()
    return pg.GEBM(pg.Base(nn.Identity(), prior), Wells())


def test_each_start_finds_its_own_well():
    # With the prior's x₀²/2: 4 x₀ (x₀² - 4) + x₀ = 0, so x₀ = ±√(4 - 1/4).
    starts = double([[3.0, 1.0], [-0.1, 5.0], [20.0, -1.0], [-2.0, 0.0]])
    got = energy_minima(wells(), starts, tolerance=1e-6)
    well = math.sqrt(3.75)
    expected = double([[well, 0.0], [-well, 0.0], [well, 0.0], [-well, 0.0]])
    torch.testing.assert_close(got.z.abs(), expected.abs(), atol=1e-6, rtol=0)
    assert got.z[1, 0] < 0 and got.z[3, 0] < 0 and got.converged.all()


def test_no_descent_is_held_up_by_another():
    starts = double([[3.0, 1.0], [-0.1, 5.0], [20.0, -1.0]])  # the last begins with steps refused
    together = energy_minima(wells(), starts, steps=8).z
    alone = torch.cat([energy_minima(wells(), start[None], steps=8).z for start in starts])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_network_agrees_with_scipy(seed):
    gebm = small_gebm(seed=seed).double()
    start = torch.randn(1, 2, generator=rng(seed), dtype=torch.float64)

    def objective(z):
        z = torch.tensor(z[None], requires_grad=True)
        value = gebm.potential_fn(z).sum()
        (grad,) = torch.autograd.grad(value, z)
        return value.item(), grad[0].numpy()

    oracle = scipy.optimize.minimize(objective, start[0], jac=True, method="BFGS", tol=1e-9)
    got = energy_minima(gebm, start, tolerance=1e-6)
    np.testing.assert_allclose(got.z[0], oracle.x, atol=1e-5)


def test_what_has_not_converged_says_so():
    got = energy_minima(wells(), double([[3.0, 1.0], [math.sqrt(3.75), 0.0]]), steps=2)
    assert got.converged.tolist() == [False, True]
    assert got.num_steps == 2


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_descents_end_at_single_precision(offset):
    # Decreases near the bottom are far below the rounding of a value of 10,000.
    gebm = small_gebm()
    gebm.energy[-1].bias.data += offset
    got = energy_minima(gebm, 3 * torch.randn(50, 2, generator=rng()), tolerance=1e-4, steps=200)
    assert got.converged.all()


def test_a_wall_is_not_crossed():
    # Outside (-1, 1)² the potential is infinite; the wells are out of reach.
    gebm = wells(pg.UniformPrior(2, -1.0, 1.0).double())
    got = energy_minima(gebm, double([[0.5, 0.5], [-0.5, 0.0]]), steps=200)
    assert (got.z.abs() <= 1).all() and got.potential.isfinite().all()
    assert (got.z[:, 0].abs() > 0.9).all() and not got.converged.any()


def test_the_model_is_left_as_it_was():
    gebm = small_gebm().train()
    before = snapshot(gebm)
    energy_minima(gebm, torch.zeros(2, 2), steps=3)
    assert gebm.training and all(p.requires_grad and p.grad is None for p in gebm.parameters())
    assert all(torch.equal(before[name], value) for name, value in gebm.state_dict().items())


# --- refusals ------------------------------------------

SETS = draws(4, 0), draws(5, 1), draws(6, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: memorisation_score(SETS[0][:0], *SETS[1:]), r"samples: .*N >= 1.*\(0, 5\)"),
        (lambda: training_share(*SETS[:2], SETS[2][:, :3]), "dimension"),
        (lambda: memorisation_score(SETS[0][:, 0], *SETS[1:]), r"samples: .*\(4,\)"),
        (lambda: memorisation_score(*SETS[:2], SETS[2] * torch.nan), "held_out: .*nan"),
        (lambda: memorisation_score(*SETS, tail=0.0), r"tail: .*\(0.0, 1.0\]; got 0.0"),
        (lambda: memorisation_score(*SETS, num_permutations=5), "generator: .*got None"),
        (lambda: memorisation_score(*SETS, num_permutations=-1), "num_permutations: .*-1"),
        (lambda: memorisation_score(*SETS, feature_fn=torch.sum), r"feature_fn: .*\(4, \.\.\.\)"),
        (lambda: training_share(*SETS), "generator: .*got None"),
        (lambda: energy_minima(wells(), torch.zeros(2)), r"z0: .*\(C, 2\).*\(2,\)"),
        (lambda: energy_minima(wells(), torch.zeros(4, 3)), r"z0: .*\(4, 3\)"),
        (lambda: energy_minima(wells(), torch.zeros(4, 2), objective="x"), "objective: .*energy"),
        (lambda: energy_minima(wells(), torch.zeros(4, 2), tolerance=0), "tolerance: "),
        (lambda: energy_minima(wells(), torch.zeros(4, 2), steps=0), "steps: .*0"),
        (
            lambda: energy_minima(wells(pg.UniformPrior(2)), torch.full((1, 2), 3.0)),
            "z0: .*support",
        ),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
