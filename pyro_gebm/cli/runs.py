"""Run folders as commands open them."""

from pathlib import Path
from typing import Any

from pyro_gebm import GEBM, load
from pyro_gebm.cli.problems import PROBLEMS, Problem, load_problem
from pyro_gebm.report import RunFolder


def load_run(path: str) -> tuple[RunFolder, GEBM, Problem]:
    """A run folder, its model and its data.

    Raises:
        ValueError: it is not a run folder, or its parts do not belong together.
    """
    folder = RunFolder(path)
    config: dict[str, Any] = folder.read_config()
    if config.get("data") not in PROBLEMS:
        raise ValueError(f"{folder.config}: unknown data {config.get('data')!r}")
    problem = load_problem(config["data"], int(config["seed"]))
    gebm = load(folder.checkpoint)
    if gebm.latent_dim != problem.latent_dim:
        raise ValueError(
            f"{folder.checkpoint}: expected a model of {problem.name} with {problem.latent_dim} "
            f"latents; got {gebm.latent_dim}"
        )
    return folder, gebm, problem


def open_folder(path: str | Path) -> RunFolder:
    """A folder that can be written to.

    Raises:
        ValueError: it cannot.
    """
    folder = RunFolder(path)
    folder.create()
    return folder
