"""Built-in generators and energies, each rebuilt from its spec by ``build``."""

from pyro_gebm.nets.mlp import MLPEnergy, MLPGenerator
from pyro_gebm.nets.network import Network, NetworkSpec, build, register, registered_names

__all__ = [
    "MLPEnergy",
    "MLPGenerator",
    "Network",
    "NetworkSpec",
    "build",
    "register",
    "registered_names",
]
