# %% [markdown]
# # A sphere-like surface: are the parameters learned back?
#
# What one learns: when base and energy are of known families, which of their parameters KALE
# recovers, how well, and which energy the base has to be trained against for that. The model is
# the toy of the authors' code (Arbel, Zhou and Gretton, ICLR 2021): with s = z/|z|, z ~ N(0, I₃),
#
#     x = |s + U s⁴|² s (powers entry by entry),  E(x) = Σ_k u_k leaky(w_k·x),  slope 0.1,
#
# with the truth U = I, w_k the rows of 1.1 I - 1 1ᵀ over their spectral norm, u_k = 1/√3. At that
# scale E varies by 0.9 nats over the surface; `--strength` multiplies it. Data are exact, by
# rejection. Identified are U (the surface has one radius |s + U s⁴|² per direction, whose odd part
# 2 s·U s⁴ gives all nine entries), and of the energy the products v_k = u_k w_k (the scale moves
# between w_k and u_k > 0), up to their order and to a constant that c takes.
#
# Two ways: the energy of the known family throughout, as in the authors' code; or an MLP while
# the base is trained, then the known family on the frozen base. Beside them the known family on
# the true base, which shows what the energy's own problem leaves, and the floor of v: its standard
# error by maximum likelihood there, from the Fisher information. The known energy has local optima:
# of a few short refits from random weights, the one with the best bound goes on. The rates and
# the penalty were chosen on other data.
#
#     python examples/surface.py --seeds 3 --strength 5

# %%
import argparse
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader
from pyro_gebm.nets import MLPEnergy
from pyro_gebm.objectives import donsker_varadhan
from pyro_gebm.plots import style

WAYS = ("known energy throughout", "MLP, then known energy", "known energy on the true base")
BATCH = 250


class Budget(NamedTuple):
    """How much of everything."""

    data: int = 5000
    rounds: int = 1200
    refit: int = 1000
    starts: int = 4
    """Short refits, of which the best goes on."""
    judged: int = 100_000
    width: int = 64


SMOKE = Budget(data=500, rounds=20, refit=20, starts=2, judged=5000, width=16)


class Surface(nn.Module):
    """z (B, 3) -> |s + U s⁴|² s, s = z/|z|; a sphere at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.zeros(3, 3))

    def forward(self, z: Tensor) -> Tensor:
        s = F.normalize(z, dim=1)
        return (s + s.pow(4) @ self.U.T).square().sum(1, keepdim=True) * s


class KnownEnergy(nn.Module):
    """E(x) = Σ u_k leaky(w_k·x), (B, 3) -> (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.5 * torch.randn(3, 3))
        self.u = nn.Parameter(torch.ones(3))

    @property
    def products(self) -> Tensor:
        """v_k = u_k w_k, (3, 3); what is identified where every u_k > 0."""
        return (self.u[:, None] * self.w).detach()

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x @ self.w.T, 0.1) @ self.u


def truth(strength: float) -> pg.GEBM:
    surface, energy = Surface(), KnownEnergy()
    mixing = 1.1 * torch.eye(3) - 1
    with torch.no_grad():
        surface.U.copy_(torch.eye(3))
        energy.w.copy_(mixing / torch.linalg.matrix_norm(mixing, ord=2))
        energy.u.fill_(strength / math.sqrt(3))
    return pg.GEBM(pg.Base(surface, pg.StandardNormal(3)), energy)


@torch.no_grad()
def draw(gebm: pg.GEBM, num: int) -> Tensor:
    """Exact draws: a draw of the base is kept with probability exp(lowest - E)."""
    lowest = float(gebm.evaluate_energy(gebm.base.sample(400_000)).min()) - 0.01
    kept: list[Tensor] = []
    while sum(map(len, kept)) < num:
        x = gebm.base.sample(10_000)
        kept.append(x[torch.rand(len(x)).log() < lowest - gebm.evaluate_energy(x)])
    return torch.cat(kept)[:num]


# %%
def learn(way: str, x: Tensor, true: pg.GEBM, budget: Budget, seed: int) -> pg.GEBM:
    """Base and energy from data (N, 3), from a sphere and random weights."""
    loader = BatchLoader(x, BATCH, generator=torch.Generator().manual_seed(seed))
    if way == WAYS[2]:
        return fit_known(true.base, x, loader, budget)
    base = pg.Base(Surface(), pg.StandardNormal(3))
    if way == WAYS[0]:
        gebm = alternate(pg.GEBM(base, KnownEnergy()), loader, 0.0, budget)
        return refit(gebm, loader, budget.refit)
    alternate(pg.GEBM(base, MLPEnergy((3,), (budget.width,) * 2)), loader, 1e-3, budget)
    return fit_known(base, x, loader, budget)


def fit_known(base: pg.Base, x: Tensor, loader: BatchLoader, budget: Budget) -> pg.GEBM:
    """The known energy on a frozen base, by the bound on its training data alone."""
    with torch.no_grad():
        proposals = base.sample(20_000)

    def bound(gebm: pg.GEBM) -> float:
        return float(donsker_varadhan(gebm.energy(x), gebm.energy(proposals)).detach())

    short = budget.refit // 5
    tries = [refit(pg.GEBM(base, KnownEnergy()), loader, short) for _ in range(budget.starts)]
    return refit(max(tries, key=bound), loader, budget.refit)


