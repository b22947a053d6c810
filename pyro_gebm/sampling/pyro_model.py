"""Any Pyro model as a target: its log density in unconstrained coordinates, for all chains."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.pyro_density import (
    PyroDensity,
    map_sites,
    over_rows,
    push_in_chunks,
)
from pyro_gebm.sampling.pyro_lenient import AlgebraError, LenientAlgebra, leniently
from pyro_gebm.sampling.pyro_prior import prior_sampler
from pyro_gebm.sampling.pyro_terms import impossible_names, split_log_prob
from pyro_gebm.sampling.pyro_trace import (
    ModelRunError,
    Nodes,
    Program,
    Site,
    check_same_shape,
    check_same_sites,
    deterministic_names,
    find_sites,
    latent_names,
    run_model,
)
from pyro_gebm.sampling.recorded import Recorded
from pyro_gebm.sampling.target import Target

MAX_FIRST_RUNS = 100
"""Forward runs before a model is called broken: draws of a heavy tail may overflow, and a wide
prior may seldom be such that the data are possible."""

BY_CHANCE = (ValueError, AlgebraError)
"""What a model raises at some draws, though it may be sound."""

RELATIVE_TOLERANCE = {torch.float64: 1e-8}
"""How far values in a batch may be from values one by one; 1e-4 in other dtypes."""

RANDOM_HINT = (
    "draw no random numbers outside of sample sites: no dropout, and no site hidden by "
    "pyro.poutine.block"
)

Args = tuple[Any, ...]


def is_pyro_model(model: object, args: Args, kwargs: Mapping[str, Any]) -> bool:
    """Whether ``model`` is a Pyro model rather than a GEBM or a potential function.

    A Pyro model can be called as ``model(*args, **kwargs)``; a potential function wants one
    positional tensor, so without further arguments it cannot.

    Args:
        model: what the user gave.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        ValueError: there are arguments, and ``model`` does not take them.

    Example:
        >>> is_pyro_model(lambda y: None, (torch.zeros(3),), {})
        True
        >>> is_pyro_model(lambda z: 0.5 * z.square().sum(-1), (), {})
        False
    """
    given = bool(args or kwargs)
    if isinstance(model, GEBM) and given:
        raise ValueError(
            f"model: a GEBM takes no further arguments; got {', '.join(kwargs) or len(args)}; for "
            "data wrap it in a Pyro model that calls its model() and observes them"
        )
    if isinstance(model, GEBM) or not callable(model):
        return False
    signature = _signature(model)
    if signature is None:
        return given
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        if given:
            raise ValueError(
                f"model: {_name(model)}{signature} cannot be called with the arguments given: "
                f"{error}; pass to sample() what the model takes"
            ) from error
        return False
    return True


def _signature(model: Callable[..., Any]) -> inspect.Signature | None:
    """The signature, or ``None`` where there is none or it says nothing."""
    # A module's own __call__ takes anything.
    called = model.forward if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    silent = kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    opaque = silent and isinstance(model, nn.Module) and not isinstance(model, PyroModule)
    return None if opaque else signature


def _name(model: Callable[..., Any]) -> str:
    return getattr(model, "__name__", type(model).__name__)


def pyro_target(
    model: Callable[..., Any],
    args: Args,
    kwargs: Mapping[str, Any],
    *,
    beta: float = 1.0,
    batched: bool = True,
    recorded: bool = True,
) -> Target:
    """The posterior of a Pyro model, as kernels see it.

    Positions u (C, D') are the flattened unconstrained values of all latent sites, side by
    side in the order of a run; x = T(u) with T torch's ``biject_to`` of each support. With
    p(x) the product of the densities of the latent sites and L(x) that of all other terms
    (observed sites, factors, and what scale and mask change),

        U_0(u) = -log p(T(u)) - log |det dT/du|,    U_β(u) = U_0(u) - β log L(T(u)),

    in nats. The reference is the law of U_0: what the model draws when it runs forward. A
    GEBM within contributes its prior to p and its energy to L.

    Where a value is outside of the support of its site, or a parameter outside of its
    constraint, U is infinite: what Pyro's checks would raise at rejects that chain. So does a
    matrix that has no Cholesky factor.

    Args:
        model: called as ``model(*args, **kwargs)``; its latent sites are continuous and the
            same in every run.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        beta: inverse temperature β of the likelihood and the factors; 1 is the posterior.
        batched: evaluate all chains at once with ``torch.func.vmap``; ``False`` takes one
            after the other and allows data-dependent control flow.
        recorded: call Pyro only in the first evaluations of a batch, see ``Recorded``; ``False``
            for a model that depends on what changes between evaluations. Only if ``batched``.

    Raises:
        ValueError: the model cannot be run; a site is discrete, subsampled, or not in every
            run, or its support depends on other sites; there is no latent site; or the
            chains cannot be evaluated together.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("y", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=y)
        >>> target = pyro_target(model, (torch.ones(3),), {})
        >>> target.potential_fn(torch.zeros(4, 1)).shape, target.shapes
        (torch.Size([4]), {'scale': ()})
    """
    program = partial(model, *args, **kwargs)
    with torch.no_grad():
        with LenientAlgebra(only_look=True) as algebra:
            first, unrestricted = _first_run(program)
        # One chain alone may raise, and the model may have an answer to that.
        is_lenient = batched and algebra.was_used
        program = partial(leniently, program) if is_lenient else program
        sites, pushed = find_sites(first), deterministic_names(first)
        density = PyroDensity(program, tuple(sites), tuple(pushed), unrestricted, is_lenient)
        draws = torch.stack([density.free(first), density.free(_second_run(program, sites))])
    energy = partial(density.energy, beta=beta)
    _check_evaluation(energy, draws, batched)

    def potential(of_chain: Callable[[Tensor], Tensor]) -> PotentialFn:
        of_all = over_rows(of_chain, batched)
        return Recorded(of_all) if batched and recorded else of_all

    return Target(
        potential_fn=potential(energy),
        to_sites=lambda u: map_sites(over_rows(density.constrain, batched), u),
        from_sites=density.free_chains,
        shapes={site.name: tuple(site.like.shape) for site in sites},
        like=draws[0],
        reference=Reference(
            sample=prior_sampler(density, draws, batched),
            potential_fn=potential(partial(density.energy, beta=0.0)),
        ),
        push=partial(push_in_chunks, over_rows(density.push, batched)) if density.pushed else None,
    )


def _first_run(program: Program) -> tuple[Nodes, frozenset[str]]:
    """One forward run under Pyro's own checks, whose complaints are the clearest.

    Returns:
        The run, and the sites whose values or parameters were impossible in every run though
        nothing complained: the user has their checks off, and wants their densities as they are.
    """

    def run() -> Nodes:
        nodes = run_model(program, validate=True)
        find_sites(nodes)
        split_log_prob(nodes, latent_names(nodes), validate=True)
        return nodes

    nodes = _tried(run)
    impossible = impossible_names(nodes)
    for _ in range(MAX_FIRST_RUNS):
        if not impossible:
            break
        nodes = _tried(run)
        impossible &= impossible_names(nodes)
    return nodes, frozenset(impossible)


def _tried(run: Callable[[], Nodes]) -> Nodes:
    """A run, after others that raised."""
    for _ in range(MAX_FIRST_RUNS - 1):
        try:
            return run()
        except ModelRunError as error:
            if not isinstance(error.__cause__, BY_CHANCE):
                raise
    return run()


def _second_run(program: Program, sites: Sequence[Site]) -> Nodes:
    """Another one, with the same sites of the same shapes and supports."""
    nodes = _tried(lambda: run_model(program))
    others = {site.name: site for site in find_sites(nodes)}
    check_same_sites({site.name for site in sites}, set(others))
    for site in sites:
        check_same_shape(site, others[site.name])
    return nodes


def _check_evaluation(energy: Callable[[Tensor], Tensor], draws: Tensor, batched: bool) -> None:
    """The potential and its gradient can be had, and are the same one by one and again."""
    with torch.no_grad():
        expected = over_rows(energy, batched=False)(draws)
    values, error = _differentiate(energy, draws, batched)
    if error is not None:
        # What fails chain by chain too is not the fault of the batch.
        alone = _differentiate(energy, draws, batched=False)[1] if batched else error
        raise _refusal(alone or error, batched=alone is None) from (alone or error)
    if not _agree(values, expected):
        how = "in one batch and chain by chain" if batched else "when it is evaluated twice"
        raise ValueError(
            f"model: expected the same log density {how}; got {(-expected).tolist()} and "
            f"{(-values).tolist()}; " + ("use kernel=pyro.infer.NUTS" if batched else RANDOM_HINT)
        )


def _agree(values: Tensor, expected: Tensor) -> bool:
    """Whether the same rows are finite, and have the same values but for rounding."""
    finite = expected.isfinite()
    tolerance = RELATIVE_TOLERANCE.get(expected.dtype, 1e-4)
    allowed = tolerance * (1 + expected[finite].abs().sum())
    near = (values - expected)[finite].abs() <= allowed
    return bool((values.isfinite() == finite).all() and near.all())


def _differentiate(
    energy: Callable[[Tensor], Tensor], draws: Tensor, batched: bool
) -> tuple[Tensor, Exception | None]:
    """The energies of the draws, and what kept them or their gradient from being had."""
    u, values = draws.clone().requires_grad_(), draws.new_empty(0)
    try:
        with torch.enable_grad():
            values = over_rows(energy, batched)(u)
            torch.autograd.grad(values.sum(), u)
    except (ValueError, RuntimeError) as error:
        return values, error
    return values, None


def _refusal(error: Exception, batched: bool) -> ValueError:
    where, reason = "in the gradient", str(error).splitlines()[0]
    if isinstance(error, ModelRunError):
        where, reason = error.where, error.reason
    if not batched:
        return ValueError(
            f"model: expected a differentiable log density; failed {where}: {reason}; compute it "
            "in torch, without torch.no_grad and numpy"
        )
    return ValueError(
        f"model: its chains cannot be evaluated in one batch: {where} ({reason}); write branches "
        "on values with torch.where, without .item(), .data and numpy; put values together with "
        "torch.stack, not in place; draw no random numbers outside of sample sites; or run chain "
        "by chain with kernel=pyro.infer.NUTS"
    )
