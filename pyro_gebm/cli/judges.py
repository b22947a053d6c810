"""How samples of a problem are scored: which distance, in which features, and in which words."""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm.cli.problems import Problem
from pyro_gebm.data import toy_mode_std, toy_modes
from pyro_gebm.data.images import scaled
from pyro_gebm.metrics import (
    Classifier,
    EnergyDistanceScorer,
    FrechetScorer,
    MeanSpread,
    Scorer,
    class_occupancy,
    classifier_features,
    mode_occupancy,
    mode_share,
    train_classifier,
)
from pyro_gebm.metrics.protocol import mean_spread

MOST_COMPARED = 1000
"""Images of each set that are compared pixel by pixel."""


class Judge(NamedTuple):
    """How samples of a problem are scored."""

    scorer: Scorer
    score_name: str
    protocol: str
    """What was measured, in a sentence."""
    floor_note: str
    """How the floor compares with the scores beside it."""
    classifier: Classifier | None
    modes: Tensor | None
    mode_std: float


def build_judge(problem: Problem, *, progress: bool) -> Judge:
    """The score of a problem; where there are labels a classifier is trained first.

    That takes a few seconds on the digits, and half a minute on images of 28 pixels.
    """
    if problem.train_labels is not None and problem.test_labels is not None:
        return _by_classes(problem, problem.train_labels, problem.test_labels, progress)
    if problem.images is not None:
        return _by_pixels(problem)
    mixture = problem.name.startswith("gaussians") and problem.table is None
    truth = "fresh draws of the true distribution" if problem.table is None else "the test rows"
    return Judge(
        EnergyDistanceScorer(problem.test),
        "energy distance",
        f"Energy distance to {truth}",
        "The estimate is unbiased: 0 is perfect, and single values can be negative.",
        None,
        toy_modes(problem.name) if mixture else None,
        toy_mode_std(problem.name) if mixture else 0.0,
    )


def occupancy(judge: Judge, sets: Sequence[Tensor]) -> Tensor | None:
    """Frequencies of the classes or modes among all samples of some sets, where there are any."""
    if judge.classifier is not None:
        labels = torch.cat([judge.classifier.predict(x) for x in sets])
        return class_occupancy(labels, judge.classifier.num_classes)
    if judge.modes is not None:
        return mode_occupancy(torch.cat(list(sets)), judge.modes)
    return None


def class_truth(problem: Problem, judge: Judge) -> Tensor | None:
    """Frequencies (K,) of the classes among the test data, or those of equal modes."""
    if judge.classifier is not None and problem.test_labels is not None:
        return class_occupancy(problem.test_labels, judge.classifier.num_classes)
    if judge.modes is None:
        return None
    return torch.full((len(judge.modes),), 1 / len(judge.modes), dtype=torch.float64)


def share_near_modes(judge: Judge, sets: Sequence[Tensor]) -> float | None:
    """Share of samples within three standard deviations of a mode, for the mixtures."""
    if judge.modes is None:
        return None
    return mode_share(torch.cat(list(sets)), judge.modes, 3 * judge.mode_std)


@final
class PixelScorer:
    """Energy distance of images to fixed real ones, pixel by pixel, by the unbiased estimate.

    2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely and Rizzo, 2013), of at most ``MOST_COMPARED``
    images of each set, evenly picked. What ``EnergyDistanceScorer`` computes, by matrix
    products, which are ten times as fast on so many pixels.

    Args:
        reference: real images (N, C, H, W), N >= 4, scaled or as bytes.
    """

    def __init__(self, reference: Tensor) -> None:
        self._pixels = reference
        self._reference = _vectors(reference)
        self._within = _mean_within(self._reference)

    def score(self, x: Tensor) -> float:
        """Energy distance between images (N, C, H, W), N >= 2, and the reference."""
        vectors = _vectors(x)
        return 2 * _mean_between(vectors, self._reference) - _mean_within(vectors) - self._within

    def floor(self, *, generator: torch.Generator, repeats: int = 20) -> MeanSpread:
        """Distance between random disjoint halves of the reference; about 0, being unbiased."""
        half = min(len(self._pixels) // 2, MOST_COMPARED)
        scores = []
        for _ in range(repeats):
            order = torch.randperm(len(self._pixels), generator=generator)
            x, y = (_vectors(self._pixels[o]) for o in (order[:half], order[half : 2 * half]))
            scores.append(2 * _mean_between(x, y) - _mean_within(x) - _mean_within(y))
        return mean_spread(scores)


def _vectors(images: Tensor) -> Tensor:
    count = min(len(images), MOST_COMPARED)
    rows = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).round().long()
    return scaled(images[rows]).flatten(1).double()


def _mean_between(x: Tensor, y: Tensor) -> float:
    return float(torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist").mean())


def _mean_within(x: Tensor) -> float:
    apart = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0)
    return float(apart.sum()) / (len(x) * (len(x) - 1))


def _by_classes(problem: Problem, train: Tensor, test: Tensor, progress: bool) -> Judge:
    """Fréchet distance in the features of a classifier that is trained on the spot."""
    classes = 1 + max(int(train.max()), int(test.max()))
    classifier = train_classifier(problem.train, train, num_classes=classes, progress=progress)
    hits = (classifier.predict(problem.test) == test).double().mean()
    protocol = (
        f"Fréchet distance to the test images in the {classifier.head.in_features} features of a "
        f"classifier trained on the training images (test accuracy {hits:.3f}); this is not FID"
    )
    embed = classifier_features(classifier).embed
    scorer = FrechetScorer(embed, problem.test, labels=test)
    small = (
        ""
        if problem.images
        else "; being small, they carry more sampling noise than the sets above"
    )
    note = (
        f"They have the classes in equal shares{small}. The training images score "
        f"{scorer.score(problem.train):.2f}."
    )
    return Judge(scorer, "Fréchet distance", protocol, note, classifier, None, 0.0)


def _by_pixels(problem: Problem) -> Judge:
    """Without labels there is nothing to learn features from, and features of chance mislead."""
    return Judge(
        PixelScorer(problem.test),
        "energy distance",
        f"Energy distance of pixels to the test images, of at most {MOST_COMPARED:,} of each set; "
        "without labels there is no classifier to take features from, and pixels say little of "
        "how images look; this is not FID",
        "The estimate is unbiased: 0 is perfect, and single values can be negative.",
        None,
        None,
        0.0,
    )
