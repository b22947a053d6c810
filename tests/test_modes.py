"""Modes: chains on labels whose occupancy, ESS and switches are known in closed form."""

import numpy as np
import pytest
import torch

from pyro_gebm.metrics import label_modes, mode_summary, modes

# P(0 -> 1) = A and P(1 -> 0) = B: π_1 = A/(A + B), lag-one correlation λ = 1 - A - B.
A, B = 0.05, 0.15
SHARE, LAMBDA = A / (A + B), 1 - A - B


def two_states(chains=8, draws=20_000, seed=0):
    """The two-state chain, from its stationary law."""
    generator = np.random.default_rng(seed)
    uniform = generator.random((draws, chains))
    labels = np.empty((draws, chains), dtype=np.int64)
    labels[0] = uniform[0] < SHARE
    for t in range(1, draws):
        leaves = uniform[t] < np.where(labels[t - 1] == 1, B, A)
        labels[t] = np.where(leaves, 1 - labels[t - 1], labels[t - 1])
    return labels.T


@pytest.fixture(scope="module")
def chain():
    return two_states()


def test_two_state_chain(chain):
    gradients = np.full(chain.shape, 10)
    found = mode_summary(chain, truth=[1 - SHARE, SHARE], gradients=gradients)
    ess = chain.size * (1 - LAMBDA) / (1 + LAMBDA)
    # The estimate of an ESS of 17,778 from eight chains is good to a few per cent.
    np.testing.assert_allclose(found.ess, ess, rtol=0.1)
    assert found.least_ess == found.ess.min() and found.worst_rhat == found.rhat.max() < 1.01
    error = np.sqrt(SHARE * (1 - SHARE) / ess)
    np.testing.assert_allclose(found.mcse, error, rtol=0.06)
    assert abs(found.occupancy[1] - SHARE) < 4 * error
    switches = 2 * A * B / (A + B)
    # Switches come in pairs, so their number varies by at most twice the binomial's spread.
    noise = 4 * 2 * np.sqrt(switches / chain.size)
    assert abs(found.switches_per_draw - switches) < noise
    assert found.switches_per_1000_gradients == pytest.approx(found.switches_per_draw * 100)
    assert found.ess_per_1000_gradients == pytest.approx(found.least_ess / chain.size * 100)
    truth = [[1 - A, A], [B, 1 - B]]
    counts = chain.size * np.array([[1 - SHARE], [SHARE]])
    noise = 4 * np.sqrt(np.prod(truth, 1, keepdims=True) / counts)
    assert (abs(found.transition_matrix - truth) < noise).all()
    assert found.total_variation == pytest.approx(abs(found.occupancy[1] - SHARE))
    relative = abs(found.occupancy[1] / SHARE - 1)
    assert found.largest_relative_error == pytest.approx(relative)
    assert found.missing == ()


def test_mcse_covers():
    # 200 runs: (occupancy - truth) / mcse has variance 1, the sample variance error √(2/200).
    scores = []
    for seed in range(200):
        found = mode_summary(two_states(4, 1000, seed))
        scores.append((found.occupancy[1] - SHARE) / found.mcse[1])
    assert abs(np.square(scores).mean() - 1) < 4 * np.sqrt(2 / 200)


def test_small_counts_by_hand():
    labels = [[0, 0, 1, 1, 0], [2, 2, 2, 0, 1]]
    gradients = [[100, 1, 1, 2, 1], [100, 2, 1, 1, 1]]
    found = mode_summary(labels, 4, truth=[0.5, 0.2, 0.3, 0.0], gradients=gradients)
    np.testing.assert_allclose(found.occupancy, [0.4, 0.3, 0.3, 0])
    assert found.missing == (3,)
    assert found.switches_per_draw == 4 / 8
    assert found.switches_per_1000_gradients == pytest.approx(1000 * 4 / 10)
    assert found.ess_per_1000_gradients == pytest.approx(1000 * found.least_ess / 210)
    assert found.total_variation == pytest.approx(0.1)
    assert found.largest_relative_error == pytest.approx(0.5)
    nan = np.nan
    matrix = [[1 / 3, 2 / 3, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 0, 2 / 3, 0], [nan] * 4]
    np.testing.assert_allclose(found.transition_matrix, matrix)
    assert np.isnan([found.ess[3], found.rhat[3], found.mcse[3]]).all()
    spurious = mode_summary(labels, 3, truth=[0.7, 0.3, 0.0])
    assert spurious.largest_relative_error == np.inf
    assert spurious.switches_per_1000_gradients is spurious.ess_per_1000_gradients is None