def alternate(gebm: pg.GEBM, loader: BatchLoader, penalty: float, budget: Budget) -> pg.GEBM:
    config = pg.TrainConfig(
        base_steps=budget.rounds,
        energy_steps=1,
        refit_steps=0,
        num_latents=BATCH,
        energy_lr=2e-3,
        base_lr=1e-2,
        log_partition_lr=1e-2,
        gradient_penalty=penalty,
        gradient_penalty_end=penalty,
        penalty_every=4,
        ema_decay=0.0,
        evaluate_every=0,
    )
    for _ in pg.Trainer(gebm, config).fit(loader):
        pass
    return gebm


def refit(gebm: pg.GEBM, loader: BatchLoader, steps: int) -> pg.GEBM:
    config = pg.TrainConfig(
        refit_steps=steps,
        refit_lr=1e-2,
        refit_gradient_penalty=0.0,
        log_partition_lr=1e-2,
        latents_per_datum=4,
        evaluate_every=0,
    )
    for _ in pg.Trainer(gebm, config).refit_energy(loader):
        pass
    return gebm.eval()


class Errors(NamedTuple):
    """Root mean squares against the truth."""

    base: float
    """Of the nine entries of U."""
    products: float
    """Of the nine entries of v, in their best order."""
    energy: float
    """Of E over the true base, up to a constant, nats."""
    constant: float
    """c - log Z of the learned model, nats."""


@torch.no_grad()
def errors(gebm: pg.GEBM, true: pg.GEBM, budget: Budget) -> Errors:
    x = true.base.sample(budget.judged)
    v, v_true = gebm.energy.products, true.energy.products
    products = min(rms(v[list(order)] - v_true) for order in itertools.permutations(range(3)))
    difference = gebm.evaluate_energy(x) - true.evaluate_energy(x)
    energy = gebm.evaluate_energy(gebm.base.sample(budget.judged))
    log_z = torch.logsumexp(-energy, 0) - math.log(budget.judged)
    base = rms(gebm.base.generator.U - true.base.generator.U)
    constant = float(gebm.log_partition - log_z)
    return Errors(base, products, rms(difference - difference.mean()), constant)


def rms(values: Tensor) -> float:
    return float(values.detach().square().mean().sqrt())


@torch.no_grad()
def floor(true: pg.GEBM, budget: Budget) -> float:
    """Root mean square of the standard errors of v: (I⁻¹/N), I = Cov_Q(∂E/∂v)."""
    x = true.base.sample(budget.judged)
    q = (-true.evaluate_energy(x)).softmax(0)
    slopes = torch.where(x @ true.energy.w.T > 0, 1.0, 0.1)
    score = (slopes[:, :, None] * x[:, None, :]).flatten(1)
    centred = score - q @ score
    information = (centred.T @ (q[:, None] * centred)).double()
    return float((torch.linalg.inv(information).diagonal() / budget.data).mean().sqrt())


# %%
def row(name: str, found: list[Errors]) -> str:
    columns = zip(*found, strict=True)
    cells = [", ".join(f"{value:.3f}" for value in column) for column in columns]
    return "| " + " | ".join([name, *cells]) + " |"


@torch.no_grad()
def picture(true: pg.GEBM, learned: pg.GEBM, path: Path, num: int = 6000) -> None:
    """Both surfaces, dark where the energy raises the base's density."""
    figure = style.new_figure(9, 4.2)
    z = true.base.latent_prior.sample(num)
    for place, (title, gebm) in enumerate({"truth": true, "learned": learned}.items(), 1):
        axis = figure.add_subplot(1, 2, place, projection="3d")
        x, energy = gebm(z)
        ratio = (-energy).softmax(0) * num
        dots = axis.scatter(*x.T, c=ratio, s=2, cmap="viridis_r", vmin=0, vmax=3)
        axis.set_title(title)
        axis.view_init(elev=25, azim=40)
    figure.colorbar(dots, ax=figure.axes, shrink=0.7, label="dQ/dB")
    style.write(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Parameters of a toy surface, learned back.")
    parser.add_argument("--strength", type=float, default=5.0, help="factor of the energy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="one seed and a tiny budget")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    budget, seeds = (SMOKE, 1) if arguments.smoke else (Budget(), arguments.seeds)
    true = truth(arguments.strength)
    found: dict[str, list[Errors]] = {way: [] for way in ("start", *WAYS)}
    kept = true
    for seed in range(seeds):
        torch.manual_seed(100 + seed)
        x = draw(true, budget.data)
        start = pg.GEBM(pg.Base(Surface(), pg.StandardNormal(3)), KnownEnergy())
        found["start"].append(errors(start, true, budget))
        for way in WAYS:
            torch.manual_seed(seed)
            learned = learn(way, x, true, budget, seed)
            found[way].append(errors(learned, true, budget))
            kept = learned if way == WAYS[1] else kept
            print(f"seed {seed}, {way}: {found[way][-1]}", flush=True)
    print(f"floor of v: {floor(true, budget):.3f}; entries of v: {rms(true.energy.products):.3f}")
    print("| rms error, a value per seed | U | v | E, nats | c - log Z |\n|---|---|---|---|---|")
    for name, rows in found.items():
        print(row(name, rows))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        picture(true, kept, arguments.out / "surface.png")


if __name__ == "__main__":
    main()
