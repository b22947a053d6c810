# %% [markdown]
# # What is a GEBM?
#
# What one learns: what an energy can do, what a generator can do, and what both can do together.
# The data lie on a curve in the plane, thick at its ends and thin in the middle. Three models of
# them, all made of the same two parts:
#
# * EBM: the base is uniform on a square, and an energy reweights it. This is the ordinary
#   energy-based model, a density in the plane.
# * generator alone: a base that lies on the curve, with wrong weights along it, as a GAN's may be.
#   It is given here, not trained: the energy is zero.
# * GEBM: the same base, reweighted by an energy.
#
# Both energies are the exact optimum of KALE in one class (random Fourier features of norm at most
# 200 nats), so that no training stands between the picture and the models.
#
# The table has two figures for each. *Off the curve* is the mean distance of a sample from the
# curve: does the support fit? *Wrong place* is the total variation between the positions of the
# samples along the curve and those of fresh data, in 20 bins: do the weights fit?
#
#     python examples/what_is_a_gebm.py --seeds 0 1 2

# %%
import argparse
import statistics
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import pyro_gebm as pg
from pyro_gebm.nets import FourierEnergy

EDGE = 2.5
"""Half the side of the square and of the picture, in units of the data."""
BINS = 20
NUM_FEATURES, BANDWIDTH, RADIUS = 200, 0.7, 200.0


# %%
def height(first: Tensor) -> Tensor:
    """The curve: its second coordinate, of the first."""
    return 1.2 * (2 * first).sin()


class Curve(nn.Module):
    """A generator that has found the curve: z (B, 1) in [-1, 1] -> x (B, 2)."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([2 * z, height(2 * z)], 1)


def draw_data(num: int, generator: torch.Generator) -> Tensor:
    """Points on the curve (N, 2); the first coordinate is thick at both ends of [-2, 2]."""
    uniform = torch.rand(num, generator=generator)
    side = torch.where(torch.rand(num, generator=generator) < 0.35, -1.0, 1.0)
    first = 2 * side * uniform ** (1 / 3)
    return torch.stack([first, height(first)], 1)


def off_curve(x: Tensor) -> float:
    """Mean distance of points (N, 2) from the curve, in units of the data."""
    first = torch.linspace(-2, 2, 2001)
    curve = torch.stack([first, height(first)], 1)
    return float(torch.cdist(x, curve).amin(1).mean())


def shares(x: Tensor) -> np.ndarray:
    """How many of the points (N, 2) lie in each of the bins of the first coordinate."""
    return np.histogram(x[:, 0].clamp(-2, 2).numpy(), BINS, (-2, 2))[0] / len(x)


# %%
def fit(base: pg.Base, data: Tensor, seed: int, num: int) -> pg.GEBM:
    """The GEBM on a base whose energy is the best of its class for the data."""
    energy = FourierEnergy(
        (2,), num_features=NUM_FEATURES, bandwidth=BANDWIDTH, radius=RADIUS, seed=seed
    )
    with torch.no_grad():
        solution = pg.training.solve_energy(energy, data, base.sample(num), tolerance=1e-4)
    energy.set_weight(solution.weights)
    return pg.GEBM(base, energy)


def run(seed: int, num: int) -> tuple[dict[str, Tensor], pg.GEBM]:
    """Samples of data and models, (N, 2) each, and the EBM."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    data = draw_data(num, generator)
    square = pg.Base(nn.Identity(), pg.UniformPrior(2, -EDGE, EDGE))
    curve = pg.Base(Curve(), pg.UniformPrior(1, -1.0, 1.0))
    ebm, gebm = fit(square, data, seed, num), fit(curve, data, seed, num)
    samples = {
        "data": draw_data(num, generator),
        "EBM": pg.generate(ebm, num, seed=seed, progress=False),
        "generator alone": curve.sample(num),
        "GEBM": pg.generate(gebm, num, seed=seed, progress=False),
    }
    return samples, ebm


def ebm_density(ebm: pg.GEBM) -> Tensor:
    """exp(-E) on a grid of the square."""
    line = torch.linspace(-EDGE, EDGE, 200)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        return torch.softmax(-ebm.evaluate_energy(points), 0).reshape(200, 200)


def draw_picture(samples: dict[str, Tensor], density: Tensor, path: Path) -> None:
    """Above, where samples lie; below, how they are spread along the curve."""
    figure, axes = plt.subplots(
        2, 4, figsize=(11, 4.6), layout="constrained", sharex=True, height_ratios=(3, 1.2)
    )
    centres = (np.arange(BINS) + 0.5) * 4 / BINS - 2
    truth = shares(samples["data"])
    first = torch.linspace(-2, 2, 400)
    for (name, x), above, below in zip(samples.items(), axes[0], axes[1], strict=True):
        if name == "EBM":
            edges = (-EDGE, EDGE, -EDGE, EDGE)
            above.imshow(density, extent=edges, origin="lower", cmap="Greys", aspect="auto")
        else:
            few = x[:1000]
            above.scatter(few[:, 0], few[:, 1], s=6, color="#0072B2", alpha=0.3, linewidths=0)
        above.plot(first, height(first), color="#D55E00", linewidth=0.8, linestyle="--")
        above.set(title=name, xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE))
        below.bar(centres, shares(x), width=4 / BINS, color="#0072B2", alpha=0.6)
        below.step(centres, truth, where="mid", color="#D55E00", linewidth=1.2)
        below.set(xlabel="first coordinate", ylim=(0, 1.4 * truth.max()))
    axes[0, 0].set_ylabel("second coordinate")
    axes[1, 0].set_ylabel("share")
    figure.savefig(path, dpi=150)
    plt.close(figure)


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description="EBM, generator and GEBM on a curve.")
    parser.add_argument("--out", type=Path, default=Path("runs/what_is_a_gebm"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--smoke", action="store_true", help="a toy-sized run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num = 500 if arguments.smoke else 4000
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in arguments.seeds:
        samples, ebm = run(seed, num)
        fresh = shares(samples["data"])
        again = draw_data(num, torch.Generator().manual_seed(seed + 1000))
        for name, x in {**samples, "data": again}.items():
            wrong = 0.5 * float(np.abs(shares(x) - fresh).sum())
            found.setdefault(name, []).append((off_curve(x), wrong))
        draw_picture(samples, ebm_density(ebm), arguments.out / f"story_{seed}.png")
    print("| samples | off the curve | wrong place |\n|---|---|---|")
    for name, figures in found.items():
        cells = [
            f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for values in zip(*figures, strict=True)
        ]
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()
