"""The data that the command line learns, each with its networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_gebm import TrainConfig
from pyro_gebm._checks import check_choice
from pyro_gebm.cli.image_problems import READING as OF_IMAGES
from pyro_gebm.cli.image_problems import (
    USUAL,
    ImageData,
    ImageSource,
    are_images,
    data_root,
    load_image_files,
    load_preset_images,
    read_images_of,
    usual_networks,
)
from pyro_gebm.cli.networks import (
    Networks,
    check_trusted,
    perceptrons,
    read_networks,
    write_networks,
)
from pyro_gebm.cli.table_problems import PREPARING, TableSource, load_table
from pyro_gebm.cli.table_problems import READING as READING_TABLES
from pyro_gebm.data import load_digits, sample_toy
from pyro_gebm.nets import NetworkSpec
from pyro_gebm.nets.network import OptionValue
from pyro_gebm.presets import Preset, load_preset

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
    """Data to learn, (N, ...) each, and the networks that are to learn them."""

    name: str
    train: Tensor
    """Images of a set or of files are bytes."""
    held_out: Tensor
    """Data that training looks at now and then, to see what the energy knows."""
    test: Tensor
    """As ``train``."""
    train_labels: Tensor | None
    """Classes, where the data have some."""
    test_labels: Tensor | None
    latent_dim: int
    generator: NetworkSpec
    energy: NetworkSpec
    training: TrainConfig
    base: str = "mlp"
    """Kind of the base, one of ``BASES``; "mlp" stands for any that is no flow."""
    table: TableSource | None = None
    """Where the data came from, if from a table's file."""
    images: ImageSource | None = None
    """Where they came from, if from a set of images or from files of them."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of a datum."""
        return tuple(self.train.shape[1:])

    @property
    def networks(self) -> Networks:
        """What is built for it."""
        return Networks(self.latent_dim, self.generator, self.energy)


def load_problem(
    data: str, seed: int, base: str = "mlp", options: Mapping[str, Any] | None = None
) -> Problem:
    """The data of a problem, and what is to learn them.

    Args:
        data: one of ``PROBLEMS``, or the path of a table, of images or of a folder of them.
        seed: of toys and of splits; the digits do not depend on it.
        base: one of ``BASES``.
        options: of a table or of images, see ``load_table`` and ``load_image_files``.

    Raises:
        ValueError: there is no such problem, its file is refused, or the base is not for it.
        OSError: the file cannot be read.
    """
    check_choice("--base", base, BASES)
    given = dict(options or {})
    if data in PROBLEMS:
        _check_options(data, given, ())
        problem = _digits() if data == "digits" else _toy(data, seed)
    elif are_images(data, given.get("key")):
        _check_options(data, given, (*OF_IMAGES, "sha256"))
        problem = _of_image_files(data, load_image_files(data, seed, given))
    else:
        _check_options(data, given, (*READING_TABLES, *PREPARING, "sha256"))
        problem = _table(data, seed, given)
    return problem if base == "mlp" else _on_flow(problem, base)


def load_preset_problem(preset: Preset, root: str | None, *, download: bool = False) -> Problem:
    """The problem of a preset, with its images from a data root.

    Raises:
        ValueError: there is no root, or the images are not there.
    """
    return _of_preset(preset, load_preset_images(preset, data_root(root), download=download))


def read_problem(
    config: Mapping[str, Any], root: str | None = None, *, training: bool = False
) -> Problem:
    """The problem that a run folder's config.json names.

    Args:
        config: what ``write_problem`` wrote, and "seed".
        root: a data root in place of the one that the run names.
        training: the training data are wanted in any case; without it they may be left out.
    """
    networks = read_networks(config["networks"]) if "networks" in config else None
    if networks is not None:
        check_trusted(networks)  # before data are read
    if "preset" in config or "images" in config:
        images, preset = read_images_of(config, root, training=training)
        named = config["data"]
        problem = _of_preset(preset, images) if preset else _of_image_files(named, images)
    else:
        options = config.get("table", {}).get("options", {})
        base = config.get("base", "mlp")
        problem = load_problem(config["data"], int(config["seed"]), base, options)
    # An older run does not name them.
    return problem if networks is None else problem._replace(**networks._asdict())


def write_problem(problem: Problem) -> dict[str, Any]:
    """What config.json says of a problem, for ``read_problem`` and for people."""
    networks = {"networks": write_networks(problem.networks)}
    if problem.images is not None:
        return {**problem.images.plain, **networks}
    if problem.table is None:
        return {"data": problem.name, "base": problem.base, **networks}
    table = {"options": problem.table.options, "scaling": problem.table.scaling}
    return {"data": problem.table.path, "base": problem.base, "table": table, **networks}


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
        *perceptrons(16, images.shape[1:], (256, 256), "tanh"),
        TrainConfig(),
    )


def _toy(name: str, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    train = sample_toy(name, TOY_TRAIN, generator=generator)
    test = sample_toy(name, TOY_TEST, generator=generator)
    held_out = sample_toy(name, TOY_TEST, generator=generator)
    networks = perceptrons(2, (2,), (256, 256, 256), "identity")
    return Problem(name, train, held_out, test, None, None, *networks, TOY_TRAINING)


def _table(path: str, seed: int, options: Mapping[str, Any]) -> Problem:
    prepared, source = load_table(path, seed, options)
    parts = (prepared.train, prepared.held_out, prepared.test)
    dim = prepared.train.shape[1]
    networks = perceptrons(dim, (dim,), (256, 256), "identity")
    return Problem(Path(path).stem, *parts, None, None, *networks, TOY_TRAINING, "mlp", source)


def _of_preset(preset: Preset, images: ImageData) -> Problem:
    networks = Networks(preset.latent_dim, preset.generator, preset.energy)
    source = images.source._replace(plain={"data": preset.data, **images.source.plain})
    return Problem(preset.name, *images[:5], *networks, preset.training, images=source)


def _of_image_files(path: str, images: ImageData) -> Problem:
    networks = usual_networks(tuple(images.train.shape[1:]))
    source = images.source._replace(plain={"data": path, **images.source.plain})
    training = load_preset(USUAL).training
    return Problem(Path(path).stem, *images[:5], *networks, training, images=source)


def _on_flow(problem: Problem, base: str) -> Problem:
    shape = problem.data_shape
    if len(shape) != 1:
        raise ValueError(
            f"--base: expected 'mlp' for {problem.name}, whose data have shape {shape}; a flow "
            f"wants vectors; got {base!r}"
        )
    # A flow may throw a draw far out, where other units would let the energy fall without end.
    energy: dict[str, OptionValue] = {
        "data_shape": list(shape),
        "hidden": list(FLOW_HIDDEN),
        "activation": "tanh",
    }
    return problem._replace(
        base=base,
        latent_dim=shape[0],
        generator=NetworkSpec(base, {"dim": shape[0]}),
        energy=NetworkSpec("mlp_energy", energy),
        training=FLOW_TRAINING,
    )


def _check_options(data: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    other = sorted(set(given) - set(known))
    if other:
        kind = "images" if set(other) <= set(OF_IMAGES) - set(READING_TABLES) else "tables"
        raise ValueError(f"{data}: expected no options of {kind}; got {', '.join(other)}")
