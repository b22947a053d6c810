"""GANs that were trained elsewhere: as GEBMs, calibrated, and improved by the methods of others.

With the discriminator, ``from_gan`` makes a GEBM of the pair and ``calibrate`` fits its scale to
held-out data. Without it (it is usually lost) an energy is trained on the frozen generator, by
what trains any GEBM:

    >>> import torch
    >>> from pyro_gebm.base import Base, StandardNormal
    >>> from pyro_gebm.model import GEBM
    >>> from pyro_gebm.nets import MLPEnergy
    >>> from pyro_gebm.training import TrainConfig, Trainer
    >>> generator = torch.nn.Linear(2, 3)  # any module that maps (B, D) to data
    >>> gebm = GEBM(Base(generator, StandardNormal(2)), MLPEnergy((3,), hidden=(8,)))
    >>> trainer = Trainer(gebm, TrainConfig(refit_steps=5))  # 1,500 by default
    >>> len(list(trainer.refit_energy([torch.randn(16, 3)])))  # the generator stays as it was
    5
"""

from pyro_gebm.gan.adapters import DiscriminatorAdapter, GeneratorAdapter
from pyro_gebm.gan.calibration import Calibrated, Calibration, calibrate
from pyro_gebm.gan.convert import DiscriminatorEnergy, ScaledEnergy, from_gan
from pyro_gebm.gan.flows import ddls, discriminator_gradient_flow, discriminator_transport
from pyro_gebm.gan.refined import Refined
from pyro_gebm.gan.rejection import mh_gan, rejection_sampling

__all__ = [
    "Calibrated",
    "Calibration",
    "DiscriminatorAdapter",
    "DiscriminatorEnergy",
    "GeneratorAdapter",
    "Refined",
    "ScaledEnergy",
    "calibrate",
    "ddls",
    "discriminator_gradient_flow",
    "discriminator_transport",
    "from_gan",
    "mh_gan",
    "rejection_sampling",
]
