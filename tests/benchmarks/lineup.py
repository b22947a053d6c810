"""Who runs, with how many chains and draws."""

from collections.abc import Callable, Sequence

import ours
import peers
import peers_ebm
from jobs import Job, Prepared
from targets import Target

PREPARE: dict[str, Callable[[Target, Job], Prepared]] = {
    "ours": ours.prepare,
    "pyro": peers.prepare_pyro,
    "numpyro": peers.prepare_numpyro,
    "blackjax": peers.prepare_blackjax,
    "torchebm": peers_ebm.prepare_torchebm,
    "ebmkit": peers_ebm.prepare_ebmkit,
}

KERNELS: dict[str, list[str]] = {
    "ours": [
        *("NUTS", "HMC", "ChEES", "ChEES+short", "MALA"),
        *("NUTS+compiled", "HMC+compiled", "ChEES+compiled+short"),
    ],
    "pyro": ["NUTS"],
    "numpyro": ["NUTS"],
    "blackjax": ["NUTS", "ChEES", "ChEES+short"],
    "torchebm": ["HMC", "Langevin"],
    "ebmkit": ["NUTS", "MALA"],
}
CROSSING = {  # ours, where there are modes
    "modes": [
        *("NUTS+global", "HMC+global", "ChEES+global", "HMC+tempering"),
        *("NUTS+global+compiled", "HMC+global+compiled+short", "ChEES+global+compiled+short"),
    ],
    "overlap": ["NUTS+global", "HMC+global", "ChEES+global", "HMC+tempering"],
    "digits": ["ChEES+global"],
}

LENGTHS = {1: (1000, 1000), 4: (500, 500), 64: (200, 200), 256: (100, 100), 1024: (50, 50)}
QUICK_LENGTHS = {1: (200, 200), 4: (150, 150), 64: (100, 100), 256: (50, 50), 1024: (25, 25)}
# of warm-up, and draws
SHORT_WARMUP = 40  # of "+short"
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
    quick: bool = False,
) -> list[Job]:
    """Every job that makes sense, in the order of the table."""
    return [
        Job(library, kernel, target, count, *_lengths(library, kernel, target, count, quick))
        for target in targets
        for count in chains
        for library in libraries
        for kernel in _kernels(library, target, kernels)
        if _makes_sense(library, kernel, target, count)
    ]


def _kernels(library: str, target: str, asked: Sequence[str]) -> list[str]:
    if library != "ours":
        return [kernel for kernel in KERNELS[library] if not asked or kernel in asked]
    families = [family for family in CROSSING if target.startswith(family)]
    crossing = [kernel for family in families for kernel in CROSSING[family]]
    return list(asked) or KERNELS[library] + crossing  # asked for, any name will do


def _makes_sense(library: str, kernel: str, target: str, chains: int) -> bool:
    if library == "pyro":
        return chains <= PYRO_CHAINS and (library, target) not in TOO_SLOW
    return not kernel.startswith("ChEES") or chains >= CHEES_CHAINS


def _lengths(library: str, kernel: str, target: str, chains: int, quick: bool) -> tuple[int, int]:
    """Draws, and transitions of warm-up."""
    if library == "pyro":
        return PYRO_LENGTH
    table = QUICK_LENGTHS if quick else LENGTHS
    warmup, draws = table[min(table, key=lambda known: abs(known - chains))]
    if kernel.endswith("+short"):
        warmup = min(warmup, SHORT_WARMUP)
    return draws // 4 if target in LONG_TREES and chains > 4 else draws, warmup
