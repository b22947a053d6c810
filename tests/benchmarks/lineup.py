"""Who runs, with how many chains and draws."""

from collections.abc import Callable, Sequence

import ours
import peers
from jobs import Job, Prepared
from targets import Target

PREPARE: dict[str, Callable[[Target, Job], Prepared]] = {
    "ours": ours.prepare,
    "pyro": peers.prepare_pyro,
    "numpyro": peers.prepare_numpyro,
    "blackjax": peers.prepare_blackjax,
    "torchebm": peers.prepare_torchebm,
}

KERNELS: dict[str, list[str]] = {
    "ours": ["NUTS", "HMC", "ChEES", "MALA"],
    "pyro": ["NUTS"],
    "numpyro": ["NUTS"],
    "blackjax": ["NUTS", "ChEES"],
    "torchebm": ["HMC", "Langevin"],
}
CROSSING = ["NUTS+global", "HMC+global", "HMC+tempering"]  # ours, where there are modes

LENGTHS = {1: (1000, 1000), 4: (500, 500), 64: (200, 200), 256: (100, 100)}  # warm-up, draws
QUICK_LENGTHS = {1: (200, 200), 4: (150, 150), 64: (100, 100), 256: (50, 50)}
LONG_TREES = {"gauss100"}  # some 200 leapfrogs a draw: a quarter of the draws of many chains
PYRO_LENGTH = (150, 150)  # it runs one chain at a time, some 50 times slower
TOO_SLOW = {("pyro", "gauss100"), ("pyro", "funnel")}  # hundreds of leapfrogs a draw: minutes
CHEES_CHAINS = 16  # it learns from the spread between chains
PYRO_CHAINS = 4


def jobs(
    libraries: Sequence[str],
    targets: Sequence[str],
    chains: Sequence[int],
    *,
    kernels: Sequence[str] = (),
    starts: str = "base",
    quick: bool = False,
) -> list[Job]:
    """Every job that makes sense, in the order of the table."""
    return [
        Job(library, kernel, target, count, *_lengths(library, target, count, quick)[::-1], starts)
        for target in targets
        for count in chains
        for library in libraries
        for kernel in _kernels(library, target, kernels)
        if _makes_sense(library, kernel, target, count)
    ]


def _kernels(library: str, target: str, asked: Sequence[str]) -> list[str]:
    if library == "ours":  # any name will do
        crossing = CROSSING if target.startswith(("modes", "overlap")) else []
        return list(asked) or KERNELS[library] + crossing
    return [kernel for kernel in KERNELS[library] if not asked or kernel in asked]


def _makes_sense(library: str, kernel: str, target: str, chains: int) -> bool:
    if library == "pyro":
        return chains <= PYRO_CHAINS and (library, target) not in TOO_SLOW
    return kernel != "ChEES" or chains >= CHEES_CHAINS


def _lengths(library: str, target: str, chains: int, quick: bool) -> tuple[int, int]:
    if library == "pyro":
        return PYRO_LENGTH
    table = QUICK_LENGTHS if quick else LENGTHS
    warmup, draws = table[min(table, key=lambda known: abs(known - chains))]
    return warmup, draws // 4 if target in LONG_TREES and chains > 4 else draws
