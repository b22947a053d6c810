# %% [markdown]
# # Does a learned prior know what it has not seen?
#
# What one learns: the evidence log p(y) of an observation under a GEBM (`pg.log_evidence`, by SMC),
# and how it does as a detector of another data set. A GEBM of MLPs learns MNIST; test images of it
# and of Fashion-MNIST are scored by the energy E(x) alone, by the evidence under the base alone
# (E = 0) and by that under the model; AUROC is the chance that a garment scores as odder than a
# digit. The width of the noise in the likelihood is the one with the most evidence for validation
# digits. No method is tuned to garments, and the other way round (`--train fashion-mnist`) is as
# easily asked.
#
#     python examples/out_of_distribution.py --data-root DATA
#     python examples/out_of_distribution.py --smoke          # noise instead of data

# %%
import argparse
import math
import os
import statistics
import time
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm import tqdm

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader
from pyro_gebm.data.image_sets import load_image_set
from pyro_gebm.data.images import scale_pixels
from pyro_gebm.mcmc import MALA
from pyro_gebm.nets import MLPEnergy, MLPGenerator

WIDTHS = (0.2, 0.3, 0.45)
SETS = ("mnist", "fashion-mnist")


class Flat(nn.Module):
    """The energy of a model that is its base."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x))


def images(name: str, root: Path | None, train: bool, num: int) -> Tensor:
    """The first images (num, 1, 28, 28) of a set in [-1, 1]; stripes without a data root."""
    if root is None:
        phase = torch.rand(num, 1, 1, 1) * 6
        place = torch.arange(28.0).reshape(1, 1, 28, 1) * (0.5 if name == "mnist" else 1.5)
        return torch.sin(place + phase).expand(num, 1, 28, 28).contiguous()
    return scale_pixels(load_image_set(name, root, train=train, limit=num).pixels)


def learned(x: Tensor, seed: int, smoke: bool) -> pg.GEBM:
    """A GEBM of multilayer perceptrons."""
    torch.manual_seed(seed)
    base = pg.Base(MLPGenerator(24, (1, 28, 28), (256, 512)), pg.StandardNormal(24))
    gebm = pg.GEBM(base, MLPEnergy((1, 28, 28), (512, 256)))
    steps = 20 if smoke else 4000
    config = pg.TrainConfig(
        base_steps=steps, refit_steps=steps // 3, energy_lr=3e-4, base_lr=3e-4, evaluate_every=0
    )
    loader = BatchLoader(x, 64, generator=torch.Generator().manual_seed(seed + 1))
    for _ in tqdm(pg.Trainer(gebm, config).fit(loader), desc="train", disable=smoke):
        pass
    return gebm.eval()


# %%
def evidences(gebm: pg.GEBM, ys: Tensor, width: float, smoke: bool) -> tuple[list[float], float]:
    """log p(y) of each image (P, 1, 28, 28), nats; the median standard error."""
    generator = torch.Generator().manual_seed(0)
    constant = ys[0].numel() * (math.log(width) + 0.5 * math.log(2 * math.pi))
    found, partition = [], None
    for y in tqdm(ys, desc="evidence", disable=smoke):

        def log_likelihood(x: Tensor, y: Tensor = y) -> Tensor:
            return -0.5 * ((x - y) / width).flatten(1).square().sum(1) - constant

        one = pg.log_evidence(
            gebm,
            log_likelihood,
            num_chains=32 if smoke else 128,
            num_moves=2,
            cess=0.6,
            kernel=MALA(),
            partition=partition,
            generator=generator,
        )
        partition = one.partition
        found.append((one.log_evidence, one.standard_error))
    values, errors = zip(*found, strict=True)
    return list(values), statistics.median(errors)


def auroc(inside: list[float], outside: list[float]) -> float:
    """Chance that a draw of ``outside`` scores lower than one of ``inside``; ties count half."""
    labels = [1] * len(inside) + [0] * len(outside)
    return float(roc_auc_score(labels, [*inside, *outside]))


def interval(inside: list[float], outside: list[float]) -> tuple[float, float]:
    """95 % of a bootstrap over images."""
    generator = torch.Generator().manual_seed(0)

    def again(values: list[float]) -> list[float]:
        chosen = torch.randint(len(values), (len(values),), generator=generator)
        return torch.tensor(values)[chosen].tolist()

    found = sorted(auroc(again(inside), again(outside)) for _ in range(400))
    return found[10], found[-11]


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description="Evidence as a detector of another data set.")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("PYRO_GEBM_DATA"))
    parser.add_argument("--train", choices=SETS, default="mnist")
    parser.add_argument("--images", type=int, default=100, help="of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    smoke, seed, started = arguments.smoke, arguments.seed, time.process_time()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    root = None if smoke else arguments.data_root
    if root is None and not smoke:
        parser.error("--data-root: expected a folder with MNIST and FashionMNIST")
    other = SETS[1 - SETS.index(arguments.train)]
    num = 3 if smoke else arguments.images
    data = images(arguments.train, root, True, 128 if smoke else 20_000)
    gebm = learned(data[: -len(data) // 10], seed, smoke)
    base = pg.GEBM(gebm.base, Flat())
    inside, outside = (images(name, root, False, num) for name in (arguments.train, other))
    validation = data[-3 if smoke else -8 :]
    totals = {w: statistics.mean(evidences(gebm, validation, w, True)[0]) for w in WIDTHS}
    width = max(totals, key=totals.__getitem__)
    scores = {}
    with torch.no_grad():
        scores["energy, -E(x)"] = [(-gebm.energy(x)).tolist() for x in (inside, outside)]
    for name, model in (("evidence, base", base), ("evidence, model", gebm)):
        both = [evidences(model, x, width, smoke) for x in (inside, outside)]
        scores[name] = [values for values, _ in both]
        print(f"{name}: median standard error {both[0][1]:.2f} and {both[1][1]:.2f} nats")
    print(f"trained on {arguments.train}, {num} images of each, width {width}, seed {seed}")
    print(f"| score | median {arguments.train} | median {other} | AUROC | 95 % |")
    print("|---|---|---|---|---|")
    for name, (a, b) in scores.items():
        low, high = interval(a, b)
        medians = f"{statistics.median(a):.1f} | {statistics.median(b):.1f}"
        print(f"| {name} | {medians} | {auroc(a, b):.3f} | {low:.3f} to {high:.3f} |")
    print(f"{time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
