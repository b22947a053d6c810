"""Markov kernels that know only a potential, and the loop that runs them.

A potential is a function (C, D) -> (C,): minus the log density of every chain's position.
"""

from pyro_gebm.mcmc.chees import ChEES
from pyro_gebm.mcmc.draws import Draws, Position
from pyro_gebm.mcmc.global_moves import GlobalMoves
from pyro_gebm.mcmc.gradients import CapturedPotential, CompiledPotential
from pyro_gebm.mcmc.hmc import HMC
from pyro_gebm.mcmc.imh import IMH
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState
from pyro_gebm.mcmc.kinetic import Kinetic
from pyro_gebm.mcmc.langevin import MALA, Langevin
from pyro_gebm.mcmc.nuts import NUTS
from pyro_gebm.mcmc.pyro_kernels import PyroKernel, is_pyro_kernel, run_pyro
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.mcmc.run import draw, run
from pyro_gebm.mcmc.transitions import Moves
from pyro_gebm.mcmc.tuning import Tuning
from pyro_gebm.mcmc.warmup import Warmed, warm_up

KERNELS: dict[str, type[Kernel]] = {
    kernel.__name__: kernel for kernel in (NUTS, HMC, ChEES, MALA, Langevin, Kinetic, IMH)
}
"""The kernels by name."""

__all__ = [
    "HMC",
    "IMH",
    "KERNELS",
    "MALA",
    "NUTS",
    "CapturedPotential",
    "ChEES",
    "CompiledPotential",
    "Draws",
    "GlobalMoves",
    "Info",
    "Kernel",
    "KernelState",
    "Kinetic",
    "Langevin",
    "Moves",
    "Position",
    "PyroKernel",
    "Reference",
    "Tuning",
    "Warmed",
    "draw",
    "is_pyro_kernel",
    "run",
    "run_pyro",
    "warm_up",
]
