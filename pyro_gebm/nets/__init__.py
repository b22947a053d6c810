"""Generators and energies, built in or the user's own, each rebuilt from its spec by ``build``."""

from pyro_gebm.nets.building import build
from pyro_gebm.nets.dcgan import DCGANEnergy, DCGANGenerator
from pyro_gebm.nets.imported import ImportedNetwork, import_network, trust
from pyro_gebm.nets.mlp import MLPEnergy, MLPGenerator
from pyro_gebm.nets.network import Network, NetworkSpec, register, registered_names
from pyro_gebm.nets.resnet import ResNetEnergy, ResNetGenerator
from pyro_gebm.nets.rkhs import FourierEnergy
from pyro_gebm.nets.sngan import SNGANEnergy, SNGANGenerator
from pyro_gebm.nets.spectral import with_spectral_norm

__all__ = [
    "DCGANEnergy",
    "DCGANGenerator",
    "FourierEnergy",
    "ImportedNetwork",
    "MLPEnergy",
    "MLPGenerator",
    "Network",
    "NetworkSpec",
    "ResNetEnergy",
    "ResNetGenerator",
    "SNGANEnergy",
    "SNGANGenerator",
    "build",
    "import_network",
    "register",
    "registered_names",
    "trust",
    "with_spectral_norm",
]
