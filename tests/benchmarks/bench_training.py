"""Cost of a KALE energy step and base step over a bare loop of the same networks and batches.

    python tests/benchmarks/bench_training.py [--rounds 40] [--device cuda]
    python tests/benchmarks/bench_training.py --memory

Both sides take the same data, penalty and optimisers; the bare loop looks at no figure, checks
nothing and keeps nothing. A third loop is that of the authors' code, beside our Trainer at the
same schedule. Rounds are interleaved; the ratio is the median of theirs, its range that of the
quartiles.
``--memory`` runs each side in a process of its own and compares peak memory.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authors
import torch
from authors import BATCH, Authors, Data
from tables import say
from torch import nn

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader
from pyro_gebm.nets import MLPEnergy, MLPGenerator

CONFIG = pg.TrainConfig(base_steps=10**6, energy_steps=2, ema_decay=0.0, schedule="constant")


def mlp() -> tuple[pg.GEBM, torch.Tensor]:
    """The digits' networks and data of their shape."""
    base = pg.Base(MLPGenerator(16, (1, 8, 8)), pg.StandardNormal(16))
    return pg.GEBM(base, MLPEnergy((1, 8, 8))), torch.rand(1257, 1, 8, 8) * 2 - 1


def conv() -> tuple[pg.GEBM, torch.Tensor]:
    """A small DCGAN of 3 x 32 x 32."""
    generator = nn.Sequential(
        nn.Linear(64, 128 * 4 * 4),
        nn.Unflatten(1, (128, 4, 4)),
        nn.SiLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(32, 3, 4, 2, 1),
        nn.Tanh(),
    )
    energy = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.SiLU(),
        nn.Conv2d(64, 128, 4, 2, 1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 1),
    )
    return pg.GEBM(pg.Base(generator, pg.StandardNormal(64)), energy), torch.rand(2048, 3, 32, 32)


TARGETS = {"MLP, digits": mlp, "ConvNet, 3 x 32 x 32": conv}


class Bare(Data):
    """What one would write by hand."""

    def __init__(self, gebm: pg.GEBM, x: torch.Tensor) -> None:
        super().__init__(gebm, x)
        self.step = 0
        groups = [
            {"params": list(gebm.energy.parameters()), "lr": CONFIG.energy_lr},
            {"params": [gebm.log_partition], "lr": CONFIG.log_partition_lr},
        ]
        self.energy = torch.optim.Adam(groups, betas=(0.5, 0.99), fused=True)
        parameters = gebm.base.generator.parameters()
        self.base = torch.optim.Adam(parameters, lr=CONFIG.base_lr, betas=(0.5, 0.99), fused=True)

    def round(self) -> None:
        gebm, energy, c = self.gebm, self.gebm.energy, self.gebm.log_partition
        for _ in range(CONFIG.energy_steps):
            real = self.batch()
            with torch.no_grad():
                fake = gebm.base.generator(self.latents())
            e = energy(torch.cat([real, fake])).reshape(-1)
            t = -(e[BATCH:] + c)
            capped = t.clamp(max=6.0)
            loss = (e[:BATCH] + c).mean() + (capped.exp() * (1 + t - capped)).mean() - 1
            if self.step % CONFIG.penalty_every == 0:
                u = torch.rand(BATCH, *[1] * (real.ndim - 1), device=real.device)
                points = (u * real + (1 - u) * fake).requires_grad_()
                (slope,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
                loss = loss + 2.0 * slope.flatten(1).square().sum(1).mean()
            self.energy.zero_grad()
            loss.backward()
            self.energy.step()
            self.step += 1
        for p in energy.parameters():
            p.requires_grad_(False)
        loss = torch.logsumexp(-energy(gebm.base.generator(self.latents())).reshape(-1), 0)
        self.base.zero_grad()
        loss.neg().backward()
        self.base.step()
        for p in energy.parameters():
            p.requires_grad_(True)


class Ours:
    """A Trainer behind ``fit``, with all that it yields."""

    def __init__(self, gebm: pg.GEBM, x: torch.Tensor, config: pg.TrainConfig = CONFIG) -> None:
        loader = BatchLoader(x, BATCH, generator=torch.Generator().manual_seed(0))
        self.infos = pg.Trainer(gebm, config).fit(loader)

    def round(self) -> None:
        next(self.infos)


Side = Bare | Ours | Authors


def ours_as_the_authors(gebm: pg.GEBM, x: torch.Tensor) -> Ours:
    """Our Trainer, five energy steps to a base step, the penalty with each."""
    return Ours(gebm, x, authors.CONFIG)


LOOPS: dict[str, tuple[Callable[..., Side], Callable[..., Side]]] = {
    "a bare loop": (Bare, Ours),
    "the authors' recipe": (Authors, ours_as_the_authors),
}
"""What ours stands beside, and ours at its schedule."""


def timed(side: Side, count: int, device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    for _ in range(count):
        side.round()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def compare(name: str, beside: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a round of either side, and the ratio of ours, with its quartiles."""
    sides = []
    for kind in LOOPS[beside]:
        torch.manual_seed(0)
        gebm, x = TARGETS[name]()
        sides.append(kind(gebm.to(device).train(), x.to(device)))
    count = 20 if name.startswith("MLP") else 1
    spent: list[list[float]] = [[], []]
    for turn in range(rounds + 2):
        for index in (0, 1) if turn % 2 else (1, 0):
            seconds = timed(sides[index], count, device)
            if turn >= 2:  # the first warm up
                spent[index].append(1e3 * seconds / count)
    ratios = sorted(b / a for a, b in zip(*spent, strict=True))
    return {
        "networks": name,
        "beside": beside,
        "rounds": rounds,
        "their_milliseconds": statistics.median(spent[0]),
        "our_milliseconds": statistics.median(spent[1]),
        "ratio": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
    }


def row(found: dict[str, Any]) -> str:
    """A line of a Markdown table."""
    low, high = found["quartiles"]
    return (
        f"| {found['networks']} | {found['beside']} | {found['their_milliseconds']:.2f} ms "
        f"| {found['our_milliseconds']:.2f} ms | {found['ratio']:.3f} ({low:.3f} to {high:.3f}) |"
    )


def most() -> float:
    """Peak resident memory of this process, MiB; Linux's, for getrusage's comes from the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak(name: str, kind: str, rounds: int) -> None:
    """Peak memory after some rounds, above that of the imports and the data."""
    gebm, x = TARGETS[name]()
    before = most()
    side = {"Bare": Bare, "Ours": Ours}[kind](gebm.train(), x)
    for _ in range(rounds):
        side.round()
    say(str(most() - before))


def compare_memory(name: str, rounds: int) -> None:
    found = []
    for kind in ("Bare", "Ours"):
        command = [sys.executable, __file__, "--peak", name, kind, "--rounds", str(rounds)]
        found.append(float(subprocess.run(command, capture_output=True, check=True).stdout))
    say(f"| {name} | {found[0]:.0f} MiB | {found[1]:.0f} MiB | {found[1] / found[0]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        peak(*arguments.peak, arguments.rounds)
        return
    for name in TARGETS:
        if arguments.memory:
            compare_memory(name, arguments.rounds)
            continue
        for beside in LOOPS:
            say(row(compare(name, beside, arguments.rounds, torch.device(arguments.device))))


if __name__ == "__main__":
    main()
