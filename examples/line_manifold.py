# %% [markdown]
# # Data on a curve: support and weights
#
# What one learns: what an EBM, a GAN and a GEBM each get right of data on a one-dimensional
# manifold, as the slides of Arbel, Zhou and Gretton show it, and which part of the arrangement
# that hangs on. The curve is a graph over its first coordinate X₁ = τ(z), z ~ U(0, 1); all models
# know that. With a network G_θ(t) = (t, g(t)) and σ = 0.1:
#
# * EBM: E(X) = |G_θ(X₁) - X|²/2σ² + A_θ(X₁) on X₁ in [0, 1], by exact maximum likelihood
#   (∫exp(-E) is (2πσ²)^((d-1)/2) ∫exp(-A), one quadrature) and with exact draws: at its best;
# * GAN: X = G_θ(z), which has the right support and uniform weights at best;
# * GEBM: that base under an energy, by KALE, then a refit of the energy; draws by MCMC.
#
# Each takes 2,500 optimiser steps on batches of 128 at Adam's rate 1e-3. The critic of the GAN and
# the energy of the GEBM are once of the EBM's form and once an MLP (with a rate, momentum and
# penalty of its own); a generator that moves X₁ too, a σ that is learned, and what a flat curve
# would score stand beside them. Settings were chosen by these scores on other data, other seeds.
#
#     python examples/line_manifold.py --seeds 3 --out runs/line_manifold

# %%
import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader
from pyro_gebm.data.curves import Curve
from pyro_gebm.plots import style

SIGMA = 0.1
WAVES = 6
BATCH = 128
PANELS = ("EBM", "GAN", "GEBM")


class Budget(NamedTuple):
    """How much of everything."""

    data: int = 20_000
    rounds: int = 1000
    """Of an energy step and a base step, for the GEBM."""
    refit: int = 500
    samples: int = 10_000
    width: int = 64

    @property
    def steps(self) -> int:
        """Optimiser steps that every model takes."""
        return 2 * self.rounds + self.refit


SMOKE = Budget(data=500, rounds=20, refit=10, samples=300, width=16)

# %% [markdown]
# ## The networks
#
# Sines and cosines of X₁ beside it: a plain MLP learns four oscillations very slowly.


# %%
def mlp(inputs: int, outputs: int, width: int, depth: int = 2) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.SiLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def waves(t: Tensor) -> Tensor:
    """t and its sines and cosines, (B, 1) -> (B, 13)."""
    angles = math.pi * torch.arange(1, WAVES + 1) * t
    return torch.cat([2 * t - 1, angles.sin(), angles.cos()], 1)


class Graph(nn.Module):
    """G(t) = (t, g(t)), (B, 1) -> (B, d)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.net = mlp(2 * WAVES + 1, dim - 1, width)

    def forward(self, t: Tensor) -> Tensor:
        return torch.cat([t, self.net(waves(t))], 1)


class Free(nn.Module):
    """G(z) with a first coordinate of its own, z at the start."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.net = mlp(2 * WAVES + 1, dim, width)

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.net(waves(z))
        return torch.cat([x[:, :1] + z, x[:, 1:]], 1)


class GraphEnergy(nn.Module):
    """The slides' E(x) = |G(x₁) - x|²/2σ² + A(x₁)."""

    def __init__(self, dim: int, width: int, learn_sigma: bool = False) -> None:
        super().__init__()
        self.graph, self.along = Graph(dim, width), mlp(2 * WAVES + 1, 1, width)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(SIGMA)), requires_grad=learn_sigma)

    def weight(self, t: Tensor) -> Tensor:
        """A(t), (B, 1) -> (B,)."""
        return self.along(waves(t)).squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        off = (self.graph(x[:, :1]) - x).square().sum(1)
        return 0.5 * off * torch.exp(-2 * self.log_sigma) + self.weight(x[:, :1])


