"""Latent priors, and the base: the law of G(z) for z drawn from one."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, final

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_gebm._checks import check_count, check_in_range
from pyro_gebm._modes import evaluating
from pyro_gebm._supports import bare, is_real, onto, true_support


class Coordinates(NamedTuple):
    """Unconstrained coordinates u of latents z: chains move in them, and know no walls."""

    to_latent: Callable[[Tensor], Tensor]
    """u (..., D') -> z (..., D)."""
    from_latent: Callable[[Tensor], Tensor]
    """z in the support -> u."""
    log_det: Callable[[Tensor, Tensor], Tensor | float]
    """u and its z -> log |dz/du|, (...)."""


class Prior(nn.Module, ABC):
    """The density η of latents z (D,): what ``StandardNormal`` and its siblings have in common."""

    @property
    @abstractmethod
    def distribution(self) -> TorchDistributionMixin:
        """A Pyro distribution of event shape (D,)."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the dtype and device that draws have."""

    @property
    def dim(self) -> int:
        """D, the number of latent dimensions."""
        return int(self.distribution.event_shape[0])

    @property
    def support(self) -> Any:
        """The torch constraint that z satisfies."""
        return bare(self.distribution.support)

    @property
    def is_unconstrained(self) -> bool:
        """Every real vector is in the support."""
        return is_real(self.support)

    def coordinates(self) -> Coordinates:
        """Unconstrained coordinates: z itself where the support is all of R^D."""
        if self.is_unconstrained:
            return Coordinates(_identity, _identity, lambda u, z: 0.0)
        transform = onto(self.support, self.dim)

        def log_det(u: Tensor, z: Tensor) -> Tensor:
            value: Tensor = transform.log_abs_det_jacobian(u, z)
            # Element-wise transforms give one term per dimension.
            return value.sum(-1) if value.ndim == u.ndim else value

        return Coordinates(transform, transform.inv, log_det)

    @abstractmethod
    def sample(self, num_samples: int) -> Tensor:
        """Draws from η, (num_samples, D), from torch's global generator."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log η(z), (..., D) -> (...); -inf outside the support."""
        value: Tensor = self.distribution.log_prob(z)
        if self.is_unconstrained:
            return value
        inside: Tensor = self.support.check(z)
        # Element-wise constraints answer for each dimension.
        inside = inside.all(-1) if inside.ndim == z.ndim else inside
        # Without validation the formulas of some distributions go on outside.
        return torch.where(inside, value, -torch.inf)


def _identity(z: Tensor) -> Tensor:
    return z


def _draws(distribution: TorchDistributionMixin, num_samples: int) -> Tensor:
    draws: Tensor = distribution.sample(torch.Size([num_samples]))
    return draws


@final
class StandardNormal(Prior):
    """η = N(0, I) in ``dim`` dimensions.

    Raises:
        ValueError: ``dim`` is not a whole number >= 1.

    Example:
        >>> StandardNormal(3).log_prob(torch.zeros(2, 3))
        tensor([-2.7568, -2.7568])
    """

    loc: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_count("dim", dim)
        self.register_buffer("loc", torch.zeros(dim), persistent=False)

    @property
    def distribution(self) -> TorchDistributionMixin:
        """Independent standard normals."""
        return dist.Normal(self.loc, torch.ones_like(self.loc), validate_args=False).to_event(1)

    def sample(self, num_samples: int) -> Tensor:
        """Draws from η, (num_samples, D), from torch's global generator."""
        # Not of the distribution, whose making costs ten times the draws of a training step.
        size = (num_samples, len(self.loc))
        return torch.randn(size, dtype=self.loc.dtype, device=self.loc.device)

    @property
    def like(self) -> Tensor:
        """The mean."""
        return self.loc


@final
class UniformPrior(Prior):
    """η uniform on the box [low, high]^dim.

    Raises:
        ValueError: ``dim`` is not a whole number >= 1, or ``low`` is not below ``high``.

    Example:
        >>> UniformPrior(2).log_prob(torch.tensor([[0.5, 0.5], [0.5, 1.5]]))
        tensor([0., -inf])
    """

    bounds: Tensor

    def __init__(self, dim: int, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        check_count("dim", dim)
        check_in_range("high", high, low, open_low=True)
        self.low, self.high = float(low), float(high)
        self.register_buffer(
            "bounds", torch.tensor([[self.low] * dim, [self.high] * dim]), persistent=False
        )

    @property
    def distribution(self) -> TorchDistributionMixin:
        """Independent uniforms."""
        return dist.Uniform(self.bounds[0], self.bounds[1], validate_args=False).to_event(1)

    def sample(self, num_samples: int) -> Tensor:
        """Draws from η, (num_samples, D), from torch's global generator."""
        return _draws(self.distribution, num_samples)

    @property
    def like(self) -> Tensor:
        """The bounds."""
        return self.bounds


@final
class LatentPrior(Prior):
    """η given as any torch or Pyro distribution over vectors, of continuous support.

    The distribution stays on the device it was built on: build it where the networks are.

    Args:
        distribution: of event shape (D,) and no batch shape; use ``.to_event(1)`` or
            ``torch.distributions.Independent``.

    Raises:
        ValueError: the event shape is not (D,), there is a batch shape, or it is discrete.

    Example:
        >>> prior = LatentPrior(dist.Laplace(torch.zeros(4), 1.0).to_event(1))
        >>> prior.dim, prior.sample(5).shape
        (4, torch.Size([5, 4]))
    """

    def __init__(self, distribution: torch.distributions.Distribution) -> None:
        super().__init__()
        batch, event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
        if len(event) != 1 or batch:
            raise ValueError(
                "distribution: expected event shape (D,) and batch shape (); got event "
                f"{event} and batch {batch}; wrap it with Independent(..., 1) or .to_event(1)"
            )
        # Once, and not in every density: telling it may wait for a GPU's numbers.
        self._support = None if distribution.support is None else true_support(distribution)
        if self._support is None or self._support.is_discrete:
            raise ValueError("distribution: expected a continuous one; got a discrete support")
        self._distribution = _without_validation(distribution)
        self._like = distribution.sample()

    @property
    def distribution(self) -> TorchDistributionMixin:
        """The distribution, as Pyro wants it."""
        given = self._distribution
        if type(bare(given.support)) is not type(self.support):
            # Pyro's own kernels and guides ask the law for its support.
            return _as_pyro(given, support=self._support)
        return given if isinstance(given, TorchDistributionMixin) else _as_pyro(given)

    @property
    def support(self) -> Any:
        """The torch constraint that z satisfies."""
        return bare(self._support)

    def sample(self, num_samples: int) -> Tensor:
        """Draws from η, (num_samples, D), from torch's global generator."""
        return _draws(self.distribution, num_samples)

    @property
    def like(self) -> Tensor:
        """A draw."""
        return self._like


def _without_validation(
    given: torch.distributions.Distribution,
) -> torch.distributions.Distribution:
    """A copy that answers -inf or NaN where ``given`` and its parts would raise.

    Trajectories that diverge ask for the density of any position.
    """
    clone = copy.copy(given)
    clone._validate_args = False
    for name, part in vars(given).items():
        if isinstance(part, torch.distributions.Distribution):
            setattr(clone, name, _without_validation(part))
    return clone


def _as_pyro(given: torch.distributions.Distribution, **attributes: Any) -> TorchDistributionMixin:
    """A torch distribution with the methods that Pyro adds, sharing its parameters."""
    bases = (type(given), TorchDistributionMixin)
    mixed = type(f"Pyro{type(given).__name__}", bases, attributes)
    clone: TorchDistributionMixin = object.__new__(mixed)
    clone.__dict__.update(given.__dict__)
    return clone


@final
class Base(nn.Module):
    """The base B: the law of x = G(z), z ~ η.

    Args:
        generator: G, any module (B, D) -> (B, ...).
        latent_prior: η.

    Raises:
        ValueError: ``latent_prior`` is not a prior of this package.

    Example:
        >>> base = Base(nn.Linear(2, 5), StandardNormal(2))
        >>> base(torch.zeros(3, 4, 2)).shape, base.sample(7).shape
        (torch.Size([3, 4, 5]), torch.Size([7, 5]))
    """

    def __init__(self, generator: nn.Module, latent_prior: Prior) -> None:
        super().__init__()
        if not isinstance(latent_prior, Prior):
            raise ValueError(
                "latent_prior: expected StandardNormal, UniformPrior or LatentPrior; got "
                f"{type(latent_prior).__name__}; wrap a distribution as LatentPrior(distribution)"
            )
        self.generator = generator
        self.latent_prior = latent_prior

    def forward(self, z: Tensor) -> Tensor:
        """x = G(z), (..., D) -> (..., *data shape)."""
        batch = z.shape[:-1]
        x: Tensor = self.generator(z.reshape(-1, z.shape[-1]))
        return x.reshape(*batch, *x.shape[1:])

    def sample(self, num_samples: int) -> Tensor:
        """Draws from B, (num_samples, *data shape), in eval mode and without gradient.

        The modes that the networks were left in, and BatchNorm's statistics, stay as they are.
        """
        with torch.no_grad(), evaluating(self):
            x: Tensor = self(self.latent_prior.sample(num_samples))
        return x
