# %% [markdown]
# # Which way to train
#
# What one learns: how ways of training compare at an equal budget of gradient evaluations, on
# the same networks and data. Trains every way once per seed and prints docs/training.md's table
# in Markdown: distance of the base alone and of the model (base samples resampled by their
# weights) to fresh data, medians over seeds, and in how many seeds the model beats its base.
#
#     python examples/training_choices.py --data gaussians25 --out runs/choices

# %%
import argparse
import json
import statistics
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import pyro_gebm as pg
from pyro_gebm.cli.judges import build_judge, occupancy
from pyro_gebm.cli.models import build_model
from pyro_gebm.cli.problems import load_problem
from pyro_gebm.data import BatchLoader
from pyro_gebm.metrics import occupancy_distance, sliced_wasserstein
from pyro_gebm.training import ChainsConfig, ReplayConfig

BATCH_SIZE = 128

WAYS = {
    "alternating": {},
    "alternating, amortized weights": {"base_loss": "amortized"},
    "alternating, log Z of the batch": {"objective": "donsker_varadhan"},
    "joint (one stage)": {"update": "joint"},
    "base from 5 MALA steps": {"chains": ChainsConfig(steps=5, use_for="base")},
    "energy from 5 MALA steps": {"chains": ChainsConfig(steps=5, use_for="energy")},
    "both from persistent MALA": {"chains": ChainsConfig(steps=5, use_for="both", persistent=True)},
    "GAN, R1": {"objective": "gan", "penalty_points": "data"},
    "WGAN-GP": {"objective": "wgan", "gradient_penalty": 10.0, "gradient_penalty_end": 10.0},
    "EBM in data space": {
        "objective": "contrastive",
        "mode": "energy",
        "replay": ReplayConfig(step_size=0.005, noise=0.1),
    },
}


def at_budget(config: pg.TrainConfig, problem, budget: float) -> pg.TrainConfig:
    """The same way with as many rounds as the budget pays, seen from a few."""
    few = replace(config, base_steps=4, refit_steps=0)
    trainer = pg.Trainer(build_model(problem), few)
    for info in trainer.fit(loader_of(problem, 0)):
        spent = info.gradients
    return replace(config, base_steps=max(1, round(4 * budget / spent)))


def loader_of(problem, seed: int) -> BatchLoader:
    return BatchLoader(problem.train, BATCH_SIZE, generator=torch.Generator().manual_seed(seed + 1))


def resampled(gebm: pg.GEBM, num: int, pool: int = 100_000) -> tuple[torch.Tensor, float]:
    """Base samples drawn by their weights, with the share of effective ones."""
    with torch.no_grad():
        x = gebm.base.sample(pool)
        weights = gebm.log_density_ratio(x).softmax(0)
    chosen = torch.multinomial(weights, num, replacement=True)
    return x[chosen], float(1 / weights.square().sum() / pool)


