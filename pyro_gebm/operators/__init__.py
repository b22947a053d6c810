"""How data are observed: operators on x as plain modules, and noise as Pyro distributions."""

from pyro_gebm.operators.linear import Blur, Downsample, RandomProjection
from pyro_gebm.operators.mask import Mask
from pyro_gebm.operators.noise import (
    clipped_noise,
    gaussian_noise,
    observe,
    poisson_noise,
    quantised_noise,
)
from pyro_gebm.operators.recorded import ClippedNormal, QuantisedNormal

__all__ = [
    "Blur",
    "ClippedNormal",
    "Downsample",
    "Mask",
    "QuantisedNormal",
    "RandomProjection",
    "clipped_noise",
    "gaussian_noise",
    "observe",
    "poisson_noise",
    "quantised_noise",
]