class MLPCritic(nn.Module):
    """An energy without the slides' form, which has the waves of x₁ as input too."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.net = mlp(2 * WAVES + dim, 1, width, depth=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([waves(x[:, :1]), x[:, 1:]], 1)).squeeze(1)


# %% [markdown]
# ## The three models


# %%
def draws_of_ebm(data: Tensor, budget: Budget, seed: int, *, learn_sigma: bool) -> Tensor:
    """Maximum likelihood, log Z by the midpoint rule."""
    dim = data.shape[1]
    energy = GraphEnergy(dim, budget.width, learn_sigma)
    adam = torch.optim.Adam([p for p in energy.parameters() if p.requires_grad], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, budget.steps)
    middles = ((torch.arange(256) + 0.5) / 256)[:, None]
    loader = loader_of(data, seed)
    for _ in range(budget.steps):
        log_z = (dim - 1) * energy.log_sigma + torch.logsumexp(-energy.weight(middles), 0)
        adam.zero_grad()
        (energy(next(loader)).mean() + log_z).backward()
        adam.step()
        schedule.step()
    return draw_ebm(energy, dim, budget.samples)


@torch.no_grad()
def draw_ebm(energy: GraphEnergy, dim: int, num: int, cells: int = 20_000) -> Tensor:
    """Exact but for the cells of X₁: the rest is N(g(X₁), σ² I)."""
    shares = torch.softmax(-energy.weight(((torch.arange(cells) + 0.5) / cells)[:, None]), 0)
    cell = torch.multinomial(shares, num, replacement=True)
    x = energy.graph(((cell + torch.rand(num)) / cells)[:, None])
    x[:, 1:] += energy.log_sigma.exp() * torch.randn(num, dim - 1)
    return x


def loader_of(data: Tensor, seed: int) -> BatchLoader:
    return BatchLoader(data, BATCH, generator=torch.Generator().manual_seed(seed))


def draws_of_rival(
    data: Tensor, budget: Budget, seed: int, *, how: tuple[str, type[nn.Module], type[nn.Module]]
) -> Tensor:
    """A GAN (a step of each per round) or a GEBM: objective, energy, generator."""
    objective, energy, generator = how
    dim, is_mlp, is_gan = data.shape[1], energy is MLPCritic, objective == "gan"
    base = pg.Base(generator(dim, budget.width), pg.UniformPrior(1))
    gebm = pg.GEBM(base, energy(dim, budget.width))
    penalty, lr = (1e-3, 2e-3) if is_mlp else (0.0, 1e-3)
    config = pg.TrainConfig(
        objective=objective,
        base_steps=budget.steps // 2 if is_gan else budget.rounds,
        energy_steps=1,
        num_latents=BATCH,
        refit_steps=0 if is_gan else budget.refit,
        energy_lr=lr,
        base_lr=lr,
        refit_lr=5e-4,
        momentum=0.9 if is_mlp else 0.5,
        gradient_penalty=penalty,
        gradient_penalty_end=penalty,
        refit_gradient_penalty=penalty,
        penalty_every=4,
        ema_decay=0.0,
        evaluate_every=0,
    )
    for _ in pg.Trainer(gebm, config).fit(loader_of(data, seed)):
        pass
    if is_gan:
        return gebm.eval().base.sample(budget.samples)
    return pg.generate(
        gebm,
        budget.samples,
        kernel="MALA",
        num_chains=min(500, budget.samples),
        warmup_steps=100,
        seed=seed,
        progress=False,
    )


MODELS: dict[str, Callable[[Tensor, Budget, int], Tensor]] = {
    "EBM": partial(draws_of_ebm, learn_sigma=False),
    "EBM, σ learned": partial(draws_of_ebm, learn_sigma=True),
    "GAN": partial(draws_of_rival, how=("gan", GraphEnergy, Graph)),
    "GEBM": partial(draws_of_rival, how=("kale", GraphEnergy, Graph)),
    "GAN, MLP critic": partial(draws_of_rival, how=("gan", MLPCritic, Graph)),
    "GEBM, MLP energy": partial(draws_of_rival, how=("kale", MLPCritic, Graph)),
    "GAN, free generator": partial(draws_of_rival, how=("gan", GraphEnergy, Free)),
    "GEBM, free generator": partial(draws_of_rival, how=("kale", GraphEnergy, Free)),
}
"""What every row of the table trains, to give samples (N, d)."""

# %% [markdown]
# ## Scores


# %%
def scores(curve: Curve, x: Tensor, bins: int = 20) -> dict[str, float]:
    """Distance off the curve; W1 and KL(P || Q) of X₁, the position along it.

    X₁ outside [0, 1] costs W1 its way, and is in an end bin for KL. Bins have equal mass under P.
    """
    distance, first = curve.project(x).distance, x[:, 0].double()
    inside = first.clamp(0, 1)
    middles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    shares = torch.searchsorted(inside.sort().values, middles) / len(x)
    w1 = (shares - curve.cdf(middles)).abs().mean() + (first - inside).abs().mean()
    counts = torch.histc(curve.cdf(inside), bins, 0, 1) + 0.5  # no empty bin
    kl = -(bins * counts / counts.sum()).log().mean()
    found = {"mean": distance.mean(), "p95": distance.quantile(0.95), "W1": w1, "KL": kl}
    return {name: float(value) for name, value in found.items()}


class Result(NamedTuple):
    scores: dict[str, dict[str, float]]
    samples: dict[str, Tensor]


def run(dim: int, names: list[str], budget: Budget, seed: int) -> Result:
    """Models on one set of data, beside fresh data and a flat curve."""
    curve, source = Curve(dim), torch.Generator().manual_seed(1000 + seed)
    data = curve.sample(budget.data, generator=source)
    flat = torch.zeros(budget.samples, dim)
    flat[:, 0] = torch.rand(budget.samples, generator=source)
    samples = {
        "fresh data": curve.sample(budget.samples, generator=source),
        "flat curve (z, 0)": flat,
    }
    found = {name: scores(curve, x) for name, x in samples.items()}
    for name in names:
        torch.manual_seed(10 + seed)
        start = time.process_time()
        samples[name] = MODELS[name](data, budget, seed)
        seconds = time.process_time() - start
        found[name] = scores(curve, samples[name]) | {"seconds": seconds}
        words = ", ".join(f"{key} {value:.4f}" for key, value in found[name].items())
        print(f"R^{dim}, seed {seed}: {name}: {words}", flush=True)
    return Result(found, samples)


# %%
def table(dim: int, found: list[dict[str, dict[str, float]]]) -> str:
    """Means over seeds, ± the standard deviation between seeds."""
    lines = [
        f"| R^{dim} | off the curve | 95 % quantile | W1 along it | KL along it, nats | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for name in found[0]:
        columns = [[run[name].get(key) for run in found] for key in ("mean", "p95", "W1", "KL")]
        seconds = [run[name].get("seconds") for run in found]
        cells = [spread(values) for values in columns]
        cells.append("-" if seconds[0] is None else f"{statistics.mean(seconds):.0f}")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def draw(samples: dict[str, Tensor], path: Path, num: int = 1500) -> None:
    """The slides' three panels, and below each the law of the position."""
    figure, curve = style.new_figure(10, 5), Curve(2)
    axes = figure.subplots(2, len(PANELS), sharex=True, sharey="row", height_ratios=(2, 1))
    line = torch.linspace(0, 1, 1000)
    for place, name in enumerate(PANELS):
        x, (top, bottom) = samples[name], axes[:, place]
        top.plot(line, curve.points(line)[:, 1], color=style.INK, lw=0.6, label="the data's curve")
        top.plot(*x[:num].T, ".", ms=2, alpha=0.4, color=style.COLOURS[place], label="samples")
        top.set_title(name)
        bottom.hist(x[:, 0], 40, range=(0, 1), density=True, color=style.COLOURS[place], alpha=0.5)
        bottom.plot(line, curve.log_prob(line).exp(), color=style.INK, lw=1)
        bottom.set_xlabel("X₁")
    axes[0, 0].set_ylabel("X₂")
    axes[1, 0].set_ylabel("density of X₁")
    style.open_axes(axes.flat)
    style.write(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="EBM, GAN and GEBM of data on a curve.")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for tables, picture and all scores")
    parser.add_argument("--smoke", action="store_true", help="one seed and a tiny budget")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    budget, seeds = (SMOKE, 1) if arguments.smoke else (Budget(), arguments.seeds)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    for dim in arguments.dims:
        results = []
        for seed in range(seeds):
            result = run(dim, arguments.models, budget, seed)
            results.append(result.scores)
            if arguments.out is not None:  # as it goes: a long run may be cut short
                (arguments.out / f"scores_{dim}.json").write_text(json.dumps(results, indent=1))
                (arguments.out / f"table_{dim}.md").write_text(table(dim, results) + "\n")
                if dim == 2 and seed == 0 and set(PANELS) <= set(arguments.models):
                    draw(result.samples, arguments.out / "line_manifold.png")
        print(table(dim, results) + "\n")


if __name__ == "__main__":
    main()