def samples_of_ebm(
    gebm: pg.GEBM, shape: torch.Size, num: int, seed: int, warmup: int
) -> torch.Tensor:
    """Draws of exp(-E) in data space, from noise."""
    start = torch.randn(256, shape.numel(), generator=torch.Generator().manual_seed(seed))
    with warnings.catch_warnings(), gebm.frozen():
        warnings.simplefilter("ignore")
        idata = pg.sample(
            lambda x: gebm.evaluate_energy(x.reshape(-1, *shape)),
            initial_params=start,
            kernel="HMC",
            num_samples=-(-num // 256),
            warmup_steps=warmup,
            num_chains=256,
            seed=seed,
            progress=False,
        )
    draws = torch.as_tensor(idata["posterior"]["z"].values).flatten(0, 1)
    return draws[torch.randperm(len(draws))[:num]].reshape(num, *shape).float()


def scores(problem, judge, x: torch.Tensor) -> dict[str, float]:
    found = {judge.score_name: judge.scorer.score(x)}
    fresh = problem.test[torch.randint(len(problem.test), (len(x),))]
    directions = torch.Generator().manual_seed(0)
    found["sliced Wasserstein"] = sliced_wasserstein(x, fresh, generator=directions)
    seen = occupancy(judge, [x])
    if seen is not None:
        found["occupancy error"] = occupancy_distance(seen, torch.full_like(seen, 1 / len(seen)))
        found["modes"] = int((seen > 0.2 / len(seen)).sum())
    return found


def run(name: str, problem, judge, budget: float, seed: int, num: int) -> dict:
    """Train one way and score its base and its model."""
    torch.manual_seed(seed)
    config = at_budget(replace(problem.training, **WAYS[name]), problem, budget)
    if config.objective != "kale":
        # The refit is the same for all that have a base: KALE on what was found.
        config = replace(config, refit_steps=0)
    torch.manual_seed(seed)
    gebm, loader, started = build_model(problem), loader_of(problem, seed), time.perf_counter()
    try:
        for _ in pg.Trainer(gebm, config).fit(loader):
            pass
        own = gebm.eval()
        result = {"base": scores(problem, judge, own.base.sample(num))}
        if config.objective == "contrastive":
            x = samples_of_ebm(own, problem.train.shape[1:], num, seed, warmup=min(100, num // 8))
            result |= {"model": scores(problem, judge, x), "base": None, "ess": None}
        else:
            if config.objective != "kale":
                refit = replace(problem.training, base_steps=0)
                for _ in pg.Trainer(gebm, refit).fit(loader):
                    pass
            x, ess = resampled(gebm.eval(), num)
            result |= {"model": scores(problem, judge, x), "ess": ess}
    except pg.TrainingError as error:
        result = {"failed": str(error)}
    seconds = time.perf_counter() - started
    return {"way": name, "seed": seed, "rounds": config.base_steps, "seconds": seconds, **result}


# %%
def row(name: str, results: list[dict], metric: str) -> str:
    """Medians over the seeds, and the range of the model's."""
    done = [r for r in results if "failed" not in r]
    if not done:
        return f"| {name} | diverged in {len(results)} of {len(results)} | | | | |"
    model = [r["model"][metric] for r in done]
    spread = f"{statistics.median(model):.3g} ({min(model):.3g} to {max(model):.3g})"
    bases = [r["base"][metric] for r in done if r["base"]]
    base = f"{statistics.median(bases):.3g}" if bases else "-"
    wins = sum(r["model"][metric] < r["base"][metric] for r in done if r["base"])
    esses = [r["ess"] for r in done if r["ess"] is not None]
    ess = f"{statistics.median(esses):.2f}" if esses else "-"
    cells = [name, str(done[0]["rounds"]), base, spread, f"{wins}/{len(results)}" if bases else "-"]
    return "| " + " | ".join([*cells, ess]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="gaussians25")
    parser.add_argument("--out", type=Path, default=Path("runs/choices"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--budget", type=float, default=4e6, help="gradients before the refit")
    parser.add_argument("--num-samples", type=int, default=4000)
    parser.add_argument("--smoke", action="store_true", help="one seed, a toy-sized budget")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seeds, arguments.budget, arguments.num_samples = [0], 2e4, 256
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results: dict[str, list[dict]] = {name: [] for name in arguments.ways}
    for seed in arguments.seeds:
        problem = load_problem(arguments.data, seed)
        if arguments.smoke:
            problem = problem._replace(training=replace(problem.training, refit_steps=5))
        judge = build_judge(problem, progress=False)
        for name in arguments.ways:
            file = arguments.out / f"{name.replace(' ', '-')}-{seed}.json"
            if not file.exists():
                found = run(name, problem, judge, arguments.budget, seed, arguments.num_samples)
                file.write_text(json.dumps(found))
            results[name].append(json.loads(file.read_text()))
    for metric in (judge.score_name, "sliced Wasserstein", "occupancy error"):
        print(f"\n{metric}\n")
        print("| way | rounds | base | model: median (range) | model < base | ESS |")
        print("|---|---|---|---|---|---|")
        for name in arguments.ways:
            print(row(name, results[name], metric))


if __name__ == "__main__":
    main()
