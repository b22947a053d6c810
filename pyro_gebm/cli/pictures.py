"""The pictures that commands draw into the run folder."""

import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyro_gebm import GEBM, inference_data
from pyro_gebm.cli.evaluation import BaseScore, KernelRun, deal, energies_of
from pyro_gebm.cli.judges import Judge
from pyro_gebm.cli.problems import Problem
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.metrics import MeanSpread
from pyro_gebm.plots import (
    Curve,
    Shift,
    animate_chains,
    plot_curves,
    plot_energies,
    plot_image_shift,
    plot_latent_potential,
    plot_scatter,
    plot_training,
)
from pyro_gebm.report import Picture, RunFolder
from pyro_gebm.sampling import push_forward

LATENTS_SHOWN = 4
FILM_DRAWS = 60


def draw_evaluation(
    gebm: GEBM,
    problem: Problem,
    judge: Judge,
    runs: Sequence[KernelRun],
    shorts: Mapping[str, tuple[Curve, Shift]],
    base: BaseScore,
    base_samples: Tensor,
    folder: RunFolder,
) -> list[Picture]:
    """Samples before and after, energies, and scores on the way."""
    shown = runs[0].kernel
    sets = deal(gebm, runs[0].idata)
    refined = torch.cat(sets) if problem.images is None else sets[0]  # the room that images take
    way = ", in two principal coordinates" if problem.test.ndim == 2 < problem.test.shape[1] else ""
    samples = Picture(
        folder.picture("samples"), f"Samples of the base and of the model, {shown}{way}."
    )
    if problem.test.ndim > 2:
        plot_image_shift(shorts[shown][1], samples.path, kernel=shown)
    else:
        flat = plane(problem)
        clouds = (flat(problem.test), flat(base_samples), flat(refined))
        plot_scatter(*clouds, samples.path, kernel=shown)
    energies = Picture(
        folder.picture("energies"),
        "Energies of test data, base and model: the last should lie on the first.",
    )
    named = {"real test data": problem.test, "base": base_samples, f"refined, {shown}": refined}
    plot_energies({name: energies_of(gebm, x) for name, x in named.items()}, energies.path)
    curves = Picture(
        folder.picture("curves"),
        "Scores of chains that start from the base, under the tuning of the long runs.",
    )
    plot_curves(
        {name: curve for name, (curve, _) in shorts.items()},
        curves.path,
        score=judge.score_name,
        floor=floor_line(base.floor),
    )
    return [samples, energies, curves]


def plane(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Points (..., D) to two coordinates: themselves, or principal ones of the training data."""
    dim = problem.train.shape[1]
    if dim == 2:
        return lambda x: x
    mean = problem.train.mean(0)
    if dim == 1:  # a line, drawn in a plane
        return lambda x: torch.cat([x, torch.zeros_like(x)], dim=-1)
    axes = torch.linalg.svd(problem.train - mean, full_matrices=False)[2][:2]
    return lambda x: (x - mean) @ axes.T


def floor_line(floor: MeanSpread) -> tuple[str, float]:
    """Name and height of the level that real data score; unbiased scores may be below 0."""
    return "floor: two halves of the test data", max(0.0, floor.mean)


def draw_training(trained: RunFolder, folder: RunFolder) -> list[Picture]:
    """The training in a run folder at a glance, if its log is there."""
    if not trained.training_log.exists():
        return []
    picture = Picture(
        folder.picture("training"), "Bound, c, importance ESS and gradients over the training."
    )
    rows = [json.loads(line) for line in trained.training_log.read_text().splitlines()]
    plot_training(rows, picture.path)
    return [picture]


def draw_diagnostics(idata: InferenceData, folder: RunFolder) -> list[Picture]:
    """ArviZ's pictures of a run: ranks, traces, autocorrelation, energy."""
    dims = range(min(LATENTS_SHOWN, inference_data.values(idata, "z").shape[-1]))
    kernel = idata.attrs["kernel"]
    ranks = Picture(
        folder.picture("ranks"),
        f"{kernel}: ranks of each chain's latents among all draws, flat where the chains agree.",
    )
    inference_data.plot_rank(idata, ranks.path, dims)
    traces = Picture(folder.picture("traces"), f"{kernel}: latents of a few chains.")
    inference_data.plot_trace(idata, traces.path, dims)
    lags = Picture(folder.picture("autocorrelation"), f"{kernel}: autocorrelation over draws.")
    inference_data.plot_autocorr(idata, lags.path, dims)
    drawn = [ranks, traces, lags]
    if "energy" in inference_data.names(idata, "sample_stats"):
        energy = Picture(
            folder.picture("energy_transitions"),
            f"{kernel}: energies and their changes from draw to draw, which should be as wide.",
        )
        inference_data.plot_energy(idata, energy.path)
        drawn.append(energy)
    return drawn


def draw_chains(
    gebm: GEBM, problem: Problem, idata: InferenceData, beta: float, folder: RunFolder
) -> list[Picture]:
    """Chains in motion, and of two latents their potential as a map."""
    device = gebm.log_partition.device
    z = torch.as_tensor(inference_data.values(idata, "z"), device=device)
    start = z[:, :FILM_DRAWS]
    film = Picture(folder.film, f"{idata.attrs['kernel']}: the first draws of its chains.")
    with gebm.frozen():
        x = push_forward(gebm, start)
        points = problem.test.ndim == 2
        if points:
            x = plane(problem)(x)
        if gebm.latent_dim != 2:
            animate_chains(x, film.path)
            return [film]

        def potential_fn(u: Tensor) -> Tensor:
            return gebm.potential_fn(u.to(device), beta).cpu()

        if points:
            animate_chains(
                x, film.path, z=start.cpu(), potential_fn=potential_fn, real=problem.test
            )
        else:
            animate_chains(x, film.path)
        latent = Picture(
            folder.picture("latent"), "The latent potential; dots are draws, crosses divergences."
        )
        diverging = inference_data.values(idata, "diverging", "sample_stats")
        plot_latent_potential(potential_fn, latent.path, chains=z.cpu(), diverging=diverging)
    return [latent, film]
