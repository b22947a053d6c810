# %% [markdown]
# # One batch's log Z, or a learned c?
#
# What one learns: the naive estimate of Z from one batch errs more and more as the energy
# sharpens, while the amortised c, which remembers earlier batches, stays close. Trains on a toy,
# compares both with the log Z of a large sample as training goes on, prints a table in Markdown
# and draws the curves.
#
#     python examples/log_partition.py --out runs/log_partition

# %%
import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyro_gebm as pg
from pyro_gebm.cli.models import build_model
from pyro_gebm.cli.problems import load_problem
from pyro_gebm.data import BatchLoader


def relative_errors(infos, every: int) -> dict[str, list[float]]:
    """|Z' / Z - 1| of both estimates where Z was measured, and what the energy has learned."""
    found: dict[str, list[float]] = {"step": [], "batch": [], "c": [], "ess": []}
    done = 0
    for info in infos:
        done += 1
        if done % every or info.held_out is None:
            continue
        log_z = info.held_out.log_z
        found["step"].append(done)
        found["batch"].append(abs(np.expm1(float(info.batch_log_z) - log_z)))
        found["c"].append(abs(np.expm1(float(info.log_partition) - log_z)))
        found["ess"].append(info.held_out.importance_ess)
    return found


def table(found: dict[str, list[float]], parts: int) -> str:
    """Medians over consecutive parts of the training."""
    lines = ["| steps | batch | c | ESS |", "|---|---|---|---|"]
    for chunk in np.array_split(np.arange(len(found["step"])), parts):
        middle = {name: statistics.median(found[name][i] for i in chunk) for name in found}
        steps = f"{found['step'][chunk[0]]} to {found['step'][chunk[-1]]}"
        cells = [f"{middle['batch']:.3f}", f"{middle['c']:.3f}", f"{middle['ess']:.2f}"]
        lines.append("| " + " | ".join([steps, *cells]) + " |")
    return "\n".join(lines)


def draw(found: dict[str, list[float]], refit_from: int, path: Path) -> None:
    """Both errors over the steps."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.semilogy(found["step"], found["batch"], ".", ms=3, color="tab:orange", label="one batch")
    axes.semilogy(found["step"], found["c"], ".", ms=3, color="tab:blue", label="learned c")
    axes.axvline(refit_from, color="0.7", lw=1)
    axes.text(refit_from, axes.get_ylim()[1], " refit", va="top", color="0.4")
    axes.set(xlabel="step", ylabel="relative error of Z", title="Estimates of Z during training")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--out", type=Path, default=Path("runs/log_partition"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="a toy-sized training")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    problem = load_problem(arguments.data, arguments.seed)
    config = replace(problem.training, evaluate_every=arguments.every, evaluation_samples=16384)
    if arguments.smoke:
        config = replace(config, base_steps=40, refit_steps=40, evaluation_samples=512)
    loader = BatchLoader(
        problem.train, 128, generator=torch.Generator().manual_seed(arguments.seed + 1)
    )
    trainer = pg.Trainer(build_model(problem), config, held_out=problem.held_out)
    found = relative_errors(trainer.fit(loader), arguments.every)
    print(table(found, parts=8))
    draw(found, config.base_steps, arguments.out / "log_partition.png")


if __name__ == "__main__":
    main()
