"""Scores of samples; all of them need nothing but tensors."""

from pyro_gebm.metrics.classifier import Classifier, train_classifier
from pyro_gebm.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from pyro_gebm.metrics.modes import ModeSummary, label_modes, mode_summary
from pyro_gebm.metrics.protocol import (
    EnergyDistanceScorer,
    FrechetScorer,
    MeanSpread,
    RelativeScore,
    Scorer,
    relative_score,
)
from pyro_gebm.metrics.scores import (
    class_occupancy,
    energy_distance,
    mode_occupancy,
    mode_share,
    occupancy_distance,
    sliced_wasserstein,
)

__all__ = [
    "Classifier",
    "EnergyDistanceScorer",
    "FeatureStatistics",
    "FrechetScorer",
    "MeanSpread",
    "ModeSummary",
    "RelativeScore",
    "Scorer",
    "class_occupancy",
    "energy_distance",
    "feature_statistics",
    "frechet_distance",
    "label_modes",
    "mode_occupancy",
    "mode_share",
    "mode_summary",
    "occupancy_distance",
    "relative_score",
    "sliced_wasserstein",
    "train_classifier",
]
