"""``save`` and ``load``: one file that rebuilds a model, refuses pickles and notices damage."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_gebm.base import Base, Prior, StandardNormal, UniformPrior
from pyro_gebm.flows import FreeEnergy
from pyro_gebm.model import GEBM
from pyro_gebm.nets import Network, NetworkSpec, build
from pyro_gebm.training import container
from pyro_gebm.training.container import CheckpointError

__all__ = ["CheckpointError", "load", "save"]

PARTS = {"generator", "energy", "latent_prior", "state"}
FREE = "FreeEnergy"


def save(gebm: GEBM, path: str | Path) -> None:
    """Write a model to ``path``: weights, c, and what rebuilds the networks and the prior.

    The file appears whole or not at all: it is written beside its place and moved there, so
    an interrupted or failed save leaves an older file as it was.

    Args:
        gebm: the model; networks of ``pyro_gebm.nets`` and the priors ``StandardNormal`` and
            ``UniformPrior`` are rebuilt by ``load``, others must be handed to it.
        path: the file to write.

    Raises:
        ValueError: the model's state holds more than plain data and tensors.
        OSError: the file cannot be written.
    """
    content = {
        "generator": _network_spec(gebm.base.generator),
        "energy": _energy_spec(gebm.energy),
        "latent_prior": _prior_spec(gebm.base.latent_prior),
        "state": gebm.state_dict(),
    }
    container.write(path, content, "model")


def load(
    path: str | Path,
    *,
    generator: nn.Module | None = None,
    energy: nn.Module | None = None,
    latent_prior: Prior | None = None,
    map_location: torch.device | str = "cpu",
) -> GEBM:
    """Read a model that ``save`` wrote.

    Args:
        path: the file.
        generator: a network of the saved architecture, where it is not one of
            ``pyro_gebm.nets``; its weights are replaced.
        energy: likewise; where the saved one is a ``FreeEnergy``, its r.
        latent_prior: the prior, where it is neither ``StandardNormal`` nor ``UniformPrior``.
        map_location: device of the model.

    Returns:
        The model, in eval mode.

    Raises:
        CheckpointError: the file is damaged, or not a checkpoint of this package.
        ValueError: a network or prior is needed that the file cannot rebuild.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> from pyro_gebm.nets import MLPEnergy, MLPGenerator
        >>> base = Base(MLPGenerator(2, (3,), hidden=(4,)), StandardNormal(2))
        >>> gebm = GEBM(base, MLPEnergy((3,), hidden=(4,)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(gebm, Path(folder) / "gebm.pt")
        ...     again = load(Path(folder) / "gebm.pt")
        >>> x = torch.ones(1, 3)
        >>> bool(again.log_density_ratio(x) == gebm.log_density_ratio(x))
        True
    """
    saved = container.read(path, "model", PARTS)
    base = Base(
        _rebuild_network("generator", saved["generator"]) if generator is None else generator,
        _rebuild_prior(saved["latent_prior"]) if latent_prior is None else latent_prior,
    )
    gebm = GEBM(base, _rebuild_energy(saved["energy"], energy, base))
    state = saved["state"]
    try:
        gebm.to(dtype=state["log_partition"].dtype).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the networks given do not fit the saved weights: {error}"
        ) from error
    return gebm.to(map_location).eval()


def _network_spec(network: nn.Module) -> tuple[str, dict[str, Any] | None]:
    if isinstance(network, Network):
        return network.spec.name, dict(network.spec.options)
    return type(network).__qualname__, None


def _rebuild_network(role: str, spec: tuple[str, dict[str, Any] | None]) -> nn.Module:
    name, options = spec
    if options is None:
        raise ValueError(
            f"{role}: the saved one is a {name}, which only your code can build; pass "
            f"load(..., {role}=...) a network of the same architecture"
        )
    return build(NetworkSpec(name, options))


def _energy_spec(energy: nn.Module) -> tuple[str, Any]:
    if isinstance(energy, FreeEnergy):
        return FREE, _network_spec(energy.r)
    return _network_spec(energy)


def _rebuild_energy(spec: tuple[str, Any], given: nn.Module | None, base: Base) -> nn.Module:
    name, inner = spec
    if name != FREE or inner is None:
        return _rebuild_network("energy", spec) if given is None else given
    if isinstance(given, FreeEnergy):
        given = given.r
    return FreeEnergy(_rebuild_network("energy", inner) if given is None else given, base)


def _prior_spec(prior: Prior) -> tuple[str, dict[str, float]]:
    if isinstance(prior, StandardNormal):
        return "StandardNormal", {"dim": prior.dim}
    if isinstance(prior, UniformPrior):
        return "UniformPrior", {"dim": prior.dim, "low": prior.low, "high": prior.high}
    return type(prior).__qualname__, {}


def _rebuild_prior(spec: tuple[str, dict[str, Any]]) -> Prior:
    name, options = spec
    if name == "StandardNormal":
        return StandardNormal(**options)
    if name == "UniformPrior":
        return UniformPrior(**options)
    raise ValueError(
        "latent_prior: the saved one holds a distribution that only your code can build; pass "
        "load(..., latent_prior=LatentPrior(distribution))"
    )
