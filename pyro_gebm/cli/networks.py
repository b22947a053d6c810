"""Networks as the command line names them: registered ones, and the user's own by import path."""

import argparse
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pyro_gebm.nets import NetworkSpec, trust
from pyro_gebm.nets.imported import import_class, is_import_path, is_trusted
from pyro_gebm.nets.network import OptionValue, registered_class

ROLES = ("generator", "energy")


class Networks(NamedTuple):
    """What is built for a problem."""

    latent_dim: int
    """D."""
    generator: NetworkSpec
    energy: NetworkSpec


class Choice(NamedTuple):
    """What the user says of a network: another one, other options, or neither."""

    name: str | None = None
    """Registered, or an import path."""
    options: Mapping[str, Any] = {}


def choices(arguments: argparse.Namespace) -> dict[str, Choice]:
    """Those of ``train``, by role."""
    return {
        role: Choice(getattr(arguments, role), getattr(arguments, f"{role}_options") or {})
        for role in ROLES
    }


def choose(usual: NetworkSpec, choice: Choice, known: Mapping[str, Any]) -> NetworkSpec:
    """The spec of the network chosen; the usual one under other options if it has no name.

    Args:
        usual: what a problem has by itself.
        choice: the user's.
        known: ``latent_dim`` and ``data_shape``, which constructors that ask for them are given.

    Raises:
        ValueError: there is no such network, or an import fails.
    """
    if choice.name is None:
        filled = {name: value for name, value in known.items() if name in usual.options}
        return NetworkSpec(usual.name, {**usual.options, **filled, **choice.options})
    if is_import_path(choice.name):
        parameters = inspect.signature(import_class(choice.name)).parameters
    else:
        parameters = inspect.signature(registered_class(choice.name)).parameters
    filled = {name: value for name, value in known.items() if name in parameters}
    return NetworkSpec(choice.name, {**filled, **choice.options})


def perceptrons(
    latent_dim: int, shape: Sequence[int], hidden: Sequence[int], output: str
) -> Networks:
    """Multilayer perceptrons."""
    both: dict[str, OptionValue] = {"data_shape": list(shape), "hidden": list(hidden)}
    generator: dict[str, OptionValue] = {"latent_dim": latent_dim, **both, "output": output}
    return Networks(
        latent_dim, NetworkSpec("mlp_generator", generator), NetworkSpec("mlp_energy", both)
    )


def write_networks(networks: Networks) -> dict[str, Any]:
    """What config.json says of them."""
    return {
        "latent_dim": networks.latent_dim,
        "generator": networks.generator._asdict(),
        "energy": networks.energy._asdict(),
    }


def read_networks(plain: Mapping[str, Any]) -> Networks:
    """Networks as ``write_networks`` wrote them.

    Raises:
        ValueError: they are not.
    """
    try:
        generator, energy = (NetworkSpec(**plain[role]) for role in ROLES)
        return Networks(int(plain["latent_dim"]), generator, energy)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "networks: expected latent_dim, and name and options of generator and energy; got "
            f"{plain}"
        ) from error


def check_trusted(networks: Networks) -> None:
    """Refuse networks of code that nobody has said may run.

    Raises:
        ValueError: there are some; all are named.
    """
    untold = [name for name in _import_paths(networks) if not is_trusted(name)]
    if untold:
        raise ValueError(
            f"{', '.join(untold)}: networks of code that is not imported unless you say so; if "
            f"you trust it, give {_trusting(untold)}"
        )


def trust_words(networks: Networks) -> str:
    """What a command on a run of these networks needs, behind a space; mostly nothing."""
    paths = _import_paths(networks)
    return f" {_trusting(paths)}" if paths else ""


def _import_paths(networks: Networks) -> list[str]:
    names = [networks.generator.name, networks.energy.name]
    return [name for name in names if is_import_path(name)]


def _trusting(paths: Sequence[str]) -> str:
    return " ".join(f"--trust {path}" for path in paths)


def trusted_paths(arguments: argparse.Namespace) -> list[str]:
    """Import paths that the user has typed, and whose code may therefore run."""
    typed = [getattr(arguments, role, None) for role in ROLES]
    named = [name for name in typed if name is not None and is_import_path(name)]
    return [*named, *(getattr(arguments, "trust", None) or [])]


@contextmanager
def user_code(paths: Sequence[str]) -> Iterator[None]:
    """Within, networks of these paths are imported, from the folder one is in as well.

    Raises:
        ValueError: one is no import path.
    """
    # Last, so that nothing there stands in for an installed module.
    here = str(Path.cwd())
    if paths and not {"", here} & set(sys.path):
        sys.path.append(here)
    with trust(*paths):
        yield
