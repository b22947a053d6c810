# %% [markdown]
# # Improving a GAN that was trained elsewhere
#
# What one learns: what a trained GAN's discriminator is worth, once it is calibrated, and what an
# energy of one's own is worth if the discriminator is lost. A small GAN learns 25 Gaussians by a
# plain non-saturating loss with R1; then every method gets as many evaluations of E(G(z)) per
# sample, with a gradient or without.
#
#     python examples/improve_a_gan.py --seeds 0 1 2

# %%
import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader, sample_toy, toy_mode_std, toy_modes
from pyro_gebm.gan import (
    calibrate,
    ddls,
    discriminator_gradient_flow,
    discriminator_transport,
    from_gan,
    mh_gan,
    rejection_sampling,
)
from pyro_gebm.metrics import energy_distance, importance_log_z, mode_share
from pyro_gebm.nets import MLPEnergy

LATENT_DIM = 8


class Size(NamedTuple):
    """How much of everything."""

    gan_steps: int = 2000
    refit_steps: int = 1000
    budget: int = 100
    num_samples: int = 1000
    width: int = 64


# %% [markdown]
# ## The part that is not ours: a plain GAN


# %%
def mlp(inputs: int, outputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, outputs),
    )


def train_gan(loader: Iterator[Tensor], steps: int, width: int, r1: float = 0.05) -> nn.ModuleList:
    """Generator and discriminator after so many steps of each (Mescheder et al., 2018)."""
    generator, discriminator = mlp(LATENT_DIM, 2, width), mlp(2, 1, width)
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.5, 0.99))
        for net in (generator, discriminator)
    )
    for _ in range(steps):
        real = next(loader).requires_grad_(True)
        fake = generator(torch.randn(len(real), LATENT_DIM))
        d_real, d_fake = discriminator(real), discriminator(fake.detach())
        (slope,) = torch.autograd.grad(d_real.sum(), real, create_graph=True)
        loss = F.softplus(-d_real).mean() + F.softplus(d_fake).mean()
        adam_d.zero_grad()
        (loss + r1 / 2 * slope.square().sum(1).mean()).backward()
        adam_d.step()
        adam_g.zero_grad()
        F.softplus(-discriminator(fake)).mean().backward()
        adam_g.step()
    return nn.ModuleList([generator, discriminator])


# %% [markdown]
# ## The part that is ours


# %%
def refit(generator: nn.Module, data: Tensor, size: Size, seed: int) -> pg.GEBM:
    """An energy on the frozen generator, as if the discriminator were lost."""
    base = pg.Base(copy.deepcopy(generator), pg.StandardNormal(LATENT_DIM))
    gebm = pg.GEBM(base, MLPEnergy((2,), hidden=(size.width, size.width)))
    config = pg.TrainConfig(
        refit_steps=size.refit_steps, refit_lr=1e-3, refit_gradient_penalty=0.05, evaluate_every=0
    )
    loader = BatchLoader(data, 256, generator=torch.Generator().manual_seed(seed))
    for _ in pg.Trainer(gebm, config).refit_energy(loader):
        pass
    return gebm


def methods(size: Size) -> dict[str, Callable]:
    """Each takes a GEBM and a generator, and spends ``budget`` evaluations per sample."""
    n, k = size.num_samples, size.budget

    return {
        # Keeps about a twentieth of the draws; more of them would change nothing.
        "rejection (DRS)": lambda gebm, generator: rejection_sampling(
            gebm, n, percentile=95.0, num_pilot=5 * n, batch_size=n, generator=generator
        ),
        "MH-GAN": lambda gebm, generator: mh_gan(
            gebm, n, num_proposals=k - 1, batch_size=n, generator=generator
        ),
        "DDLS (Langevin)": lambda gebm, generator: ddls(
            gebm, n, num_steps=k - 1, step_size=0.1, batch_size=n, generator=generator
        ),
        "DOT": lambda gebm, generator: discriminator_transport(
            gebm, n, num_steps=k - 1, step_size=0.01, batch_size=n, generator=generator
        ),
        "DG-flow (KL)": lambda gebm, generator: discriminator_gradient_flow(
            gebm, n, num_steps=k, step_size=0.01, batch_size=n, generator=generator
        ),
    }


class Score(NamedTuple):
    distance: float
    share: float  # of samples within 4 standard deviations of a mode
    per_sample: float
    seconds: float


def scored(x: Tensor, test: Tensor, cost: float, seconds: float) -> Score:
    modes, radius = toy_modes("gaussians25"), 4 * toy_mode_std("gaussians25")
    share = float(mode_share(x, modes, radius))
    return Score(energy_distance(x, test), share, cost / len(x), seconds)


