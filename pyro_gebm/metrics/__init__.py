"""Scores of samples; all of them need nothing but tensors."""

from pyro_gebm.metrics.classifier import Classifier, train_classifier
from pyro_gebm.metrics.coverage import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from pyro_gebm.metrics.dimension import (
    DimensionCurve,
    IntrinsicDimension,
    intrinsic_dimension,
    intrinsic_dimension_curve,
)
from pyro_gebm.metrics.discrepancy import MMD, mmd
from pyro_gebm.metrics.features import (
    FeatureExtractor,
    FeatureProtocol,
    StoredStatistics,
    classifier_features,
    identity_features,
    load_statistics,
    save_statistics,
    weights_sha256,
)
from pyro_gebm.metrics.frechet import FrechetEstimate, frechet_distance, frechet_with_error
from pyro_gebm.metrics.held_out import Estimate, HeldOutBound, held_out_bound
from pyro_gebm.metrics.inception import inception_features, score_name
from pyro_gebm.metrics.kid import KernelDistance, kernel_distance
from pyro_gebm.metrics.likelihood import (
    LogLikelihood,
    TrustedLogZ,
    UntrustedLogZError,
    log_density,
    log_likelihood,
    trusted_log_z,
)
from pyro_gebm.metrics.memorisation import (
    MemorisationScore,
    TrainingShare,
    memorisation_score,
    training_share,
)
from pyro_gebm.metrics.minima import EnergyMinima, energy_minima
from pyro_gebm.metrics.modes import ModeSummary, label_modes, mode_summary
from pyro_gebm.metrics.moments import (
    FeatureStatistics,
    StatisticsStream,
    feature_statistics,
    merge_statistics,
)
from pyro_gebm.metrics.neighbours import Neighbours, nearest_neighbours
from pyro_gebm.metrics.pareto import tail_shape
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
    "DensityCoverage",
    "DimensionCurve",
    "EnergyDistanceScorer",
    "EnergyMinima",
    "Estimate",
    "FeatureExtractor",
    "FeatureProtocol",
    "FeatureStatistics",
    "FrechetEstimate",
    "FrechetScorer",
    "HeldOutBound",
    "ImportanceLogZ",
    "IntrinsicDimension",
    "KernelDistance",
    "LogLikelihood",
    "LogPartitionEstimates",
    "MeanSpread",
    "MemorisationScore",
    "ModeSummary",
    "Neighbours",
    "PermutationTest",
    "PrecisionRecall",
    "RelativeScore",
    "Scorer",
    "StatisticsStream",
    "StoredStatistics",
    "TrainingShare",
    "TrustedLogZ",
    "UntrustedLogZError",
    "annealed_log_z",
    "class_occupancy",
    "classifier_features",
    "density_coverage",
    "energy_distance",
    "energy_minima",
    "feature_statistics",
    "frechet_distance",
    "frechet_with_error",
    "held_out_bound",
    "identity_features",
    "importance_log_z",
    "inception_features",
    "intrinsic_dimension",
    "intrinsic_dimension_curve",
    "kernel_distance",
    "label_modes",
    "load_statistics",
    "log_density",
    "log_likelihood",
    "log_partition_estimates",
    "memorisation_score",
    "merge_statistics",
    "mmd",
    "mode_occupancy",
    "mode_share",
    "mode_summary",
    "nearest_neighbours",
    "occupancy_distance",
    "permutation_test",
    "precision_recall",
    "relative_score",
    "save_statistics",
    "score_name",
    "sliced_wasserstein",
    "smc_log_z",
    "tail_shape",
    "train_classifier",
    "training_share",
    "trusted_log_z",
    "weights_sha256",
]
