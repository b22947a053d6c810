"""``sample`` and ``generate``: where the model and the kernels meet."""

from pyro_gebm.sampling.generate import generate
from pyro_gebm.sampling.push import push_forward
from pyro_gebm.sampling.pyro_mcmc import MCMC
from pyro_gebm.sampling.sample import sample
from pyro_gebm.sampling.settings import kernel_name
from pyro_gebm.sampling.single_chain import as_pyro_kernel

__all__ = ["MCMC", "as_pyro_kernel", "generate", "kernel_name", "push_forward", "sample"]
