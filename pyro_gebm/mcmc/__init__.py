"""Markov kernels that know only a potential, and the loop that runs them.

A potential is a function (C, D) -> (C,): minus the log density of every chain's position.
"""

from pyro_gebm.mcmc.hmc import HMC
from pyro_gebm.mcmc.kernel import Info, Kernel, KernelState, Tuning
from pyro_gebm.mcmc.langevin import MALA, Langevin
from pyro_gebm.mcmc.nuts import NUTS
from pyro_gebm.mcmc.pyro_kernels import PyroKernel, is_pyro_kernel, run_pyro
from pyro_gebm.mcmc.run import Draws, run

KERNELS: dict[str, type[Kernel]] = {"NUTS": NUTS, "HMC": HMC, "MALA": MALA, "Langevin": Langevin}
"""The kernels by name."""

__all__ = [
    "HMC",
    "KERNELS",
    "MALA",
    "NUTS",
    "Draws",
    "Info",
    "Kernel",
    "KernelState",
    "Langevin",
    "PyroKernel",
    "Tuning",
    "is_pyro_kernel",
    "run",
    "run_pyro",
]
