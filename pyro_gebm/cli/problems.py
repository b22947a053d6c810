"""The data that the command line learns, each with its networks and its score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_gebm import GEBM, Base, StandardNormal, TrainConfig, flow_base
from pyro_gebm._checks import check_choice
from pyro_gebm.cli.table_problems import TableSource, load_table
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
from pyro_gebm.nets import MLPEnergy, MLPGenerator, NetworkSpec, build

TOYS = ("gaussians8", "gaussians25", "moons", "swissroll")
PROBLEMS = ("digits", *TOYS)
FLOWS = ("nvp", "nsf")
BASES = ("mlp", *FLOWS)

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
FLOW_TRAINING = TrainConfig(
    # The flow is fitted beforehand; what it has missed is small and smooth.
    base_steps=0,
    refit_steps=1000,
    refit_lr=3e-3,
    refit_gradient_penalty=0.03,
    log_partition_lr=1e-2,
    latents_per_datum=2,
    # For an alternation, where one is asked for: the flow is good already.
    base_lr=1e-4,
    energy_lr=1e-3,
    gradient_penalty=0.1,
    # Tables are small: stop before the energy learns them by heart.
    refit_patience=10,
    evaluate_every=50,
    evaluation_samples=20_000,
)
FLOW_HIDDEN = (128, 128)
"""Of the energy on a flow."""


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
    """Widths of the hidden layers of both networks; of the energy alone on a flow."""
    training: TrainConfig
    base: str = "mlp"
    """Kind of the base, one of ``BASES``."""
    table: TableSource | None = None
    """Where the data came from, if from a table's file."""


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


def load_problem(
    data: str, seed: int, base: str = "mlp", options: Mapping[str, Any] | None = None
) -> Problem:
    """The data of a problem, and what is to learn them.

    Args:
        data: one of ``PROBLEMS``, or the path of a table.
        seed: of toys and of splits; the digits do not depend on it.
        base: one of ``BASES``.
        options: of a table, see ``load_table``.

    Raises:
        ValueError: there is no such problem, its file is refused, or the base is not for it.
        OSError: the file cannot be read.
    """
    check_choice("--base", base, BASES)
    if data in PROBLEMS and options:
        raise ValueError(f"{data}: expected no options of tables; got {', '.join(options)}")
    if data == "digits":
        problem = _digits()
    elif data in TOYS:
        problem = _toy(data, seed)
    else:
        problem = _table(data, seed, options or {})
    return problem if base == "mlp" else _on_flow(problem, base)


def read_problem(config: Mapping[str, Any]) -> Problem:
    """The problem that a run folder's config.json names."""
    options = config.get("table", {}).get("options", {})
    return load_problem(config["data"], int(config["seed"]), config.get("base", "mlp"), options)


def write_problem(problem: Problem) -> dict[str, Any]:
    """What config.json says of a problem, for ``read_problem`` and for people."""
    if problem.table is None:
        return {"data": problem.name, "base": problem.base}
    table = {"options": problem.table.options, "scaling": problem.table.scaling}
    return {"data": problem.table.path, "base": problem.base, "table": table}


def build_model(problem: Problem) -> GEBM:
    """Fresh networks for a problem: multilayer perceptrons, or a flow and one of them."""
    shape = tuple(problem.train.shape[1:])
    if problem.base in FLOWS:
        # A flow may throw a draw far out, where other units would let the energy fall without end.
        energy = MLPEnergy(shape, problem.hidden, activation="tanh")
        return GEBM(flow_base(build(NetworkSpec(problem.base, {"dim": shape[0]}))), energy)
    energy = MLPEnergy(shape, problem.hidden)
    output = "tanh" if problem.name == "digits" else "identity"
    generator = MLPGenerator(problem.latent_dim, shape, problem.hidden, output=output)
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


# --- kinds of data ------------------------------------------


def _digits() -> Problem:
    images, labels, test_images, test_labels = load_digits()
    kept = len(images) - DIGITS_HELD_OUT
    return Problem(
        "digits",
        images[:kept],
        images[kept:],
        test_images,
        labels[:kept],
        test_labels,
        16,
        (256, 256),
        TrainConfig(),
    )


def _toy(name: str, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    train = sample_toy(name, TOY_TRAIN, generator=generator)
    test = sample_toy(name, TOY_TEST, generator=generator)
    held_out = sample_toy(name, TOY_TEST, generator=generator)
    return Problem(name, train, held_out, test, None, None, 2, (256, 256, 256), TOY_TRAINING)


def _table(path: str, seed: int, options: Mapping[str, Any]) -> Problem:
    prepared, source = load_table(path, seed, options)
    parts = (prepared.train, prepared.held_out, prepared.test)
    dim = prepared.train.shape[1]
    name = Path(path).stem
    return Problem(name, *parts, None, None, dim, (256, 256), TOY_TRAINING, "mlp", source)


def _on_flow(problem: Problem, base: str) -> Problem:
    shape = tuple(problem.train.shape[1:])
    if len(shape) != 1:
        raise ValueError(
            f"--base: expected 'mlp' for {problem.name}, whose data have shape {shape}; a flow "
            f"wants vectors; got {base!r}"
        )
    return problem._replace(
        base=base, latent_dim=shape[0], hidden=FLOW_HIDDEN, training=FLOW_TRAINING
    )
