# %% [markdown]
# # Images on a CPU: what the energy adds to a small GAN-like base
#
# What one learns: how a preset trains a small ConvNet on MNIST or Fashion-MNIST, what the refitted
# energy is worth, and which sampler brings it out. Fréchet distances are taken in the features of
# a ConvNet classifier trained on the spot (this is not FID), relative to the base, with
# precision, recall, density, coverage and the occupancy of the ten classes beside them, so that a
# gain bought with diversity shows; importance resampling of the base says what an exact sampler
# would reach. With --stacked, three digits as the channels of one image: 1,000 modes.
#
#     python examples/images.py --preset mnist-cpu --data-root data --seeds 0 1 2

# %%
import argparse
import json
import math
import os
import platform
import statistics
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _images import (
    CLASSES,
    Scores,
    modes,
    picture,
    push,
    resampled,
    stacked,
    stacked_preset,
)
from torch import Tensor

import pyro_gebm as pg
from pyro_gebm.data.image_files import ImageSet
from pyro_gebm.data.image_sets import load_image_set
from pyro_gebm.data.images import ImageLoader, scale_pixels
from pyro_gebm.inference_data import worst_rhat
from pyro_gebm.metrics import Classifier, train_classifier
from pyro_gebm.presets import PRESETS, Preset, load_preset

KERNELS = {
    "Langevin": ("Langevin", None),
    "HMC": ("HMC", None),
    "NUTS": ("NUTS", None),
    "HMC, global moves": ("HMC", "auto"),
    "NUTS, global moves": ("NUTS", "auto"),
}


@dataclass(frozen=True)
class Budget:
    """How much of everything."""

    classifier_steps: int = 1000
    chains: int = 128
    draws: int = 20
    warmup: int = 40
    langevin_factor: int = 5  # Langevin takes one gradient a transition, HMC and NUTS several
    pool: int = 20_000
    betas: tuple[float, ...] = (0.5, 2.0, 4.0)
    stacked: int = 26_000
    stacked_chains: int = 260

    @property
    def samples(self) -> int:
        return self.chains * self.draws


SMOKE = Budget(
    classifier_steps=20, chains=16, draws=8, warmup=10, langevin_factor=1, pool=256, betas=(2.0,),
    stacked=64, stacked_chains=8,
)  # fmt: skip


# %% [markdown]
# ## Training and scores


# %%
def train(preset: Preset, images: ImageSet, seed: int, folder: Path) -> tuple[pg.GEBM, dict]:
    """The preset's model, trained on all but its last images, and how long that took."""
    file = folder / f"{preset.name}-{seed}.pt"
    told = file.with_suffix(".training.json")
    if told.exists():
        return pg.load(file), json.loads(told.read_text())
    torch.manual_seed(seed)
    kept = len(images.pixels) - preset.held_out
    loader = ImageLoader(
        images.pixels[:kept],
        preset.batch_size,
        generator=torch.Generator().manual_seed(seed + 1),
        flip=preset.flip,
    )
    held_out = scale_pixels(images.pixels[kept:])
    gebm = preset.build()
    wall, cpu = time.perf_counter(), time.process_time()
    log = []
    for info in pg.Trainer(gebm, preset.training, held_out=held_out).fit(loader):
        if info.held_out is not None:
            log.append({"phase": info.phase, "step": info.step, **info.held_out._asdict()})
            print(
                f"  {info.phase} {info.step}: held-out bound {info.held_out.bound:.2f}", flush=True
            )
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "log": log}
    pg.save(gebm.eval(), file)
    told.write_text(json.dumps(spent))
    return gebm, spent


def kernel_draws(gebm: pg.GEBM, name: str, beta: float, seed: int, budget: Budget) -> dict:
    """Draws of a kernel, as images, and what its diagnostics say."""
    kernel, moves = KERNELS[name]
    factor = budget.langevin_factor if kernel == "Langevin" else 1
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # R-hat and ESS are in the table
        idata = pg.sample(
            gebm, kernel=kernel, global_moves=moves, beta=beta, seed=seed, progress=False,
            num_chains=budget.chains, num_samples=budget.draws, warmup_steps=budget.warmup * factor,
            thinning=factor,
        )  # fmt: skip
    z = torch.as_tensor(idata["posterior"]["z"].values)
    stats = idata["sample_stats"]
    gradients = float(stats["n_steps"].sum("draw").mean()) if "n_steps" in stats else budget.draws
    return {
        "x": push(gebm, z.flatten(0, 1).float()),
        "rhat": float(worst_rhat(idata)),
        "gradients": gradients,
        "cpu_s": time.process_time() - started,
    }


def evaluate(gebm: pg.GEBM, scores: Scores, seed: int, budget: Budget, keep) -> dict:
    """All rows of one model; ``keep`` is told after each of them."""
    torch.manual_seed(1000 + seed)
    sets = [push(gebm, gebm.base.latent_prior.sample(budget.samples)) for _ in range(3)]
    rows = {"base": scores(sets[0])}
    base = statistics.mean([rows["base"]["frechet"], *map(scores.scorer.score, sets[1:])])
    rows["base"] |= {"ratio": 1.0, "frechet": base}

    def add(name: str, x: Tensor, **more: float) -> None:
        rows[name] = {**scores(x), **more}
        rows[name]["ratio"] = rows[name]["frechet"] / base
        keep(rows)

    x, ess = resampled(gebm, budget.samples, budget.pool)
    add("resampled", x, importance_ess=ess)
    for name in KERNELS:
        add(name, **kernel_draws(gebm, name, 1.0, seed, budget))
    for beta in budget.betas:
        name = "HMC, global moves"
        add(f"{name}, β = {beta:g}", **kernel_draws(gebm, name, beta, seed, budget))
    return rows


