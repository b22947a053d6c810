"""The pictures of an evaluation, into the run folder."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_gebm import GEBM
from pyro_gebm.cli.evaluation import BaseScore, KernelRun, deal
from pyro_gebm.cli.problems import Judge, Problem
from pyro_gebm.inference_data import plot_rank
from pyro_gebm.plots import (
    Curve,
    Shift,
    plot_curves,
    plot_energies,
    plot_image_shift,
    plot_scatter,
)
from pyro_gebm.report import PICTURES, RunFolder

LATENTS_SHOWN = 4


def draw_pictures(
    gebm: GEBM,
    problem: Problem,
    judge: Judge,
    runs: Sequence[KernelRun],
    shorts: Mapping[str, tuple[Curve, Shift]],
    base: BaseScore,
    base_samples: Tensor,
    folder: RunFolder,
) -> list[str]:
    """Samples before and after, ranks, energies, curves; returns the files' names."""
    shown = runs[0].kernel
    refined = torch.cat(deal(gebm, runs[0].idata))
    if problem.name == "digits":
        plot_image_shift(shorts[shown][1], folder.picture("samples"), kernel=shown)
    else:
        plot_scatter(problem.test, base_samples, refined, folder.picture("samples"), kernel=shown)
    plot_rank(runs[0].idata, folder.picture("ranks"), range(min(LATENTS_SHOWN, gebm.latent_dim)))
    plot_energies(
        {
            "real test data": _energies(gebm, problem.test),
            "base": _energies(gebm, base_samples),
            f"refined, {shown}": _energies(gebm, refined),
        },
        folder.picture("energies"),
    )
    plot_curves(
        {name: curve for name, (curve, _) in shorts.items()},
        folder.picture("curves"),
        score=judge.score_name,
        floor=("floor: two halves of the test data", max(0.0, base.floor.mean)),
    )
    return [folder.picture(name).name for name in PICTURES]


def _energies(gebm: GEBM, x: Tensor) -> Tensor:
    with gebm.frozen():
        return torch.cat([gebm.evaluate_energy(chunk) for chunk in torch.split(x, 1024)])
