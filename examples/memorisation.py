# %% [markdown]
# # Do modes match training samples?
#
# What one learns: whether a model of the digits, or the minima of its energy, repeats training
# images. Trains the digits model of the demo (or loads a run of `pyro-gebm train`), and asks of
# its base, its samples and the minima of its potential two things, printed as a table in Markdown:
#
# * **nearer than fresh data?** The distance to the nearest training image against that of test
#   images: AUC 0.5 is honest, above it is copying or a law that is too narrow.
# * **nearest to what was trained on?** The share of samples whose nearest image, of training and
#   test images together, is a training image: the share of those among all is honest, whatever
#   the law of the samples is.
#
# Fresh images and noisy copies of training images stand beside them, to show what either reads.
# The first question assumes independent samples, which minima are not: its p-value there says
# only that they are nearer than data are, as the middle of any cloud is.
#
#     python examples/memorisation.py --out runs/memorisation
#     python examples/memorisation.py --run runs/demo

# %%
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from inpainting import get_arguments, get_model
from torch import Tensor

import pyro_gebm as pg
from pyro_gebm.cli.problems import load_problem
from pyro_gebm.metrics.memorisation import MemorisationScore, memorisation_score, training_share
from pyro_gebm.metrics.minima import EnergyMinima, energy_minima


def distinct(minima: EnergyMinima, apart: float = 0.05) -> Tensor:
    """x of the minima, one of each that are closer than ``apart`` in z, the lowest."""
    kept: list[int] = []
    for i in minima.potential.argsort().tolist():
        if not kept or (minima.z[kept] - minima.z[i]).norm(dim=1).min() > apart:
            kept.append(i)
    return minima.x[kept]


def row(name: str, x: Tensor, sets: dict[str, Tensor], seed: int) -> tuple[str, MemorisationScore]:
    """Both scores of one set."""
    score = memorisation_score(x, sets["train"], sets["held-out"])
    generator = torch.Generator().manual_seed(seed)
    share = training_share(x, sets["train"], sets["held-out"], generator=generator)
    cells = [name, str(len(x)), f"{score.median_samples:.2f}", f"{score.auc:.2f}"]
    cells += [f"{score.z:+.1f}", f"{score.p_memorised:.1g}", f"{score.tail_share:.2f}"]
    cells += [f"{share.share:.2f}", f"{share.p_value:.1g}"]
    return "| " + " | ".join(cells) + " |", score


def draw(x: Tensor, score: MemorisationScore, train: Tensor, path: Path, name: str) -> None:
    """The images that are nearest to a training image, above that image."""
    closest = score.distances.argsort()[:10]
    pairs = torch.stack([x[closest], train[score.nearest[closest]].to(x)])
    figure, axes = plt.subplots(
        2, len(closest), figsize=(8, 2), layout="constrained", squeeze=False
    )
    for line, images in zip(axes, pairs, strict=True):
        for cell, image in zip(line, images, strict=True):
            cell.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
            cell.set_axis_off()
    figure.suptitle(f"{name} nearest to training images, and those below", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# %%
def main() -> None:
    arguments = get_arguments(__doc__, "runs/memorisation")
    seed, smoke = arguments.seed, arguments.smoke
    problem = load_problem("digits", seed)
    gebm, _ = get_model(arguments.run, seed, smoke, problem.training.base_steps)

    torch.manual_seed(seed)
    held_out, fresh = problem.test[torch.randperm(len(problem.test))].chunk(2)
    num = len(fresh)
    sets = {"train": problem.train, "held-out": held_out}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence, where the smoke test is too short
        # A chain for each sample, so that they are independent.
        warmup = 20 if smoke else 200
        model = pg.generate(
            gebm, num, num_chains=num, warmup_steps=warmup, seed=seed, progress=not smoke
        )
    with torch.no_grad():
        z = gebm.base.latent_prior.sample(num)
        base = gebm.base(z)
    minima = energy_minima(gebm, z, steps=200 if smoke else 2000, progress=not smoke)
    modes = distinct(minima)
    noise = 0.1 * torch.randn(num, *fresh.shape[1:])
    rows = {
        "copies": problem.train[torch.randperm(len(problem.train))[:num]] + noise,
        "fresh data": fresh,
        "base": base,
        "model": model,
        "minima": modes,
    }
    titles = ["samples", "number", "median distance", "AUC", "z", "p", "nearest 5 %"]
    titles += ["share", "p of share"]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for name, x in rows.items():
        line, score = row(name, x, sets, seed)
        print(line)
        draw(x, score, problem.train, arguments.out / f"{name.replace(' ', '-')}.png", name)
    print(
        f"\n{int(minima.converged.sum())} of {num} descents converged, to {len(modes)} distinct "
        f"minima. Held-out images: median distance {score.median_held_out:.2f}; "
        f"honest share {len(problem.train) / (len(problem.train) + len(held_out)):.2f}."
    )


if __name__ == "__main__":
    main()
