"""The generalized energy-based model: its potential, its density ratio, its Pyro model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import pyro
import torch
from torch import Tensor, nn

from pyro_gebm._checks import check_in_range, check_one_each
from pyro_gebm._modes import evaluating
from pyro_gebm.base import Base


@final
class GEBM(nn.Module):
    """A generalized energy-based model Q: a base B reweighted by an energy E.

    dQ/dB (x) = exp(-E(x)) / Z with Z = E_B[exp(-E)] (Arbel, Zhou, Gretton, ICLR 2021,
    arXiv 2003.05033). In the latent space of the base, Q is the push-forward of
    ν(z) ∝ η(z) exp(-E(G(z))), whose potential is U(z) = -log η(z) + E(G(z)).

    Args:
        base: B, a generator and a latent prior.
        energy: E, any module (B, ...) -> (B,) or (B, 1); low where data is likely.

    Attributes:
        log_partition: c, a learned scalar that estimates log Z.

    Raises:
        ValueError: ``base`` is not a ``Base``.

    Example:
        >>> from pyro_gebm.base import StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> gebm.potential_fn(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(self, base: Base, energy: nn.Module) -> None:
        super().__init__()
        if not isinstance(base, Base):
            raise ValueError(
                f"base: expected a Base; got {type(base).__name__}; build one with "
                "Base(generator, latent_prior)"
            )
        self.base = base
        self.energy = energy
        self.log_partition = nn.Parameter(torch.zeros_like(base.latent_prior.like.flatten()[0]))

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.base.latent_prior.dim

    def evaluate_energy(self, x: Tensor) -> Tensor:
        """E(x), (B, ...) -> (B,).

        Raises:
            ValueError: the energy module returns neither (B,) nor (B, 1).
        """
        return check_one_each("energy", self.energy(x), len(x))

    def latent_energy(self, z: Tensor) -> Tensor:
        """E(G(z)), (..., D) -> (...)."""
        flat = z.reshape(-1, z.shape[-1])
        return self.evaluate_energy(self.base.generator(flat)).reshape(z.shape[:-1])

    def potential_fn(self, z: Tensor, beta: float = 1.0) -> Tensor:
        """U_β(z) = -log η(z) + β E(G(z)), minus the log of ν_β up to a constant.

        Args:
            z: latents, (..., D).
            beta: inverse temperature β of the energy; 1 is the model itself, 0 the base.
                The authors' code calls it temperature and uses 100.

        Returns:
            (...), in nats; +inf outside the support of the latent prior.
        """
        return beta * self.latent_energy(z) - self.base.latent_prior.log_prob(z)

    def log_density_ratio(self, x: Tensor) -> Tensor:
        """log dQ/dB (x) = -E(x) - c, (B, ...) -> (B,), with the learned c in place of log Z."""
        return -self.evaluate_energy(x) - self.log_partition

    def model(self, beta: float = 1.0, *, name: str = "z") -> Tensor:
        """The Pyro model: ``z`` ~ η, ``neg_energy`` as a factor, ``x`` = G(z) deterministic.

        Its log density at z is -U_β(z). Networks are evaluated in eval mode and without
        parameter gradients, whatever mode they were left in. Several GEBMs live in one model
        under a ``name`` each; within plates every member has its own z.

        Args:
            beta: inverse temperature β of the energy.
            name: of the latent site. The two others are called ``neg_energy`` and ``x``, and
                behind another name than "z", ``<name>.neg_energy`` and ``<name>.x``.

        Returns:
            x, of the data's shape (behind the batch dimensions of z, if any).

        Raises:
            ValueError: ``name`` is not a name, or the site is held at a value that is no
                latent: another D, dtype or device.

        Example:
            >>> from pyro_gebm.base import StandardNormal
            >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
            >>> trace = pyro.poutine.trace(gebm.model).get_trace()
            >>> z = trace.nodes["z"]["value"]
            >>> bool(torch.isclose(trace.log_prob_sum(), -gebm.potential_fn(z)))
            True
            >>> list(pyro.poutine.trace(gebm.model).get_trace(name="left").stochastic_nodes)
            ['left']
        """
        scope = _scope(name)
        z = self._check_latent(name, pyro.sample(name, self.base.latent_prior.distribution))
        # Detached, not switched off: torch.func.vmap refuses requires_grad_ within.
        constants = {name: parameter.detach() for name, parameter in self.named_parameters()}
        with self.evaluating():
            x, energy = torch.func.functional_call(self, constants, (z,))
        assert isinstance(x, Tensor)
        pyro.factor(f"{scope}neg_energy", -beta * energy)
        pyro.deterministic(f"{scope}x", x, event_dim=x.ndim - z.ndim + 1)
        return x

    def _check_latent(self, name: str, z: object) -> Tensor:
        """What a site holds, which the user may have set by condition, do or a guide."""
        like = self.base.latent_prior.like
        if not isinstance(z, Tensor):
            raise ValueError(f"site {name!r}: expected a tensor; got {type(z).__name__}")
        if z.ndim == 0 or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"site {name!r}: expected shape (..., {self.latent_dim}); got {tuple(z.shape)}; "
                "give latents of this GEBM"
            )
        if (z.dtype, z.device) != (like.dtype, like.device):
            raise ValueError(
                f"site {name!r}: expected {like.dtype} on {like.device}, as its prior; got "
                f"{z.dtype} on {z.device}; convert it with .to()"
            )
        return z

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = G(z) and E(x), (..., D) -> (..., *data shape) and (...)."""
        x: Tensor = self.base(z)
        batch = z.shape[:-1]
        energy = self.evaluate_energy(x.reshape(-1, *x.shape[len(batch) :]))
        return x, energy.reshape(batch)

    @contextmanager
    def evaluating(self) -> Iterator["GEBM"]:
        """Eval mode within; the modes before are restored after."""
        with evaluating(self):
            yield self

    @contextmanager
    def frozen(self) -> Iterator["GEBM"]:
        """Eval mode and no parameter gradients within; the state before is restored after.

        BatchNorm in train mode would couple the chains of a batch; parameter gradients would
        cost time and memory for nothing.
        """
        needs = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        try:
            for parameter, _ in needs:
                parameter.requires_grad_(False)
            with self.evaluating():
                yield self
        finally:
            for parameter, need in needs:
                parameter.requires_grad_(need)


def _scope(name: str) -> str:
    """What stands before the names of a model's other sites."""
    given: object = name
    if not isinstance(given, str) or not given:
        raise ValueError(f'name: expected the name of a site, such as "z"; got {name!r}')
    return "" if name == "z" else f"{name}."


def check_beta(beta: float) -> float:
    """Return ``beta`` if it is a finite number >= 0, else raise ``ValueError``."""
    return check_in_range("beta", beta, 0.0)
