"""Run folders as commands open them."""

from pathlib import Path

import torch

from pyro_gebm import GEBM, load
from pyro_gebm.cli.problems import Problem, read_problem
from pyro_gebm.report import RunFolder


def load_run(
    path: str, data_root: str | None = None, device: str = "cpu"
) -> tuple[RunFolder, GEBM, Problem]:
    """A run folder, its model and its data.

    Args:
        path: the folder.
        data_root: in place of the one that the run names.
        device: of the model.

    Raises:
        ValueError: it is not a run folder, or its parts do not belong together.
    """
    folder = RunFolder(path)
    where = device_of(device)
    problem = problem_of(folder, data_root)
    gebm = load(folder.checkpoint, map_location=where)
    if gebm.latent_dim != problem.latent_dim:
        raise ValueError(
            f"{folder.checkpoint}: expected a model of {problem.name} with {problem.latent_dim} "
            f"latents; got {gebm.latent_dim}"
        )
    return folder, gebm, problem


def problem_of(
    folder: RunFolder, data_root: str | None = None, *, training: bool = False
) -> Problem:
    """The data of a run folder, as its config.json names them.

    Raises:
        ValueError: it is not a run folder, or its data are not to be had.
    """
    config = folder.read_config()
    if "data" not in config or "seed" not in config:
        raise ValueError(f"{folder.config}: expected data and seed; got {', '.join(config)}")
    try:
        return read_problem(config, data_root, training=training)
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder.config}: unknown data {config['data']!r}: neither a problem nor a file there"
        ) from error


def open_folder(path: str | Path) -> RunFolder:
    """A folder that can be written to.

    Raises:
        ValueError: it cannot.
    """
    folder = RunFolder(path)
    folder.create()
    return folder


def device_of(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: it is not to be had.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {name} is not to be had here ({error})") from error
    return device
