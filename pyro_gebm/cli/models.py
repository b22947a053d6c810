"""Models of problems: the networks that the user has chosen, built and seen to fit."""

from collections.abc import Mapping

import torch

from pyro_gebm import GEBM, Base, StandardNormal, flow_base
from pyro_gebm._checks import check_count
from pyro_gebm.cli.networks import Choice, choose
from pyro_gebm.cli.problems import FLOWS, Problem
from pyro_gebm.nets import build


def with_networks(
    problem: Problem, chosen: Mapping[str, Choice], latent_dim: int | None = None
) -> Problem:
    """A problem with the networks that the user has chosen.

    Args:
        problem: as it is by itself.
        chosen: by role, "generator" and "energy".
        latent_dim: D; ``None`` for that of the generator's options, or the problem's own.

    Raises:
        ValueError: a network is not there, or is not for this problem.
    """
    generator, energy = chosen.get("generator", Choice()), chosen.get("energy", Choice())
    shape = list(problem.data_shape)
    made = problem._replace(energy=choose(problem.energy, energy, {"data_shape": shape}))
    if problem.base not in FLOWS:
        dim = generator.options.get("latent_dim", problem.latent_dim)
        dim = check_count("latent_dim", dim if latent_dim is None else latent_dim)
        known = {"latent_dim": dim, "data_shape": shape}
        return made._replace(latent_dim=dim, generator=choose(problem.generator, generator, known))
    if generator != Choice() or latent_dim is not None:
        raise ValueError(
            f"--generator, --latent-dim: expected none with --base {problem.base}, which is the "
            "generator; got " + str(generator.name or dict(generator.options) or latent_dim)
        )
    return made


def build_model(problem: Problem) -> GEBM:
    """Fresh networks for a problem.

    Raises:
        ValueError: they do not fit its data, or are the user's and not to be imported.
    """
    specs = [problem.energy, problem.generator]
    if problem.images is not None:  # in the order of ``Preset.build``: the same seed, the same
        generator, energy = map(build, reversed(specs))
    else:
        energy, generator = map(build, specs)
    prior = StandardNormal(problem.latent_dim)
    base = flow_base(generator) if problem.base in FLOWS else Base(generator, prior)
    gebm = GEBM(base, energy)
    _check_shapes(gebm, problem)
    return gebm


def _check_shapes(gebm: GEBM, problem: Problem) -> None:
    """Refuse networks that do not fit data and latents, before any work.

    Raises:
        ValueError: one does not; the message names it.
    """
    shape, like = problem.data_shape, gebm.log_partition
    generator, energy = problem.generator, problem.energy
    with gebm.frozen(), torch.no_grad():
        try:
            x = gebm.base(like.new_zeros(2, gebm.latent_dim))
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"{generator.name}: fails on latents (2, {gebm.latent_dim}): {_told(error)}"
            ) from error
        if tuple(x.shape) != (2, *shape):
            raise ValueError(
                f"{generator.name}: expected data (2, {', '.join(map(str, shape))}) of latents "
                f"(2, {gebm.latent_dim}); got {tuple(x.shape)}"
            )
        try:
            gebm.evaluate_energy(like.new_zeros(2, *shape))
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"{energy.name}: fails on data {(2, *shape)}: {_told(error)}"
            ) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
