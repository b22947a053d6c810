"""Where distributions have their mass: torch's ``support``, put right where it says too much."""

import copy
import math
from collections.abc import Iterable
from functools import reduce
from typing import Any, final

import torch
from pyro.distributions import SineBivariateVonMises, SineSkewed
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    VonMises,
    biject_to,
    constraints,
    transform_to,
)
from torch.distributions.transforms import (
    ComposeTransform,
    IndependentTransform,
    ReshapeTransform,
    Transform,
)

CIRCULAR = (VonMises, SineBivariateVonMises, SineSkewed)
"""Densities that repeat themselves along the line, which torch calls their support."""


@final
class Image(constraints.Constraint):
    """What a bijection makes of the points of a support; ``biject_to`` knows the way there.

    Args:
        inner: the support.
        transform: the bijection, of which a part of the domain is in ``inner``.
    """

    def __init__(self, inner: Any, transform: Transform) -> None:
        self.inner, self.transform = inner, transform
        self.is_discrete = inner.is_discrete
        given, wanted = inner.event_dim, transform.domain.event_dim
        self.event_dim = transform.codomain.event_dim + max(given - wanted, 0)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether events are in it, ``value`` less its ``event_dim`` last dimensions."""
        outer: Any = self.transform.codomain
        more = self.event_dim - outer.event_dim
        before = self.transform.domain.event_dim + more - self.inner.event_dim
        # The way back may end inside from points that nothing leads to: (-1)² for √.
        reached = all_right(outer.check(value), more)
        return reached & all_right(self.inner.check(self.transform.inv(value)), before)

    def __repr__(self) -> str:
        return f"{self.transform} of {self.inner}"


def all_right(ok: Tensor, dims: int) -> Tensor:
    """Whether all hold along the rightmost dimensions, or along what there is of them."""
    dims = min(dims, ok.ndim)
    return ok.flatten(-dims).all(-1) if dims else ok


def _onto_image(support: Image) -> Transform:
    return ComposeTransform([biject_to(support.inner), support.transform])


for registry in (biject_to, transform_to):
    registry.register(Image, _onto_image)  # type: ignore[no-untyped-call]


def true_support(distribution: Distribution) -> Any:
    """The constraint that draws satisfy and values outside do not, which ``biject_to`` takes.

    To torch the support of a transformed distribution is all that its last transform could
    give: every number for an Exponential that is moved by one. An angle is in [-π, π], as drawn.

    Raises:
        ValueError: the components of a mixture have different supports.

    Example:
        >>> moved = torch.distributions.AffineTransform(-1.0, 1.0)
        >>> law = TransformedDistribution(torch.distributions.Exponential(1.0), moved)
        >>> z = torch.tensor([-1.5, -0.5])
        >>> law.support.check(z), true_support(law).check(z)
        (tensor([True, True]), tensor([False,  True]))
    """
    given: Any = distribution
    if isinstance(given, ExpandedDistribution | MaskedDistribution):
        return true_support(given.base_dist)
    if isinstance(given, Independent):
        return _independent(true_support(given.base_dist), given.reinterpreted_batch_ndims)
    if isinstance(given, MixtureSameFamily):
        return _of_components(given.component_distribution)
    if isinstance(given, CIRCULAR):
        interval: Any = constraints.interval
        return _independent(interval(-math.pi, math.pi), len(given.event_shape))
    if not isinstance(given, TransformedDistribution) or _says_its_own(given):
        return given.support
    support = reduce(_moved, _flat(given.transforms), true_support(given.base_dist))
    return _independent(support, len(given.event_shape) - support.event_dim)


def bare(support: Any) -> Any:
    """What a support says of every component of an event."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def onto(support: Any, dim: int) -> Any:
    """The transform from unconstrained vectors onto the vectors of D numbers of a support."""
    transform: Any = biject_to(support)
    shape = transform.inverse_shape(torch.Size([dim]))
    if len(shape) == 1:
        return transform
    # A law over matrices was reshaped to one over vectors; chains move in vectors.
    flat = ReshapeTransform(torch.Size([shape.numel()]), shape)
    return ComposeTransform([flat, transform])


def is_real(support: Any) -> bool:
    """Every real number, or vector, is in it."""
    return type(bare(support)) is type(constraints.real)


def _independent(support: Any, dims: int) -> Any:
    make: Any = constraints.independent
    return make(support, dims) if dims > 0 else support


def _says_its_own(distribution: TransformedDistribution) -> bool:
    """One such as HalfNormal or Weibull, whose class knows its support."""
    own: object = type(distribution).support
    return own is not TransformedDistribution.support


def _flat(transforms: Iterable[Transform]) -> list[Transform]:
    """Those within compositions too, whose codomain is again that of the last alone."""
    parts: list[Transform] = []
    for part in transforms:
        if isinstance(part, ComposeTransform):
            parts += _flat(part.parts)
        elif isinstance(part, IndependentTransform):
            dims = part.reinterpreted_batch_ndims
            parts += [IndependentTransform(p, dims) for p in _flat([part.base_transform])]
        else:
            parts.append(part)
    return parts


def _moved(support: Any, transform: Transform) -> Any:
    """The support after a transform."""
    if not transform.bijective or _covers(support, transform.domain):
        return transform.codomain
    return Image(support, transform)


def _covers(support: Any, domain: Any) -> bool:
    """Whether the domain is within the support, so that the transform gives all it can."""
    support, domain = bare(support), bare(domain)
    if support is domain:
        return True
    have, need = _walls(support), _walls(domain)
    if have is None or need is None or support.is_discrete:
        return False
    return bool((have[0] <= need[0]).all() & (have[1] >= need[1]).all())


def _walls(support: Any) -> tuple[Tensor, Tensor] | None:
    """Lower and upper bound; ``None`` if it is no interval."""
    named = hasattr(support, "lower_bound") or hasattr(support, "upper_bound")
    if not named and not is_real(support):
        return None
    low, high = (
        getattr(support, "lower_bound", -torch.inf),
        getattr(support, "upper_bound", torch.inf),
    )
    return torch.as_tensor(low), torch.as_tensor(high)


def _of_components(components: Distribution) -> Any:
    """The support that the components of a mixture share."""
    support, dims = true_support(components), len(components.event_shape)
    common = copy.copy(bare(support))
    walls = {name: wall for name, wall in vars(common).items() if _is_one_each(wall, dims)}
    if isinstance(common, Image):
        if any(_is_one_each(part, dims) for part in _parts(common)):
            raise _different()
        return support
    for name, wall in walls.items():
        first = wall.select(-1 - dims, 0)
        if not bool((wall == first.unsqueeze(-1 - dims)).all()):
            raise _different()
        setattr(common, name, first)
    return _independent(common, dims - common.event_dim) if walls else support


def _is_one_each(part: object, dims: int) -> bool:
    """Whether it is a tensor with more than the dimensions of an event."""
    return isinstance(part, Tensor) and part.ndim > dims


def _parts(image: Image) -> list[object]:
    """What the transforms of an image, and its first support, are made of."""
    inner = bare(image.inner)
    deeper = _parts(inner) if isinstance(inner, Image) else list(vars(inner).values())
    return [*vars(image.transform).values(), *deeper]


def _different() -> ValueError:
    return ValueError(
        "distribution: expected a mixture whose components have one support; got different ones, "
        "or a transform for each; transform the mixture instead of its components"
    )