def own_chains(gebm: pg.GEBM, size: Size, seed: int) -> tuple[Tensor, int]:
    """``generate`` at the same budget, and what it cost: MALA and global moves.

    A transition takes a gradient; every eighth 8 proposals and another one: 2.125 in all.
    """
    chains, price = min(100, size.num_samples), 2.125
    transitions = int(size.budget * size.num_samples / chains / price)
    warmup = transitions // 5
    draws = -(-size.num_samples // chains)
    thinning = max(1, (transitions - warmup) // draws)
    x = pg.generate(
        gebm,
        size.num_samples,
        kernel="MALA",
        num_chains=chains,
        warmup_steps=warmup,
        thinning=thinning,
        global_moves=pg.GlobalMoves(num_proposals=8, every=8),
        seed=seed,
        progress=False,
    )
    return x, round((warmup + draws * thinning) * chains * price)


def improve(gebm: pg.GEBM, test: Tensor, size: Size, seed: int) -> dict[str, Score]:
    found = {}
    for name, method in methods(size).items():
        start = time.perf_counter()
        result = method(gebm, torch.Generator().manual_seed(seed))
        cost = result.num_gradients + result.num_energies
        found[name] = scored(result.x, test, cost, time.perf_counter() - start)
    start = time.perf_counter()
    x, cost = own_chains(gebm, size, seed)
    found["MALA + global moves"] = scored(x, test, cost, time.perf_counter() - start)
    return found


def run(seed: int, size: Size) -> dict[str, dict[str, Score]]:
    """Scores by energy and method."""
    torch.manual_seed(seed)
    source = torch.Generator().manual_seed(seed)
    train, held_out, test = (
        sample_toy("gaussians25", n, generator=source) for n in (20_000, 4000, size.num_samples)
    )
    start = time.perf_counter()
    generator, discriminator = train_gan(
        BatchLoader(train, 256, generator=source), size.gan_steps, size.width
    )
    trained = time.perf_counter() - start
    prior = pg.StandardNormal(LATENT_DIM)
    raw = from_gan(generator, discriminator, prior, "logistic")
    calibrated, report = calibrate(raw, held_out, num_latents=20_000, generator=source)
    start = time.perf_counter()
    own = refit(generator, train, size, seed)
    print(
        f"seed {seed}: GAN {trained:.0f} s, refit {time.perf_counter() - start:.0f} s; slope "
        f"{report.a:.3f} ± {report.a_error:.3f}, offset {report.b:.3f} ± {report.b_error:.3f}, "
        f"log loss {report.log_loss_before:.4f} -> {report.log_loss:.4f}, ECE "
        f"{report.ece_before:.4f} -> {report.ece:.4f}, log mean ratio {report.log_mean_ratio:.3f}"
    )
    for name, gebm in (("calibrated", calibrated), ("own energy", own)):
        ess = importance_log_z(gebm, 20_000, generator=source).ess / 20_000
        print(f"seed {seed}: {name}: importance ESS of the base {ess:.2f}")
    base = raw.base.sample(size.num_samples)
    floor = sample_toy("gaussians25", size.num_samples, generator=source)
    return {
        "—": {"GAN": scored(base, test, 0, 0.0), "real data": scored(floor, test, 0, 0.0)},
        "discriminator, raw": improve(raw, test, size, seed),
        "discriminator, calibrated": improve(calibrated, test, size, seed),
        "own energy": improve(own, test, size, seed),
    }


def spread(values: list[float], digits: int) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.{digits}f} ± {sd:.{digits}f}"


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=Size().budget)
    parser.add_argument("--smoke", action="store_true", help="one seed, of toy size")
    arguments = parser.parse_args()
    size, seeds = Size(budget=arguments.budget), arguments.seeds
    if arguments.smoke:
        size, seeds = Size(300, 100, 20, 300, 32), seeds[:1]
    results = [run(seed, size) for seed in seeds]
    print("| energy | method | 1000 × energy distance | near a mode | evaluations | seconds |")
    print("|---|---|---|---|---|---|")
    for energy, found in results[0].items():
        for method in found:
            scores = [result[energy][method] for result in results]
            cells = [
                spread([1000 * score.distance for score in scores], 1),
                spread([score.share for score in scores], 3),
                f"{statistics.fmean(score.per_sample for score in scores):.0f}",
                f"{statistics.fmean(score.seconds for score in scores):.1f}",
            ]
            print("| " + " | ".join([energy, method, *cells]) + " |")


if __name__ == "__main__":
    main()
