"""The data sets that the command line knows, each with its networks and its score."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm import GEBM, Base, StandardNormal, TrainConfig
from pyro_gebm.data import load_digits, sample_toy, toy_mode_std, toy_modes
from pyro_gebm.metrics import (
    Classifier,
    EnergyDistanceScorer,
    FrechetScorer,
    Scorer,
    class_occupancy,
    mode_occupancy,
    mode_share,
    train_classifier,
)
from pyro_gebm.nets import MLPEnergy, MLPGenerator

TOYS = ("gaussians8", "gaussians25", "moons", "swissroll")
PROBLEMS = ("digits", *TOYS)

TOY_TRAIN, TOY_TEST = 10_000, 4_000
DIGITS_HELD_OUT = 125
"""A tenth of the training images, which come shuffled."""

TOY_TRAINING = TrainConfig(
    energy_lr=1e-3,
    base_lr=1e-3,
    refit_lr=1e-3,
    # Sharp modes need steep energies.
    gradient_penalty=0.1,
    gradient_penalty_end=0.01,
    refit_gradient_penalty=0.01,
)


class Problem(NamedTuple):
    """Data to learn, (N, ...) each."""

    name: str
    train: Tensor
    held_out: Tensor
    """Data that training looks at now and then, to see what the energy knows."""
    test: Tensor
    train_labels: Tensor | None
    """Classes, where the data have some."""
    test_labels: Tensor | None
    latent_dim: int
    hidden: tuple[int, ...]
    """Widths of the hidden layers of both networks."""
    training: TrainConfig


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


def load_problem(name: str, seed: int) -> Problem:
    """The data of a problem; those of the digits do not depend on the seed."""
    if name == "digits":
        images, labels, test_images, test_labels = load_digits()
        kept = len(images) - DIGITS_HELD_OUT
        return Problem(
            name,
            images[:kept],
            images[kept:],
            test_images,
            labels[:kept],
            test_labels,
            16,
            (256, 256),
            TrainConfig(),
        )
    generator = torch.Generator().manual_seed(seed)
    train = sample_toy(name, TOY_TRAIN, generator=generator)
    test = sample_toy(name, TOY_TEST, generator=generator)
    held_out = sample_toy(name, TOY_TEST, generator=generator)
    return Problem(name, train, held_out, test, None, None, 2, (256, 256, 256), TOY_TRAINING)


def build_model(problem: Problem) -> GEBM:
    """Fresh networks for a problem: multilayer perceptrons."""
    shape = tuple(problem.train.shape[1:])
    output = "tanh" if problem.name == "digits" else "identity"
    generator = MLPGenerator(problem.latent_dim, shape, problem.hidden, output=output)
    energy = MLPEnergy(shape, problem.hidden)
    return GEBM(Base(generator, StandardNormal(problem.latent_dim)), energy)


def build_judge(problem: Problem, *, progress: bool) -> Judge:
    """The score of a problem; for digits a classifier is trained first (a few seconds)."""
    if problem.train_labels is not None and problem.test_labels is not None:
        classifier = train_classifier(problem.train, problem.train_labels, progress=progress)
        hits = (classifier.predict(problem.test) == problem.test_labels).double().mean()
        protocol = (
            "Fréchet distance to the test images in the 32 features of a classifier trained on "
            f"the training images (test accuracy {hits:.3f}); this is not FID"
        )
        scorer = FrechetScorer(classifier.features, problem.test, labels=problem.test_labels)
        note = (
            "They have the classes in equal shares; being small, they carry more sampling noise "
            f"than the sets above. The training images score {scorer.score(problem.train):.2f}."
        )
        return Judge(scorer, "Fréchet distance", protocol, note, classifier, None, 0.0)
    mixture = problem.name.startswith("gaussians")
    return Judge(
        EnergyDistanceScorer(problem.test),
        "energy distance",
        "Energy distance to fresh draws of the true distribution",
        "The estimate is unbiased: 0 is perfect, and single values can be negative.",
        None,
        toy_modes(problem.name) if mixture else None,
        toy_mode_std(problem.name) if mixture else 0.0,
    )


def occupancy(judge: Judge, x: Tensor) -> Tensor | None:
    """Frequencies of the classes or modes among samples, where there are any."""
    if judge.classifier is not None:
        return class_occupancy(judge.classifier.predict(x), 10)
    if judge.modes is not None:
        return mode_occupancy(x, judge.modes)
    return None


def share_near_modes(judge: Judge, x: Tensor) -> float | None:
    """Share of samples within three standard deviations of a mode, for the mixtures."""
    return None if judge.modes is None else mode_share(x, judge.modes, 3 * judge.mode_std)
