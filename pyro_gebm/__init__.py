"""Generalized energy-based models for PyTorch and Pyro.

A generator pushes a latent prior forward to a base; an energy reweights it. Train both by
KALE, sample the latent posterior with many chains at once, diagnose the draws with ArviZ.
"""

from pyro_gebm._version import __version__
from pyro_gebm.base import Base, LatentPrior, StandardNormal, UniformPrior
from pyro_gebm.comparison import compare
from pyro_gebm.flows import NSF, NVP, FreeEnergy, flow_base, log_prob
from pyro_gebm.gan import from_gan
from pyro_gebm.inverse import log_evidence, posterior_images, sample_many
from pyro_gebm.mcmc import HMC, IMH, MALA, NUTS, ChEES, GlobalMoves, Kinetic, Langevin
from pyro_gebm.model import GEBM
from pyro_gebm.sampling import MCMC, as_pyro_kernel, generate, sample
from pyro_gebm.training import (
    CheckpointError,
    StepInfo,
    TrainConfig,
    Trainer,
    TrainingError,
    load,
    save,
)

__all__ = [
    "GEBM",
    "HMC",
    "IMH",
    "MALA",
    "MCMC",
    "NSF",
    "NUTS",
    "NVP",
    "Base",
    "ChEES",
    "CheckpointError",
    "FreeEnergy",
    "GlobalMoves",
    "Kinetic",
    "Langevin",
    "LatentPrior",
    "StandardNormal",
    "StepInfo",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "UniformPrior",
    "__version__",
    "as_pyro_kernel",
    "compare",
    "flow_base",
    "from_gan",
    "generate",
    "load",
    "log_evidence",
    "log_prob",
    "posterior_images",
    "sample",
    "sample_many",
    "save",
]
