"""What the example on images shares with itself: a classifier, scores in its features, grids."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import pyro_gebm as pg
from pyro_gebm.data.image_files import ImageSet
from pyro_gebm.data.images import scale_pixels
from pyro_gebm.metrics import (
    Classifier,
    FrechetScorer,
    class_occupancy,
    classifier_features,
    density_coverage,
    occupancy_distance,
    precision_recall,
)
from pyro_gebm.nets import NetworkSpec
from pyro_gebm.objectives import importance_ess
from pyro_gebm.presets import Preset

CLASSES = 10
PLACES = torch.tensor([100, 10, 1])  # of three digits in a number


@torch.no_grad()
def push(gebm: pg.GEBM, z: Tensor) -> Tensor:
    gebm.eval()
    return torch.cat([gebm.base(part) for part in z.split(500)])


@torch.no_grad()
def resampled(gebm: pg.GEBM, num: int, pool: int) -> tuple[Tensor, float]:
    """Base samples drawn by their weights, and the share of effective ones in the pool."""
    gebm.eval()
    x = push(gebm, gebm.base.latent_prior.sample(pool))
    energies = torch.cat([gebm.evaluate_energy(part) for part in x.split(500)])
    chosen = torch.multinomial((-energies.double()).softmax(0), num, replacement=True)
    return x[chosen], float(importance_ess(energies.double()))


class Scores:
    """Fréchet distance, fidelity, diversity and classes of sets of one size."""

    def __init__(self, judge: Classifier, test: ImageSet, size: int) -> None:
        self.judge, self.size = judge, min(size, len(test.pixels))
        x = scale_pixels(test.pixels)
        self.embed = classifier_features(judge).embed
        self.scorer = FrechetScorer(self.embed, x, labels=test.labels)
        self.real = self.embed(x[: self.size])
        self.shares = class_occupancy(test.labels, CLASSES)
        self.accuracy = (judge.predict(x) == test.labels).double().mean().item()
        self.floor = self.scorer.floor(generator=torch.Generator().manual_seed(0))

    def __call__(self, x: Tensor) -> dict:
        features = self.embed(x)
        seeded = torch.Generator().manual_seed(0)
        found = precision_recall(features, self.real, groups=2, generator=seeded)
        spread = density_coverage(features, self.real, groups=2, generator=seeded)
        occupancy = class_occupancy(self.judge.predict(x), CLASSES)
        return {
            "frechet": self.scorer.score(x),
            "precision": found.precision,
            "recall": found.recall,
            "density": spread.density,
            "coverage": spread.coverage,
            "occupancy": occupancy.tolist(),
            "occupancy_error": occupancy_distance(occupancy, self.shares),
        }


def stacked(images: ImageSet, seed: int) -> ImageSet:
    """Three random digits as channels; the label is the number that they spell."""
    source = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(images.pixels), (len(images.pixels), 3), generator=source)
    digits = images.labels[rows]
    return ImageSet(images.pixels[rows, 0], digits @ PLACES)


def stacked_preset(preset: Preset) -> Preset:
    """The same networks on three channels."""
    specs = [
        NetworkSpec(spec.name, {**spec.options, "data_shape": [3, 28, 28]})
        for spec in (preset.generator, preset.energy)
    ]
    return replace(preset, name="stacked-mnist-cpu", generator=specs[0], energy=specs[1])


def modes(judge: Classifier, x: Tensor) -> dict:
    """Modes recovered, and KL(found || uniform) in nats."""
    digits = torch.stack([judge.predict(x[:, [channel]]) for channel in range(3)], 1)
    counts = torch.bincount(digits @ PLACES, minlength=1000).double()
    shares = counts[counts > 0] / counts.sum()
    return {"modes": int((counts > 0).sum()), "kl": float((shares * (1000 * shares).log()).sum())}


def picture(sets: dict[str, Tensor], path: Path, side: int = 8) -> None:
    """Grids of the first images of each set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(sets), figsize=(4 * len(sets), 4.3))
    for axis, (name, x) in zip(axes, sets.items(), strict=True):
        size, channels = x.shape[-1], x.shape[1]
        grid = x[: side * side].reshape(side, side, channels, size, size).permute(0, 3, 1, 4, 2)
        grid = (grid.reshape(side * size, side * size, channels) + 1) / 2
        axis.imshow(grid.clip(0, 1).squeeze(-1), cmap="gray", vmin=0, vmax=1)
        axis.set(title=name, xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
