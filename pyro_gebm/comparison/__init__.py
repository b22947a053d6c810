"""Kernels against the base at equal gradient evaluations: the computation, without pictures."""

from pyro_gebm.comparison.compare import compare
from pyro_gebm.comparison.plain import to_dict
from pyro_gebm.comparison.results import (
    BaseResult,
    CommonCurve,
    Comparison,
    Interval,
    KernelResult,
    Protocol,
    SeedRun,
    Summary,
    common_curve,
)
from pyro_gebm.comparison.words import verdict

__all__ = [
    "BaseResult",
    "CommonCurve",
    "Comparison",
    "Interval",
    "KernelResult",
    "Protocol",
    "SeedRun",
    "Summary",
    "common_curve",
    "compare",
    "to_dict",
    "verdict",
]