# %% [markdown]
# ## Stacked MNIST: 1,000 modes


# %%
def run_stacked(
    preset: Preset, judge: Classifier, images: ImageSet, seed: int, run: argparse.Namespace
):
    budget = run.budget
    preset = stacked_preset(preset)
    gebm, spent = train(preset, stacked(images, seed), seed, run.out)
    torch.manual_seed(1000 + seed)
    base = push(gebm, gebm.base.latent_prior.sample(budget.stacked))
    # An energy that tells three digits from data leaves next to no base sample its weight: no
    # resampling here. So many chains and draws that 1,000 modes can be counted.
    draws = budget.stacked // budget.stacked_chains
    many = replace(budget, chains=budget.stacked_chains, draws=draws)
    drawn = kernel_draws(gebm, "HMC", 1.0, seed, many)
    sets = {"base": base, "HMC": drawn.pop("x")}
    found = {"base": modes(judge, base), "HMC": {**modes(judge, sets["HMC"]), **drawn}}
    (run.out / f"{preset.name}-{seed}.json").write_text(json.dumps({"train": spent, **found}))
    picture(
        {k: x[torch.randperm(len(x))] for k, x in sets.items()},
        run.out / f"{preset.name}-{seed}.png",
    )
    print(f"| seed {seed} | modes of 1,000 | KL, nats | R-hat |\n|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['modes']} | {row['kl']:.3f} | {row.get('rhat', math.nan):.2f} |")


# %% [markdown]
# ## Pictures and tables


# %%
def table(runs: list[dict]) -> None:
    """Medians over the seeds; of the ratio the range too."""
    names = [name for name in runs[0]["rows"] if all(name in run["rows"] for run in runs)]
    columns = ("frechet", "precision", "recall", "density", "coverage", "occupancy_error")
    print("| samples | ratio to base (range) | " + " | ".join(columns) + " | R-hat | CPU s |")
    print("|---|---|" + "---|" * (len(columns) + 2))
    for name in names:
        rows = [run["rows"][name] for run in runs]
        ratios = [row["ratio"] for row in rows]
        told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        figures = [f"{statistics.median([row[c] for row in rows]):.3g}" for c in columns]
        for extra in ("rhat", "cpu_s"):
            values = [row[extra] for row in rows if extra in row]
            figures.append(f"{statistics.median(values):.3g}" if values else "-")
        print("| " + " | ".join([name, told, *figures]) + " |")


def run_seed(
    preset: Preset, images: ImageSet, test: ImageSet, scores: Scores, seed: int, run
) -> dict:
    """Train, evaluate and draw one seed; what is done is on disk, and is not done again."""
    file = run.out / f"{preset.name}-{seed}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    if found.get("whole"):
        return found
    gebm, spent = train(preset, images, seed, run.out)
    found = {
        "preset": preset.to_dict(),
        "seed": seed,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "classifier_accuracy": scores.accuracy,
        "floor": scores.floor._asdict(),
        "train": spent,
    }

    def keep(rows: dict) -> None:
        file.write_text(json.dumps({**found, "rows": rows}, indent=1))

    keep({})
    rows = evaluate(gebm, scores, seed, run.budget, keep)
    found = {**found, "rows": rows, "whole": True}
    file.write_text(json.dumps(found, indent=1))
    draws = kernel_draws(gebm, "HMC, global moves", 1.0, seed, run.budget)["x"]
    shuffled = draws[torch.randperm(len(draws))]
    real = scale_pixels(test.pixels[:64])
    sets = {"test images": real, "base": gebm.base.sample(64), "HMC, global moves": shuffled}
    picture(sets, run.out / f"{preset.name}-{seed}.png")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="mnist-cpu")
    parser.add_argument("--data-root", default=os.environ.get("PYRO_GEBM_DATA", "data"))
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--validate", action="store_true", help="score on held-out training images, for tuning"
    )
    parser.add_argument("--stacked", action="store_true", help="three digits as channels")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything")
    run = parser.parse_args()
    torch.set_num_threads(1)
    run.out.mkdir(parents=True, exist_ok=True)
    preset, run.budget = load_preset(run.preset), SMOKE if run.smoke else Budget()
    if run.smoke:
        few = replace(preset.training, base_steps=4, refit_steps=4, evaluation_samples=64)
        preset = replace(preset, training=few)
    images, test = (
        load_image_set(preset.data, run.data_root, train=part, download=run.download)
        for part in (True, False)
    )
    kept = len(images.pixels) - preset.held_out
    known = ImageSet(images.pixels[:kept], images.labels[:kept])
    if run.validate:
        test = ImageSet(images.pixels[kept:], images.labels[kept:])
    judge = train_classifier(
        known.pixels, known.labels, num_classes=CLASSES, steps=run.budget.classifier_steps
    )
    if run.stacked:
        for seed in run.seeds:
            run_stacked(preset, judge, images, seed, run)
        return
    scores = Scores(judge, test, run.budget.samples)
    print(
        f"{preset.name}: classifier's test accuracy {scores.accuracy:.4f}; floor of the Fréchet "
        f"distance (halves of the test images) {scores.floor.mean:.2f} ± {scores.floor.sd:.2f}",
        flush=True,
    )
    table([run_seed(preset, images, test, scores, seed, run) for seed in run.seeds])


if __name__ == "__main__":
    main()
