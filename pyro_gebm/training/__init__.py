"""Training by KALE, and checkpoints."""

from pyro_gebm.training.checkpoint import CheckpointError, load, save
from pyro_gebm.training.config import TrainConfig
from pyro_gebm.training.trainer import EnergyInfo, StepInfo, Trainer, TrainingError

__all__ = [
    "CheckpointError",
    "EnergyInfo",
    "StepInfo",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "load",
    "save",
]
