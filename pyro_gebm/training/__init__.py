"""Training by KALE and by its rivals, and checkpoints."""

from pyro_gebm.training.checkpoint import CheckpointError, load, save
from pyro_gebm.training.checkpoints import Checkpoints
from pyro_gebm.training.config import TrainConfig
from pyro_gebm.training.convex import EnergySolution, SolverError, solve_energy
from pyro_gebm.training.guard import TrainingError
from pyro_gebm.training.infos import EnergyInfo, Seconds, StepInfo
from pyro_gebm.training.interrupt import deferred_interrupt
from pyro_gebm.training.max_likelihood import FlowConfig, FlowInfo, fit_flow, mean_nll
from pyro_gebm.training.monitor import HeldOut
from pyro_gebm.training.parts import ChainsConfig, GuardConfig, ReplayConfig
from pyro_gebm.training.processes import Processes, processes
from pyro_gebm.training.trainer import Trainer

__all__ = [
    "ChainsConfig",
    "CheckpointError",
    "Checkpoints",
    "EnergyInfo",
    "EnergySolution",
    "FlowConfig",
    "FlowInfo",
    "GuardConfig",
    "HeldOut",
    "Processes",
    "ReplayConfig",
    "Seconds",
    "SolverError",
    "StepInfo",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "deferred_interrupt",
    "fit_flow",
    "load",
    "mean_nll",
    "processes",
    "save",
    "solve_energy",
]
