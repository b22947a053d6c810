"""Where a density is zero: values outside a support, parameters outside their constraints.

With their checks off, distributions go on with their formula there. ``Exponential`` then has a
density at negative values that grows without bound, and ``Bernoulli`` one at probability 5.
"""

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
)

from pyro_gebm._supports import all_right

Mask: TypeAlias = Tensor | bool | None

CHECKED = tuple(
    type(constraint)
    for constraint in (
        constraints.positive,
        constraints.nonnegative,
        constraints.less_than(0.0),
        constraints.unit_interval,
        constraints.half_open_interval(0.0, 1.0),
        constraints.boolean,
        constraints.nonnegative_integer,
        constraints.integer_interval(0, 1),
        constraints.multinomial(1),
        constraints.integer,
        constraints.ordered_vector,
        constraints.positive_ordered_vector,
    )
)
"""Not those that every real number meets, that have a tolerance which rounding may exceed, or
that matrices meet whenever their Cholesky factor is finite."""

SIMPLEX = type(constraints.simplex)

LOGARITHM_OF: dict[Any, str] = {
    torch.distributions.Cauchy.log_prob: "scale",
    torch.distributions.Exponential.log_prob: "rate",
    torch.distributions.Gamma.log_prob: "rate",
    torch.distributions.Gumbel.log_prob: "scale",
    torch.distributions.HalfCauchy.log_prob: "scale",
    torch.distributions.HalfNormal.log_prob: "scale",
    torch.distributions.Laplace.log_prob: "scale",
    torch.distributions.Normal.log_prob: "scale",
    torch.distributions.StudentT.log_prob: "scale",
}
"""Parameters whose logarithm makes the density NaN where they are not positive, without a check."""


def is_possible(
    fn: Distribution, value: Any, mask: Mask = None, *, held: bool, in_batch: bool
) -> Tensor | None:
    """Whether a site has a density above zero, a scalar; ``None`` where it must have one.

    Args:
        fn: the distribution.
        value: of the site.
        mask: of the site: where it is ``False`` anything is possible.
        held: the value is in the support; only parameters need to be checked.
        in_batch: under ``vmap``. What is the same for all chains is then left out: it does
            not depend on latent sites, so that the first run would have found it.
    """
    with torch.no_grad():
        found = [_either(ok, mask).all() for ok in _checks(fn, value, held)]
        kept = [ok for ok in found if is_batchedtensor(ok) or not in_batch]
    return reduce(torch.logical_and, kept) if kept else None


def _either(ok: Tensor, mask: Mask) -> Tensor:
    """``ok`` where the mask is on; all where they have shapes that do not fit."""
    if mask is None or mask is True:
        return ok
    try:
        return ok | ~torch.as_tensor(mask, dtype=torch.bool, device=ok.device)
    except RuntimeError:
        return torch.ones_like(ok)


def _checks(fn: Distribution, value: Any, held: bool) -> Iterator[Tensor]:
    """What must hold, by element of the batch of ``fn``; only of parameters if no value."""
    if isinstance(fn, dist.MaskedDistribution):
        yield from (_either(ok, fn._mask) for ok in _checks(fn.base_dist, value, held))
    elif isinstance(fn, dist.torch_distribution.ExpandedDistribution):
        yield from _checks(fn.base_dist, value, held)
    elif isinstance(fn, Independent):
        inner = _checks(fn.base_dist, value, held)
        yield from (all_right(ok, fn.reinterpreted_batch_ndims) for ok in inner)
    elif isinstance(fn, MixtureSameFamily):
        yield from _of_mixture(fn, None if held else value)
    else:
        yield from _of_parameters(fn)
        if value is not None and not held:
            yield from _check(_support(fn), value)
        yield from _of_base(fn, None if held else value)


def _of_base(fn: Distribution, value: Any) -> Iterator[Tensor]:
    base = getattr(fn, "base_dist", None)
    if not isinstance(base, Distribution):
        return
    # Others have a formula of their own, that may hold where the base's does not.
    standard = getattr(type(fn), "log_prob", None) is TransformedDistribution.log_prob
    if value is None or not standard or not _can_fail(base):
        yield from _checks(base, None, held=False)
        return
    for transform in reversed(fn.transforms):  # type: ignore[attr-defined]
        value = transform.inv(value)
    yield from _checks(base, value, held=False)


def _can_fail(fn: Distribution) -> bool:
    """Whether there are values outside its support."""
    inner = getattr(fn, "base_dist", None)
    return _is_checked(_support(fn)) or (isinstance(inner, Distribution) and _can_fail(inner))


def _of_mixture(fn: MixtureSameFamily, value: Any) -> Iterator[Tensor]:
    """Parameters of all components; the value is in the support of at least one of them."""
    yield from _checks(fn.mixture_distribution, None, held=False)
    component = fn.component_distribution
    yield from (all_right(ok, 1) for ok in _checks(component, None, held=False))
    if value is not None:
        padded = value.unsqueeze(-1 - len(fn.event_shape))
        yield from (ok.any(-1) for ok in _check(_support(component), padded))


def _of_parameters(fn: Distribution) -> Iterator[Tensor]:
    harmless = LOGARITHM_OF.get(type(fn).log_prob)
    for name, constraint in _constraints(fn).items():
        if name == harmless or not _is_checked(constraint) or not _is_given(fn, name):
            continue
        for ok in _check(constraint, getattr(fn, name)):
            yield all_right(ok, max(0, ok.ndim - len(fn.batch_shape)))


def _is_given(fn: Distribution, name: str) -> bool:
    """Whether reading a parameter computes nothing: not the ``logits`` of ``probs``."""
    lazy = isinstance(getattr(type(fn), name, None), torch.distributions.utils.lazy_property)
    return name in vars(fn) or (hasattr(type(fn), name) and not lazy)


def _constraints(fn: Distribution) -> Mapping[str, Any]:
    """Of the parameters; none where they are not known."""
    try:
        return fn.arg_constraints
    except (NotImplementedError, AttributeError):
        return {}


def _support(fn: Distribution) -> Any:
    """The support; ``None`` where it is not known."""
    try:
        return fn.support
    except (NotImplementedError, AttributeError, ValueError):
        return None


def _is_checked(constraint: Any) -> bool:
    if isinstance(constraint, constraints.independent):
        return _is_checked(constraint.base_constraint)
    return isinstance(constraint, (*CHECKED, SIMPLEX))


def _check(constraint: Any, value: Any) -> Iterator[Tensor]:
    """One mask; none of a constraint that need not or cannot be checked."""
    if not isinstance(value, Tensor) or not _is_checked(constraint):
        return
    if isinstance(constraint, constraints.independent):
        inner = _check(constraint.base_constraint, value)
        yield from (all_right(ok, constraint.reinterpreted_batch_ndims) for ok in inner)
    elif isinstance(constraint, SIMPLEX):
        # That the sum is one is a matter of rounding, and most distributions divide by it.
        yield (value >= 0).all(-1)
    else:
        yield constraint.check(value)
