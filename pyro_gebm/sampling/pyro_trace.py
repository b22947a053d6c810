"""One run of a Pyro model: its latent sites, and its log density in two parts."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_one, scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    biject_to,
    constraints,
)

Program: TypeAlias = Callable[[], Any]
"""A Pyro model with its arguments bound."""

Nodes: TypeAlias = dict[str, Any]
"""Pyro's messages by the name of their sample site."""


class Site(NamedTuple):
    """A latent site of one chain, and its way from unconstrained coordinates."""

    name: str
    like: Tensor
    """A value of the site: its shape (plates included), dtype and device."""
    support: Any
    """The torch constraint that values satisfy."""
    transform: Any
    """The torch ``Transform`` of unconstrained values to it, one to one."""
    free_shape: torch.Size
    """The shape of the unconstrained value: a simplex of K numbers has K - 1."""


class Progress(Messenger):  # type: ignore[misc]
    """Notes the site that a run has reached."""

    name: str | None = None

    def _pyro_sample(self, msg: Mapping[str, Any]) -> None:
        self.name = msg["name"]


class ModelRunError(ValueError):
    """A run of a model failed; ``__cause__`` is the model's own error."""

    def __init__(self, site: str | None, error: Exception) -> None:
        self.where = "before its first site" if site is None else f"at or after site {site!r}"
        first_line = (str(error).strip() or "no message").splitlines()[0]
        self.reason = f"{type(error).__name__}: {first_line}"
        super().__init__(
            f"model: failed {self.where}: {self.reason}; run it once by hand under "
            "pyro.poutine.trace"
        )


class SiteError(ValueError):
    """The sites of a model are not such that it can be sampled."""


def run_model(
    program: Program, values: Mapping[str, Tensor] | None = None, *, validate: bool = False
) -> Nodes:
    """Run a model once, with latent sites held at ``values``, or else drawn.

    Args:
        program: the model, arguments bound.
        values: of latent sites; the others are drawn from torch's global generator.
        validate: keep Pyro's argument checks as they are. Otherwise they are off: they read
            values, which ``vmap`` refuses, and they raise where a chain should be rejected.

    Returns:
        Pyro's messages by name, of sample sites other than plates.

    Raises:
        ValueError: the model raised, or has a subsampled plate.
    """
    holding = poutine.condition(data=dict(values or {}))
    progress = Progress()
    with validation(validate), _naming_site(progress):
        with poutine.trace() as tracer, holding, progress:
            program()
        return {name: site for name, site in tracer.trace.nodes.items() if _is_variable(site)}


def check_held(values: Mapping[str, Tensor], nodes: Nodes) -> None:
    """Raise ``ValueError`` where a run held at ``values`` has other latent sites than them."""
    check_same_sites(set(values), latent_names(nodes) | (set(values) & set(nodes)))


def split_log_prob(
    nodes: Nodes, latent: Collection[str], *, prior_only: bool = False, validate: bool = False
) -> tuple[Tensor, Tensor]:
    """The log density of a run, of one chain, in two parts.

    Returns:
        log p, the sum over the ``latent`` sites, unscaled and unmasked: the law that draws
        follow; and the sum of all else (observed sites, factors, what scale and mask change of
        latent sites), zero if ``prior_only``. Scalars, in nats.

    Raises:
        ValueError: a distribution raised.
    """
    prior: list[Tensor] = []
    rest: list[Tensor] = []
    progress = Progress()
    with validation(validate), _naming_site(progress):
        for progress.name, site in nodes.items():
            if progress.name in latent:
                prior.append(_log_prob(site, unmasked(site["fn"])).sum())
                if _is_altered(site) and not prior_only:
                    rest.append(_scaled_log_prob(site) - prior[-1])
            elif not prior_only and not _is_deterministic(site):
                rest.append(_scaled_log_prob(site))
    zero = torch.zeros(())
    return sum(prior, start=zero), sum(rest, start=zero)


def latent_names(nodes: Nodes) -> set[str]:
    """The sites of an unconditioned run that were drawn."""
    return {name for name, site in nodes.items() if not site["is_observed"]}


def deterministic_names(nodes: Nodes) -> list[str]:
    """Sites of ``pyro.deterministic``, and of reparametrised variables."""
    return [name for name, site in nodes.items() if _is_deterministic(site)]


def check_same_sites(expected: set[str], found: set[str]) -> None:
    """Raise ``ValueError`` where two runs differ in their latent sites."""
    if odd := sorted(expected ^ found):
        raise SiteError(
            f"model: expected the same latent sites in every run; site {odd[0]!r} is in some runs "
            "and not in others; sample it always, and choose what it does with torch.where"
        )


