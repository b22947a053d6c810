"""Built-in generators and energies, each rebuilt from its spec by ``build``."""

from pyro_gebm.nets.dcgan import DCGANEnergy, DCGANGenerator
from pyro_gebm.nets.mlp import MLPEnergy, MLPGenerator
from pyro_gebm.nets.network import Network, NetworkSpec, build, register, registered_names
from pyro_gebm.nets.resnet import ResNetEnergy, ResNetGenerator
from pyro_gebm.nets.rkhs import FourierEnergy
from pyro_gebm.nets.sngan import SNGANEnergy, SNGANGenerator
from pyro_gebm.nets.spectral import with_spectral_norm

__all__ = [
    "DCGANEnergy",
    "DCGANGenerator",
    "FourierEnergy",
    "MLPEnergy",
    "MLPGenerator",
    "Network",
    "NetworkSpec",
    "ResNetEnergy",
    "ResNetGenerator",
    "SNGANEnergy",
    "SNGANGenerator",
    "build",
    "register",
    "registered_names",
    "with_spectral_norm",
]
