"""Inverse problems with a GEBM as prior: posteriors of many data, their pictures, calibration."""

from pyro_gebm.inverse.calibration import (
    Calibration,
    Coverage,
    calibration,
    interval_coverage,
    rank_statistics,
    uniformity,
)
from pyro_gebm.inverse.evidence import Evidence, log_evidence
from pyro_gebm.inverse.images import PosteriorImages, posterior_images, posterior_x
from pyro_gebm.inverse.many import sample_many

__all__ = [
    "Calibration",
    "Coverage",
    "Evidence",
    "PosteriorImages",
    "calibration",
    "interval_coverage",
    "log_evidence",
    "posterior_images",
    "posterior_x",
    "rank_statistics",
    "sample_many",
    "uniformity",
]