def check_same_shape(site: Site, other: Site) -> None:
    """Raise ``ValueError`` where a site has another shape or support in another run."""
    if other.like.shape != site.like.shape:
        raise SiteError(
            f"model: site {site.name!r} had shape {tuple(site.like.shape)} in one run and "
            f"{tuple(other.like.shape)} in another; expected one shape: mask what is not used"
        )
    free = site.transform.inv(site.like)
    if not torch.allclose(other.transform(free), site.transform(free), equal_nan=True):
        raise SiteError(
            f"model: the support of site {site.name!r} depends on other sites; expected a fixed "
            "one: sample on a fixed support and scale the value"
        )


def find_sites(nodes: Nodes) -> list[Site]:
    """The latent sites of an unconditioned run, in its order.

    Raises:
        ValueError: there is none, or one is discrete or has no way to unconstrained space.
    """
    names = latent_names(nodes)
    if not names:
        raise SiteError(
            "model: expected a latent sample site; every site is observed, so there is nothing "
            "to sample"
        )
    return [_describe(name, site) for name, site in nodes.items() if name in names]


def _describe(name: str, site: Mapping[str, Any]) -> Site:
    _check_continuous(name, site["fn"])
    value = site["value"].detach()
    support = _support(site["fn"])
    try:
        transform = biject_to(support)
        free = transform.inv(value)
    except NotImplementedError as error:
        raise SiteError(
            f"model: site {name!r} has support {support}, for which torch.distributions.biject_to "
            "knows no transform; write it with a distribution on a supported one"
        ) from error
    return Site(name, value, support, transform, free.shape)


def _check_continuous(name: str, fn: Any) -> None:
    if not isinstance(fn, Distribution):
        raise SiteError(
            f"model: site {name!r}: expected a distribution; got {type(fn).__name__}; sample "
            "from pyro.distributions"
        )
    if isinstance(unmasked(fn), dist.Delta):
        raise SiteError(
            f"model: site {name!r} is latent and has a Delta distribution, which has no density; "
            "write it with pyro.deterministic"
        )
    if _support(fn).is_discrete:
        raise SiteError(
            f"model: site {name!r} is discrete and latent; gradients need continuous sites: sum "
            "it out by hand (for a mixture, MixtureSameFamily) or observe it"
        )


def _support(fn: Any) -> Any:
    """The support, where torch has a transform for it; a mixture's is that of its components."""
    fn = unmasked(fn)
    if isinstance(fn, MixtureSameFamily):
        return _support(fn.component_distribution)
    if isinstance(fn, Independent):
        independent: Any = constraints.independent
        return independent(_support(fn.base_dist), fn.reinterpreted_batch_ndims)
    return fn.support


def _is_variable(site: Mapping[str, Any]) -> bool:
    """A sample site that is no plate; subsampling is refused."""
    if not site_is_subsample(site):
        return bool(site["type"] == "sample")
    size, kept = site["fn"].size, site["fn"].subsample_size
    if kept is not None and kept < size:
        raise SiteError(
            f"model: plate {site['name']!r} subsamples {kept} of {size} data, so its density would "
            "change from call to call; pass fewer data as arguments, without subsample_size"
        )
    return False


def _is_deterministic(site: Mapping[str, Any]) -> bool:
    masked = isinstance(site["fn"], dist.MaskedDistribution)
    return bool(site["is_observed"]) and masked and isinstance(unmasked(site["fn"]), dist.Delta)


def _log_prob(site: Mapping[str, Any], fn: Distribution) -> Tensor:
    value: Tensor = fn.log_prob(site["value"], *site["args"], **site["kwargs"])
    return value


def _scaled_log_prob(site: Mapping[str, Any]) -> Tensor:
    value = scale_and_mask(_log_prob(site, site["fn"]), site["scale"], site["mask"])
    return torch.as_tensor(value).sum()


def _is_altered(site: Mapping[str, Any]) -> bool:
    """Whether scale or mask make the density of a site another than that of its draws."""
    masked = site["mask"] is not None or isinstance(site["fn"], dist.MaskedDistribution)
    return masked or not is_identically_one(site["scale"])


def unmasked(fn: Any) -> Any:
    """The distribution that draws come from."""
    while isinstance(fn, dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


@contextmanager
def _naming_site(progress: Progress) -> Iterator[None]:
    """Errors within come out as one that names the site reached."""
    try:
        yield
    except SiteError:
        raise
    except Exception as error:
        raise ModelRunError(progress.name, error) from error


@contextmanager
def validation(keep: bool) -> Iterator[None]:
    """Pyro's and torch's argument checks off within, unless kept; then as they were."""
    # Pyro restores torch's flag from its own, which may differ.
    default = Distribution._validate_args
    try:
        if keep:
            yield
        else:
            with pyro.validation_enabled(False):
                yield
    finally:
        Distribution.set_default_validate_args(default)
