"""Built-in generators and energies, each rebuilt from its spec by ``build``."""

from pyro_gebm.nets.mlp import MLPEnergy, MLPGenerator
from pyro_gebm.nets.network import Network, NetworkSpec, build, register, registered_names
from pyro_gebm.nets.rkhs import FourierEnergy
from pyro_gebm.nets.spectral import with_spectral_norm

__all__ = [
    "FourierEnergy",
    "MLPEnergy",
    "MLPGenerator",
    "Network",
    "NetworkSpec",
    "build",
    "register",
    "registered_names",
    "with_spectral_norm",
]
