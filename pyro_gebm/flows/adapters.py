"""Flows of zuko and of Pyro as generators of this package."""

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Independent, Normal, Transform

from pyro_gebm._checks import check_batch, check_count
from pyro_gebm._modes import evaluating
from pyro_gebm.base import LatentPrior, Prior, StandardNormal
from pyro_gebm.flows.flow import Flow, Inverted


@final
class ZukoFlow(Flow):
    """A flow of zuko without context, turned round: its inverse generates.

    Autoregressive ones (``MAF``, ``NSF`` with the default ``passes``) take D passes to generate
    and one for a density; ``passes=2`` makes them coupling flows.

    Args:
        flow: a ``zuko.flows.Flow``, such as ``zuko.flows.NSF(features=3)``.

    Raises:
        ValueError: it is not one, or one of another shape than (D,), or conditional.
        ImportError: zuko is not installed.

    Example:
        >>> zuko = __import__("pytest").importorskip("zuko")
        >>> ZukoFlow(zuko.flows.NSF(3, passes=2)).inverse(torch.zeros(5, 3)).log_det.shape
        torch.Size([5])
    """

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        if not is_zuko_flow(flow):
            raise ValueError(
                f"flow: expected a zuko.flows.Flow, such as zuko.flows.NSF(features=3); got "
                f"{type(flow).__name__}"
            )
        self.flow = flow
        law = self._law()
        if len(law.event_shape) != 1 or tuple(law.batch_shape):
            raise ValueError(
                f"flow: expected one over vectors (D,); got event shape {tuple(law.event_shape)} "
                f"and batch shape {tuple(law.batch_shape)}"
            )
        self._dim = int(law.event_shape[0])
        self._check_call()

    @property
    def dim(self) -> int:
        """D, of latents and data alike."""
        return self._dim

    def latent_prior(self) -> Prior:
        """The law of the flow's own latents."""
        return prior_of(self._law().base)

    def forward(self, z: Tensor) -> Tensor:
        """G(z), (B, D) -> (B, D)."""
        check_batch("z", z, (self._dim,))
        x: Tensor = self._law().transform.inv(z)
        return x

    def inverse(self, x: Tensor) -> Inverted:
        """G⁻¹(x) and log |det dz/dx|, (B, D) -> (B, D) and (B,)."""
        check_batch("x", x, (self._dim,))
        z, log_det = self._law().transform.call_and_ladj(x)
        return Inverted(z, _per_datum(log_det, x))

    def _law(self) -> Any:
        return self.flow()

    @torch.no_grad()
    def _check_call(self) -> None:
        like = next(self.flow.parameters(), torch.zeros(()))
        try:
            self.inverse(like.new_zeros(2, self._dim))
        except RuntimeError as error:  # its networks want more inputs
            raise ValueError(
                f"flow: expected one without context; calling it without failed: {error}"
            ) from error


@final
class PyroFlow(Flow):
    """Transforms of Pyro or torch, applied to latents one after the other.

    Transforms that are modules are trained, moved and saved with it; others are constants.
    Their caches, which survive a change of weights, are dropped after every call.

    Args:
        transforms: from latents to data, such as
            ``[pyro.distributions.transforms.affine_coupling(3), ...]``.
        dim: D.

    Raises:
        ValueError: there are none, one is no transform, or one has no inverse.

    Example:
        >>> from pyro.distributions import transforms
        >>> flow = PyroFlow([transforms.spline_coupling(3)], 3)
        >>> flow.inverse(torch.zeros(5, 3)).log_det.shape
        torch.Size([5])
    """

    def __init__(self, transforms: Sequence[Transform], dim: int) -> None:
        super().__init__()
        check_count("dim", dim)
        if not transforms or not all(isinstance(part, Transform) for part in transforms):
            kinds = [type(part).__name__ for part in transforms]
            raise ValueError(f"transforms: expected torch or Pyro transforms; got {kinds}")
        self._dim = dim
        self._transforms = _flat(transforms)
        self.parts = nn.ModuleList(p for p in self._transforms if isinstance(p, nn.Module))
        self._check_inverse()

    @property
    def dim(self) -> int:
        """D, of latents and data alike."""
        return self._dim

    def forward(self, z: Tensor) -> Tensor:
        """G(z), (B, D) -> (B, D)."""
        x = check_batch("z", z, (self._dim,))
        try:
            for part in self._transforms:
                x = part(x)
        finally:
            self._drop_caches()
        return x

    def inverse(self, x: Tensor) -> Inverted:
        """G⁻¹(x) and log |det dz/dx|, (B, D) -> (B, D) and (B,)."""
        check_batch("x", x, (self._dim,))
        log_det = x.new_zeros(len(x))
        try:
            for part in reversed(self._transforms):
                z = part.inv(x)
                term = _log_det(part, z, x)
                log_det = log_det - term
                x = z
        finally:
            self._drop_caches()
        return Inverted(x, log_det)

    def _drop_caches(self) -> None:
        for part in [*self._transforms, *self.parts.modules()]:
            for name in vars(part):
                if name.startswith("_cache") and name != "_cache_size":
                    setattr(part, name, (None, None) if name == "_cached_x_y" else None)

    @torch.no_grad()
    def _check_inverse(self) -> None:
        like = next(iter(self.parts.parameters()), torch.zeros(()))
        try:
            with evaluating(self):
                self.inverse(self(like.new_full((1, self._dim), 0.3)))
        except (NotImplementedError, KeyError) as error:
            raise ValueError(
                "transforms: expected ones with an inverse; one of "
                f"{[type(part).__name__ for part in self._transforms]} has none: {error}"
            ) from error


def _flat(transforms: Iterable[Transform]) -> list[Transform]:
    """Those within compositions too, whose caches are to be found."""
    parts: list[Transform] = []
    for part in transforms:
        parts += _flat(part.parts) if isinstance(part, ComposeTransform) else [part]
    return parts


def _log_det(transform: Any, z: Tensor, x: Tensor) -> Tensor:
    return _per_datum(transform.log_abs_det_jacobian(z, x), x)


def _per_datum(log_det: Tensor, x: Tensor) -> Tensor:
    # Element-wise transforms give one term per dimension.
    return log_det.sum(-1) if log_det.ndim == x.ndim else log_det


def is_zuko_flow(flow: object) -> bool:
    """Whether it is a flow of zuko.

    Raises:
        ImportError: it is neither a flow of ours nor to be recognised without zuko.
    """
    try:
        lazy = importlib.import_module("zuko.lazy")
    except ImportError as error:
        raise ImportError(
            "flow: expected NVP, NSF or another Flow of this package, a TransformedDistribution, "
            f"or a flow of zuko, which is not installed (pip install zuko); got "
            f"{type(flow).__name__}"
        ) from error
    return isinstance(flow, lazy.Flow)


def prior_of(law: Any) -> Prior:
    """A distribution as a prior; ``StandardNormal`` where it is that, so that it can be saved."""
    inner = law.base_dist if isinstance(law, Independent) else law
    if isinstance(inner, Normal):
        plain = bool((inner.loc == 0).all()) and bool((inner.scale == 1).all())
        if plain and not (inner.loc.requires_grad or inner.scale.requires_grad):
            return StandardNormal(int(law.event_shape[0])).to(inner.loc)
    return LatentPrior(law)
