"""A base with a density h, and the two ways to put an energy on it."""

from typing import cast, final

import torch
from torch import Tensor, nn
from torch.distributions import TransformedDistribution

from pyro_gebm._checks import check_batch, check_one_each
from pyro_gebm._modes import evaluating
from pyro_gebm.base import Base, StandardNormal
from pyro_gebm.flows.adapters import PyroFlow, ZukoFlow, is_zuko_flow, prior_of
from pyro_gebm.flows.flow import Flow

_CHUNK = 4096  # data whose density is evaluated at once


def flow_base(flow: nn.Module | TransformedDistribution) -> Base:
    """A base with a density: a flow as the generator, under the latent law that belongs to it.

    Args:
        flow: ``NVP``, ``NSF`` or another ``Flow``, whose latents are standard normal; a flow of
            zuko without context; or a ``TransformedDistribution`` of torch or Pyro over vectors
            (D,), whose transforms have inverses.

    Returns:
        A ``Base`` like any other, whose ``generator`` is a ``Flow``.

    Raises:
        ValueError: the flow is none of these, or over something else than vectors.
        ImportError: it is of none of these kinds, and zuko, of which it may be, is not installed.

    Example:
        >>> from pyro_gebm.flows import NVP
        >>> base = flow_base(NVP(2))
        >>> base.sample(3).shape, log_prob(base, torch.zeros(4, 2)).shape
        (torch.Size([3, 2]), torch.Size([4]))
    """
    if isinstance(flow, Flow):
        like = next(flow.parameters(), torch.zeros(()))
        return Base(flow, StandardNormal(flow.dim).to(like))
    if isinstance(flow, TransformedDistribution):
        prior = prior_of(flow.base_dist)
        return Base(PyroFlow(flow.transforms, prior.dim), prior)
    if is_zuko_flow(flow):
        wrapped = ZukoFlow(flow)
        return Base(wrapped, wrapped.latent_prior())
    raise ValueError(
        "flow: expected NVP, NSF or another Flow, a flow of zuko, or a TransformedDistribution; "
        f"got {type(flow).__name__}"
    )


def log_prob(base: Base, x: Tensor) -> Tensor:
    """log h(x) = log η(z) + log |det dz/dx| at z = G⁻¹(x), the log density of a base.

    Args:
        base: one whose generator is a ``Flow``, as ``flow_base`` makes it.
        x: data, (B, D).

    Returns:
        (B,), in nats, differentiable in x and in the flow's parameters.

    Raises:
        ValueError: the base has no density, or x is not (B, D).
    """
    flow = _flow_of(base)
    z, log_det = flow.inverse(check_batch("x", x, (flow.dim,)))
    return base.latent_prior.log_prob(z) + log_det


@torch.no_grad()
def data_log_prob(base: Base, x: Tensor) -> Tensor:
    """log h(x) of data (N, D), (N,) float64, in chunks and in eval mode."""
    like = base.latent_prior.like
    with evaluating(base):
        parts = [log_prob(base, part.to(like)) for part in torch.split(x, _CHUNK)]
    return torch.cat(parts).double()


@final
class FreeEnergy(nn.Module):
    """The energy E(x) = r(x) + log h(x), which makes the model the EBM exp(-r), whatever the base.

    Q ∝ h exp(-E) = exp(-r): r is free, and the base is but a proposal for it and its Z =
    E_h[exp(-E)] = ∫ exp(-r). The other way, with any network as the energy, is the residual one:
    Q ∝ h exp(-E), where E need only say what the flow has missed. (The slides print E = r - h,
    which would give exp(-r) h²; see Arbel, Zhou and Gretton, 2021, section 3.)

    exp(-r) must be integrable, and r is to outgrow -log h far away, or importance weights from
    the base explode: add a bowl such as |x|²/2 to a network.

    The flow's parameters are constants here, and no parameters of this module: an energy step
    leaves the base alone, and a base step follows ∇_x E at fixed E, as KALE's envelope theorem
    has it. (The gradient of exp(-(r + log h)) under h in what h has in common is zero on average.)

    Args:
        r: any module (B, D) -> (B,) or (B, 1).
        base: that of the model which this is the energy of.

    Raises:
        ValueError: the base has no density.

    Example:
        >>> from pyro_gebm.flows import NVP
        >>> base, r = flow_base(NVP(2)), nn.Linear(2, 1)
        >>> energy, x = FreeEnergy(r, base), torch.ones(3, 2)
        >>> bool(torch.allclose(log_prob(base, x) - energy(x), -r(x)[:, 0]))
        True
    """

    def __init__(self, r: nn.Module, base: Base) -> None:
        super().__init__()
        _flow_of(base)
        self.r = r
        # In a tuple, and so not one of this module's: it belongs to the model.
        self._base = (base,)

    @property
    def base(self) -> Base:
        """The base whose density is taken out."""
        return self._base[0]

    def forward(self, x: Tensor) -> Tensor:
        """E(x), (B, D) -> (B,)."""
        return check_one_each("r", self.r(x), len(x)) + self._log_prob(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        """log h(x) with the flow's parameters as constants; x keeps its gradient."""
        density = _Density(self.base)
        constants = {name: value.detach() for name, value in density.named_parameters()}
        return cast(Tensor, torch.func.functional_call(density, constants, (x,)))


@final
class _Density(nn.Module):
    """``log_prob`` as a module, which ``functional_call`` wants."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return log_prob(self.base, x)


def _flow_of(base: Base) -> Flow:
    generator: object = base.generator
    if not isinstance(generator, Flow):
        raise ValueError(
            "base: expected one with a density, as flow_base(NVP(2)) makes it; got a generator "
            f"{type(generator).__name__}, whose law has none that is known"
        )
    return generator
