"""The digits classifier, and the scoring protocol against hand calculations."""

import math

import numpy as np
import pytest
import torch

from pyro_gebm.data import load_digits
from pyro_gebm.metrics import (
    EnergyDistanceScorer,
    FrechetScorer,
    energy_distance,
    feature_statistics,
    frechet_distance,
    relative_score,
    train_classifier,
)
from pyro_gebm.metrics.protocol import _halves


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# --- classifier ------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def classifier(digits):
    return train_classifier(digits.train_images, digits.train_labels)


def test_classifier_generalises(classifier, digits):
    predicted = classifier.predict(digits.test_images)
    assert predicted.dtype == torch.int64
    assert (predicted == digits.test_labels).double().mean() >= 0.95


def test_classifier_features_feed_the_logits(classifier, digits):
    x = digits.test_images[:9]
    features = classifier.features(x)
    assert features.shape == (9, 32) and (features >= 0).all()
    expected = features @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier.logits(x), expected)
    torch.testing.assert_close(classifier(x), expected)
    assert torch.equal(classifier.predict(x), expected.argmax(dim=1))


def test_classifier_comes_frozen_and_in_eval_mode(classifier):
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()])


def test_classifier_follows_its_seed_and_no_other_randomness(digits):
    x, y = digits.train_images[:200], digits.train_labels[:200]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights(train_classifier(x, y, steps=5, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(weights(train_classifier(x, y, steps=5, seed=3)), first)
    assert not torch.equal(weights(train_classifier(x, y, steps=5, seed=4)), first)


def test_classifier_sizes_dtype_and_progress(digits, capsys):
    x, y = digits.train_images[:50].double(), digits.train_labels[:50]
    model = train_classifier(x, y, num_classes=12, feature_dim=7, steps=2)
    assert model.logits(x).shape == (50, 12) and model.logits(x).dtype == torch.float64
    assert model.features(x).shape == (50, 7)
    quiet = capsys.readouterr()
    assert quiet.out == quiet.err == ""
    train_classifier(x, y, steps=2, progress=True)
    assert "2/2" in capsys.readouterr().err


# --- protocol ------------------------------------------


def identity(x):
    return x


def test_scorer_is_the_distance_of_features(classifier, digits):
    scorer = FrechetScorer(classifier.features, digits.train_images)
    fake = torch.rand(200, 1, 8, 8, generator=generator()) * 2 - 1
    a = feature_statistics(classifier.features(fake))
    b = feature_statistics(classifier.features(digits.train_images))
    assert scorer.score(fake) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert scorer.score(digits.train_images) < 1e-8
    assert scorer.score(digits.test_images) < 0.1 * scorer.score(fake)


def halves_by_hand(a, b, c, d):
    """Squared distance of {a, b} and {c, d} on the line: means, then sds |a - b|/√2."""
    means = (a + b) / 2 - (c + d) / 2
    return means**2 + (abs(a - b) - abs(c - d)) ** 2 / 2


@pytest.mark.parametrize("odd", [False, True])
def test_floor_splits_into_disjoint_random_halves(odd):
    points = [0.0, 1.0, 3.0, 7.0, 12.0][: 5 if odd else 4]
    scorer = FrechetScorer(identity, double(points)[:, None])
    quadruples = [[p for p in points if p != out] for out in points] if odd else [points]
    values = [
        halves_by_hand(*order)
        for a, b, c, d in quadruples
        for order in [(a, b, c, d), (a, c, b, d), (a, d, b, c)]
    ]
    mean, sd = np.mean(values), np.std(values)
    floor = scorer.floor(generator=generator(), repeats=2000)
    assert floor.count == 2000
    assert abs(floor.mean - mean) < 4 * sd / math.sqrt(2000)
    kurtosis = np.mean((np.array(values) - mean) ** 4) / sd**4
    assert abs(floor.sd - sd) < 4 * sd * math.sqrt(max(kurtosis - 1, 0.05) / 2000) / 2
    single = scorer.floor(generator=generator(1), repeats=1)
    assert min(abs(single.mean - v) for v in values) < 1e-10
    assert math.isnan(single.sd)


def test_floor_follows_its_generator_only():
    scorer = FrechetScorer(identity, torch.randn(30, 2, generator=generator()))
    state = torch.get_rng_state()
    assert scorer.floor(generator=generator(1)) == scorer.floor(generator=generator(1))
    assert scorer.floor(generator=generator(1)) != scorer.floor(generator=generator(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert scorer.floor(generator=generator(1)).count == 20


def test_relative_score_pairs_set_by_set():
    # One feature, equal spreads: the score is the squared shift from the reference {0, 2}.
    scorer = FrechetScorer(identity, double([[0.0], [2.0]]))

    def shifted(*shifts):
        return [double([[s], [2.0 + s]]) for s in shifts]

    got = relative_score(scorer, shifted(1, 2, 3), shifted(2, 2, 6))
    assert got.refined.mean == pytest.approx(14 / 3) and got.base.mean == pytest.approx(44 / 3)
    assert got.ratio.mean == pytest.approx((0.25 + 1 + 0.25) / 3)  # not 14/44
    assert got.ratio.sd == pytest.approx(math.sqrt((0.25**2 + 0.25**2 + 0.5**2) / 2))
    assert got.ratio.count == got.base.count == got.refined.count == 3


# --- refusals ------------------------------------------

IMAGES, LABELS = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
BAD = torch.tensor([[0.0, 1.0], [0.0, math.nan], [0.0, 0.0]])
REAL = double([[0.0], [1.0], [3.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_classifier(IMAGES.long(), LABELS), "images: .*int64"),
        (lambda: train_classifier(IMAGES, LABELS[:3]), r"labels: .*\(4,\).*\(3,\)"),
        (lambda: train_classifier(IMAGES, LABELS, num_classes=1), r"0\.\.0; got 0\.\.1"),
        (lambda: train_classifier(IMAGES, LABELS, steps=0), "steps: .*got 0"),
        (lambda: train_classifier(BAD, LABELS[:3]), r"images: .*\(1, 1\)"),
        (lambda: FrechetScorer(identity, torch.zeros(3)), r"\(N, K\).*\(3,\)"),
        (lambda: FrechetScorer(identity, REAL).floor(generator=generator()), "at least 4.*got 3"),
        (lambda: relative_score(FrechetScorer(identity, REAL), [], []), "0 and 0"),
        (lambda: relative_score(FrechetScorer(identity, REAL), [REAL], []), "1 and 0"),
        (
            lambda: relative_score(FrechetScorer(identity, REAL), [REAL], [REAL[:2]]),
            r"pair 0.*\(3, 1\) and \(2, 1\)",
        ),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_stratified_floor_has_no_noise_of_class_proportions() -> None:
    # Features that are nothing but the class: halves of equal proportions do not differ, random
    # ones do (40 data of 2 classes: a proportion of 1/2 has standard deviation 0.11).
    labels = torch.arange(40) % 2
    features = labels[:, None].double()
    stratified = FrechetScorer(lambda x: x, features, labels=labels)
    plain = FrechetScorer(lambda x: x, features)
    assert stratified.floor(generator=generator()).mean == pytest.approx(0.0, abs=1e-12)
    assert plain.floor(generator=generator()).mean > 1e-3


def test_halves_are_disjoint_when_stratified() -> None:
    labels = torch.tensor([0] * 5 + [1] * 8)
    rows = torch.arange(13)
    for first, second in _halves(rows, 20, generator(), labels):
        assert len(first) == len(second) == 6
        assert not set(first.tolist()) & set(second.tolist())
        for one in (0, 1):
            assert abs(int((labels[first] == one).sum() - (labels[second] == one).sum())) <= 1


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\)"):
        FrechetScorer(lambda x: x, torch.zeros(4, 1), labels=torch.zeros(3, dtype=torch.int64))


def test_energy_distance_scorer_scores_against_its_reference() -> None:
    reference = torch.randn(400, 2, generator=generator())
    scorer = EnergyDistanceScorer(reference)
    shifted = torch.randn(300, 2, generator=generator(1)) + 1
    assert scorer.score(shifted) == energy_distance(shifted, reference)
    floor = scorer.floor(generator=generator(2), repeats=50)
    # Unbiased: the mean of 50 splits is 0 within 4 standard errors.
    assert abs(floor.mean) < 4 * floor.sd / 50**0.5


def test_a_base_without_distance_leaves_no_ratio() -> None:
    score = relative_score(FrechetScorer(identity, REAL), [REAL, REAL], [REAL, REAL])
    assert score.base.mean == 0 and math.isnan(score.ratio.mean)
