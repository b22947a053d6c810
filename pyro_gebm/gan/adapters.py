"""Wrappers that give networks from elsewhere the shapes that a GEBM expects."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from pyro_gebm._checks import check_finite, check_in_range, check_sizes

Label = int | Tensor
"""A class's number, or its one-hot or embedding vector (K,)."""


@final
class GeneratorAdapter(nn.Module):
    """A generator of another house, as one from vectors z (B, D) to data (B, ...).

    z is put on the sphere if asked for, reshaped to what the network wants, passed on with a
    label if it is conditional, and the data are picked from what comes back:
    x = select(generator(reshape(r z/|z|), label)). Modules that want yet other arguments are
    wrapped by three lines of your own: any module (B, D) -> (B, ...) will do.

    Class-conditional generators: with ``label`` the GEBM is that of one class, and a data set's
    worth is a GEBM for each. With ``class_probs`` the class is sampled, too: one more latent,
    the last of z, is cut at the quantiles of N(0, 1) that give the classes their shares, so that
    under ``StandardNormal(D + 1)`` the base is exactly the mixture. (A discrete latent would
    have no place in η, which is continuous.) The energy jumps where the class does, and its
    gradient knows nothing of it: sample by ``IMH``, ``mh_gan`` or ``rejection_sampling``. HMC
    and its kin stay right, but warm-up takes the jumps for too long a step and shortens it
    without end; unadjusted kernels ignore the energy between classes. A discriminator that
    wants the label needs a fixed one.

    Args:
        generator: the module; TorchScript will do. Not copied.
        latent_shape: what it wants of one latent, such as (100, 1, 1); ``None`` passes z on.
        sphere_radius: r of latents on a sphere: 1, or √D where networks normalise by the mean
            square. Under ``StandardNormal(D)``, z/|z| is exactly uniform on it, and |z| is a
            latent that nothing depends on. ``None`` leaves z alone.
        label: of all data: a whole number, passed on as (B,) int64, or a vector (K,), passed on
            as (B, K).
        class_probs: shares of the classes, (K,), of a label that is sampled; the prior is then
            ``StandardNormal(D + 1)`` for a network of D latents.
        select: picks x from an output that is no tensor: ``lambda out: out["sample"]``.

    Raises:
        ValueError: an option is out of range, or there are both kinds of label; on a call, if z
            does not fill ``latent_shape``, or no batch of data comes back.

    Example:
        >>> dcgan = nn.ConvTranspose2d(100, 3, 4)
        >>> GeneratorAdapter(dcgan, latent_shape=(100, 1, 1))(torch.zeros(5, 100)).shape
        torch.Size([5, 3, 4, 4])
    """

    label: Tensor | None
    cuts: Tensor | None

    def __init__(
        self,
        generator: nn.Module,
        *,
        latent_shape: Sequence[int] | None = None,
        sphere_radius: float | None = None,
        label: Label | None = None,
        class_probs: Tensor | Sequence[float] | None = None,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if label is not None and class_probs is not None:
            raise ValueError("label, class_probs: expected one of them; got both")
        if sphere_radius is not None:
            check_in_range("sphere_radius", sphere_radius, 0.0, open_low=True)
        self.generator = as_module("generator", generator)
        self.latent_shape = (
            None if latent_shape is None else tuple(check_sizes("latent_shape", latent_shape, 1))
        )
        self.sphere_radius = sphere_radius
        self.select = select
        self.register_buffer("label", _as_label(label), persistent=False)
        self.register_buffer("cuts", _as_cuts(class_probs), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """x of latents (B, D), (B, *data shape)."""
        label = None if self.label is None else _for_batch(self.label, len(z))
        if self.cuts is not None:
            # A share of zero has two equal cuts, and no latent between them.
            label = (z[:, -1:] > self.cuts.to(z.dtype)).sum(1)
            z = z[:, :-1]
        if self.sphere_radius is not None:
            z = z * (self.sphere_radius / torch.linalg.vector_norm(z, dim=1, keepdim=True))
        z = self._shaped(z)
        output = self.generator(z) if label is None else self.generator(z, label)
        return _selected("generator", output, self.select, len(z))

    def _shaped(self, z: Tensor) -> Tensor:
        if self.latent_shape is None:
            return z
        wanted, classes = math.prod(self.latent_shape), int(self.cuts is not None)
        if wanted != z.shape[1]:
            raise ValueError(
                f"z: expected {wanted + classes} latents for latent_shape {self.latent_shape}"
                f"{', one of them for the class' * classes}; got {z.shape[1] + classes}; give a "
                f"prior of that dimension, such as StandardNormal({wanted + classes})"
            )
        return z.reshape(len(z), *self.latent_shape)


@final
class DiscriminatorAdapter(nn.Module):
    """A discriminator of another house, as one from data (B, ...) to one number each.

    Args:
        discriminator: the module; TorchScript will do. Not copied.
        label: of all data, where it wants one; as in ``GeneratorAdapter``.
        select: picks the numbers (B,) from what comes back: ``lambda out: out.logits``, or for
            one that judges patches ``lambda out: out.mean((1, 2, 3))``.

    Raises:
        ValueError: on a call, if no batch comes back.

    Example:
        >>> class Judge(nn.Module):
        ...     def forward(self, x):
        ...         return {"logits": x.sum(1)}
        >>> DiscriminatorAdapter(Judge(), select=lambda out: out["logits"])(torch.ones(2, 3))
        tensor([3., 3.])
    """

    label: Tensor | None

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        label: Label | None = None,
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.discriminator = as_module("discriminator", discriminator)
        self.select = select
        self.register_buffer("label", _as_label(label), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """d(x) of data (B, ...), (B,) or (B, 1)."""
        if self.label is None:
            output = self.discriminator(x)
        else:
            output = self.discriminator(x, _for_batch(self.label, len(x)))
        return _selected("discriminator", output, self.select, len(x))


@final
class _FrozenScript(nn.Module):
    """TorchScript after ``torch.jit.freeze``, which has no mode, and constants for parameters."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._script = (script,)  # hidden from modules(), whose modes are set and restored

    def forward(self, *args: Tensor) -> Any:
        return self._script[0](*args)


def as_module(role: str, given: nn.Module) -> nn.Module:
    """Return ``given`` as a module that can be put into eval mode.

    Raises:
        ValueError: it is no module.
    """
    module: object = given
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{role}: expected an nn.Module; got {type(module).__name__}; wrap a function in a "
            "module whose forward calls it"
        )
    if isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "training"):
        return _FrozenScript(module)
    return module


def _selected(role: str, output: Any, select: Callable[[Any], Tensor] | None, batch: int) -> Tensor:
    chosen: object = output if select is None else select(output)
    if not isinstance(chosen, Tensor):
        raise ValueError(
            f"{role}: expected a tensor of {batch} rows; got {_described(chosen)}; give "
            "select=, a function that picks it from the output"
        )
    if chosen.ndim == 0 or len(chosen) != batch:
        raise ValueError(
            f"{role}: expected {batch} rows for a batch of {batch}; got shape "
            f"{tuple(chosen.shape)}; give select= a function that returns one row for each"
        )
    return chosen


def _described(output: object) -> str:
    """What came instead of a tensor, with the names that one can pick from."""
    kind = type(output).__name__
    if isinstance(output, dict):
        return f"{kind} with {', '.join(map(repr, output))}"
    return f"{kind} of {len(output)}" if isinstance(output, tuple | list) else kind


def _as_label(label: Label | None) -> Tensor | None:
    if label is None:
        return None
    if isinstance(label, Tensor) and label.ndim == 1:
        return label.detach()
    whole: Any = label
    if isinstance(whole, bool) or not isinstance(whole, numbers.Integral) or int(whole) < 0:
        got = f"shape {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
        raise ValueError(
            f"label: expected a whole number >= 0 or a vector (K,), the same for all data; got "
            f"{got}; for a sampled class give class_probs"
        )
    return torch.tensor(int(whole))


def _for_batch(label: Tensor, batch: int) -> Tensor:
    return label.expand(batch, *label.shape)


def latent_hint(generator: nn.Module, dim: int) -> str:
    """What to do about a generator that does not take D latents."""
    if isinstance(generator, GeneratorAdapter) and generator.cuts is not None:
        return (
            f"of {dim} latents the last is the class's, and the network got {dim - 1}: for one of "
            "D latents give StandardNormal(D + 1)"
        )
    return (
        "for other shapes or a label wrap it: GeneratorAdapter(generator, latent_shape=..., "
        "label=...)"
    )


def _as_cuts(class_probs: Tensor | Sequence[float] | None) -> Tensor | None:
    """Quantiles of N(0, 1) between the classes, (K - 1,)."""
    if class_probs is None:
        return None
    try:
        shares = torch.as_tensor(class_probs).detach().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"class_probs: expected shares (K,) >= 0 that sum to 1; got {class_probs!r}; give a "
            "tensor or a list of numbers"
        ) from error
    check_finite("class_probs", shares)
    total = float(shares.sum())
    if shares.ndim != 1 or bool((shares < 0).any()) or abs(total - 1) > 1e-4:
        raise ValueError(
            f"class_probs: expected shares (K,) >= 0 that sum to 1; got shape "
            f"{tuple(shares.shape)} and sum {total:.4g}"
        )
    cuts: Tensor = torch.special.ndtri((shares.cumsum(0) / total)[:-1])
    return cuts
