"""``sample`` and ``generate``: where the model and the kernels meet."""

from pyro_gebm.sampling.generate import generate
from pyro_gebm.sampling.push import push_forward
from pyro_gebm.sampling.sample import kernel_name, sample

__all__ = ["generate", "kernel_name", "push_forward", "sample"]
