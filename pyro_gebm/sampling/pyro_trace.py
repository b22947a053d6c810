"""One run of a Pyro model, and its latent sites."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    Distribution,
    biject_to,
)

from pyro_gebm._supports import true_support
from pyro_gebm.sampling.pyro_lenient import Unchecked, validation

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
    unchecked = nullcontext() if validate else Unchecked()
    progress = Progress()
    with validation(validate), naming_site(progress):
        with poutine.trace() as tracer, holding, unchecked, progress:
            program()
        nodes = {name: site for name, site in tracer.trace.nodes.items() if _is_variable(site)}
    _unmask_imputed(nodes, values or {})
    return nodes


def check_held(values: Mapping[str, Tensor], nodes: Nodes) -> None:
    """Raise ``ValueError`` where a run held at ``values`` has other latent sites than them."""
    check_same_sites(set(values), latent_names(nodes) | (set(values) & set(nodes)))


def latent_names(nodes: Nodes) -> set[str]:
    """The sites of an unconditioned run that were drawn."""
    return {name for name, site in nodes.items() if not site["is_observed"]}


def deterministic_names(nodes: Nodes) -> list[str]:
    """Sites of ``pyro.deterministic``, and of reparametrised variables."""
    return [name for name, site in nodes.items() if is_deterministic(site)]


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
    """The support, of which ``biject_to`` knows the way there.

    Raises:
        SiteError: the components of a mixture have different ones.
    """
    try:
        return true_support(unmasked(fn))
    except ValueError as error:
        raise SiteError(f"model: {error}") from error


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


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """A site of ``pyro.deterministic``, or of a reparametrised variable."""
    masked = isinstance(site["fn"], dist.MaskedDistribution)
    return bool(site["is_observed"]) and masked and isinstance(unmasked(site["fn"]), dist.Delta)


def _unmask_imputed(nodes: Nodes, held: Collection[str]) -> None:
    """Give missing data of ``obs_mask`` their law at all places, also those that are not missing.

    Pyro makes a latent site of all data then, and masks its density where data are there. Its
    values would be free to go anywhere at these places, where the model does not use them; their
    law leaves what the model says of the others as it is.
    """
    for name, site in nodes.items():
        stem = name.removesuffix("_unobserved")
        is_latent = name in held or not site["is_observed"]
        if stem != name and f"{stem}_observed" in nodes and is_latent:
            site["mask"] = None


def unmasked(fn: Any) -> Any:
    """The distribution that draws come from."""
    while isinstance(fn, dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


@contextmanager
def naming_site(progress: Progress) -> Iterator[None]:
    """Errors within come out as one that names the site reached."""
    try:
        yield
    except SiteError:
        raise
    except Exception as error:
        raise ModelRunError(progress.name, error) from error
