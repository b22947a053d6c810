"""Scores of samples; all of them need nothing but tensors."""

from pyro_gebm.metrics.classifier import Classifier, train_classifier
from pyro_gebm.metrics.discrepancy import MMD, mmd
from pyro_gebm.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from pyro_gebm.metrics.held_out import Estimate, HeldOutBound, held_out_bound
from pyro_gebm.metrics.modes import ModeSummary, label_modes, mode_summary
from pyro_gebm.metrics.partition import (
    ImportanceLogZ,
    LogPartitionEstimates,
    annealed_log_z,
    importance_log_z,
    log_partition_estimates,
)
from pyro_gebm.metrics.permutation import PermutationTest, permutation_test
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
from pyro_gebm.metrics.smc import AnnealedLogZ, smc_log_z

__all__ = [
    "MMD",
    "AnnealedLogZ",
    "Classifier",
    "EnergyDistanceScorer",
    "Estimate",
    "FeatureStatistics",
    "FrechetScorer",
    "HeldOutBound",
    "ImportanceLogZ",
    "LogPartitionEstimates",
    "MeanSpread",
    "ModeSummary",
    "PermutationTest",
    "RelativeScore",
    "Scorer",
    "annealed_log_z",
    "class_occupancy",
    "energy_distance",
    "feature_statistics",
    "frechet_distance",
    "held_out_bound",
    "importance_log_z",
    "label_modes",
    "log_partition_estimates",
    "mmd",
    "mode_occupancy",
    "mode_share",
    "mode_summary",
    "occupancy_distance",
    "permutation_test",
    "relative_score",
    "sliced_wasserstein",
    "smc_log_z",
    "train_classifier",
]