def test_without_truth_nothing_is_compared(chain):
    found = mode_summary(chain)
    assert found.total_variation is found.largest_relative_error is None


def test_chains_that_never_change():
    labels = np.repeat([[0], [0], [2], [2]], 100, axis=1)
    found = mode_summary(labels)
    np.testing.assert_array_equal(found.rhat, [np.inf, np.nan, np.inf])
    # Four chains that do not move are four draws.
    np.testing.assert_array_equal(found.ess, [4, np.nan, 4])
    np.testing.assert_allclose(found.mcse, [0.25, np.nan, 0.25])
    assert found.worst_rhat == np.inf and found.least_ess == 4
    assert found.missing == (1,) and found.switches_per_draw == 0
    alone = mode_summary(np.ones((4, 100), dtype=int), 2)
    assert np.isnan(alone.worst_rhat) and np.isnan(alone.least_ess)
    assert alone.missing == (0,)


def test_split_chains_show_in_the_worst_rhat(chain):
    half = chain[:, :1000].copy()
    half[:4] += 2  # modes 0 and 1 in four chains, 2 and 3 in the others
    assert mode_summary(half).worst_rhat > 1.5


def test_a_wrong_ess_is_noticed(monkeypatch):
    # Planted: independent draws assumed.
    monkeypatch.setattr(modes.inference_data, "ess", lambda idata, name: np.full(2, 8.0 * 20_000))
    with pytest.raises(AssertionError):
        test_two_state_chain(two_states())


def test_labels_by_a_function():
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    truth = np.random.default_rng(0).integers(3, size=(4, 50))
    z = centres[truth] + 0.1 * torch.randn(4, 50, 2)
    np.testing.assert_array_equal(label_modes(z, centres), truth)
    np.testing.assert_array_equal(label_modes(z.numpy(), centres.numpy()), truth)
    direct = mode_summary(torch.as_tensor(truth))
    for draws in (z, z.numpy()):
        found = mode_summary(lambda flat: label_modes(flat, centres), draws=draws)
        np.testing.assert_array_equal(found.occupancy, direct.occupancy)
        np.testing.assert_array_equal(found.transition_matrix, direct.transition_matrix)


def test_labels_are_of_the_nearest_centre():
    generator = np.random.default_rng(0)
    z, centres = generator.normal(size=(5, 7, 3)), generator.normal(size=(4, 3))
    distances = np.linalg.norm(z[:, :, None] - centres, axis=-1)
    np.testing.assert_array_equal(label_modes(z, centres), distances.argmin(-1))


GOOD = np.array([[0, 1, 0, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"labels": GOOD[0]}, r"integers \(chain, draw\)"),
        ({"labels": GOOD * 1.0}, "integers"),
        ({"labels": GOOD[:, :3]}, "at least 4 draws"),
        ({"labels": GOOD - 1}, r"values in 0\.\.0; got -1\.\.0"),
        ({"labels": GOOD, "num_modes": 1}, "raise num_modes"),
        ({"labels": GOOD, "num_modes": 0}, "num_modes: expected a whole number"),
        ({"labels": GOOD, "truth": [1.0]}, "2 probabilities that sum to 1"),
        ({"labels": GOOD, "truth": [0.5, 0.6]}, "sum to 1"),
        ({"labels": GOOD, "truth": [1.5, -0.5]}, "probabilities"),
        ({"labels": GOOD, "gradients": np.ones(4)}, r"shape \(2, 4\)"),
        ({"labels": GOOD, "gradients": 0 * GOOD}, "not all 0"),
        ({"labels": len}, "draws: expected z or x"),
        ({"labels": len, "draws": np.ones(4)}, r"draws: expected \(chain, draw"),
        ({"labels": lambda z: z[:3, 0], "draws": np.ones((2, 4, 1))}, "each of 8 draws"),
    ],
)
def test_mode_summary_refuses(arguments, what):
    mode_summary(GOOD)
    with pytest.raises(ValueError, match=what):
        mode_summary(**arguments)


@pytest.mark.parametrize(
    ("z", "centres", "what"),
    [
        (np.ones((5, 2)), np.ones((4, 3)), r"expected \(\.\.\., D\) and \(K, D\)"),
        (np.ones((5, 2)), np.ones((0, 2)), "K >= 1"),
        (np.ones(()), np.ones((1, 1)), "expected"),
        (np.ones((5, 2)), np.ones(2), r"centres: expected shape \(K, D\)"),
        (np.full((5, 2), np.nan), np.ones((1, 2)), "z: expected finite numbers"),
    ],
)
def test_label_modes_refuses(z, centres, what):
    with pytest.raises(ValueError, match=what):
        label_modes(z, centres)
