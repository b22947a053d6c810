"""``from_gan``: a generator and its discriminator, as a GEBM of the right sign and scale."""

import copy
import warnings
from typing import final

import torch
from torch import Tensor, nn

from pyro_gebm._checks import check_choice, check_count, check_finite, check_in_range
from pyro_gebm.base import Base, Prior
from pyro_gebm.gan.adapters import as_module, latent_hint
from pyro_gebm.metrics.partition import draw_latents, importance_log_z
from pyro_gebm.model import GEBM

LOSSES = ("logistic", "hinge", "wasserstein", "kale")
OUTPUTS = ("logit", "probability")

_PROBES = 4  # latents that are tried before a GEBM is handed out


@final
class DiscriminatorEnergy(nn.Module):
    """E(x) = factor · d(x), of a discriminator's output or of its log odds.

    Args:
        discriminator: d, (B, ...) -> one number for each datum: (B,), (B, 1) or (B, 1, 1, 1).
        factor: -1 where d is high on data.
        output: "logit" takes d as it is, "probability" its log odds.

    Raises:
        ValueError: on a call, if there is not one number for each datum.

    Example:
        >>> judge = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid())
        >>> _ = nn.init.ones_(judge[0].weight), nn.init.zeros_(judge[0].bias)
        >>> DiscriminatorEnergy(judge, -1.0, "probability")(torch.tensor([[2.0]])).detach()
        tensor([-2.0000])
    """

    factor: Tensor

    def __init__(
        self, discriminator: nn.Module, factor: float | Tensor = -1.0, output: str = "logit"
    ) -> None:
        super().__init__()
        self.discriminator = as_module("discriminator", discriminator)
        self.output = check_choice("output", output, OUTPUTS)
        self.register_buffer("factor", torch.as_tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        """E of data (B, ...), (B,)."""
        value = _one_each(self.discriminator(x), len(x))
        if self.output == "probability":
            # ±inf where the sigmoid has rounded to 0 or 1, not a clamped number.
            value = torch.logit(value)
        return self.factor * value


@final
class ScaledEnergy(nn.Module):
    """a E(x): an energy at another scale.

    Args:
        energy: E.
        factor: a.
    """

    factor: Tensor

    def __init__(self, energy: nn.Module, factor: float | Tensor) -> None:
        super().__init__()
        self.energy = energy
        self.register_buffer("factor", torch.as_tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        """The energies, of the shape that E gives."""
        value: Tensor = self.factor * self.energy(x)
        return value


def from_gan(
    generator: nn.Module,
    discriminator: nn.Module,
    prior: Prior,
    loss: str = "logistic",
    *,
    output: str = "logit",
    scale: float | None = None,
    log_partition: float | str | None = None,
    num_latents: int = 8192,
    seed: int | None = None,
) -> GEBM:
    """A trained GAN as a GEBM: the generator is the base, the discriminator gives the energy.

    * "logistic" (also non-saturating): the logit of an optimal discriminator is the log density
      ratio log p/b of data and base, so E = -scale d, and log Z = 0 at scale 1 (Che et al.,
      2020, DDLS, arXiv 2003.06060, section 3).
    * "kale": d is an energy, low on data: E = scale d.
    * "wasserstein": a critic of slope 1 is no log density ratio, and nothing in it says how many
      nats a unit is: E = -scale d with a scale of yours. ``calibrate`` finds one.
    * "hinge": E = -scale d as a heuristic. An optimal hinge discriminator is the *sign* of p - b
      and knows no ratio; one that was stopped, or is smooth, often ranks well at an arbitrary
      scale. ``calibrate`` it before you believe its samples.

    All this holds for optimal discriminators. Real ones are under- or overconfident, whatever
    their loss: ``calibrate`` on held-out data, and see what it reports.

    Networks are neither copied nor changed, and are run in eval mode by everything that samples.
    Theirs may be other shapes than these: see ``GeneratorAdapter`` and ``DiscriminatorAdapter``.
    To ``load`` what ``save`` wrote, make a GEBM of the architectures as here, and pass
    ``generator=gebm.base.generator, energy=gebm.energy``.

    Args:
        generator: G, any module (B, D) -> (B, ...), TorchScript included.
        discriminator: d, any module (B, ...) -> (B,), (B, 1) or (B, 1, 1, 1).
        prior: of the latents that G was trained with; a copy goes to G's device and dtype.
        loss: what d was trained with.
        output: "logit", or "probability" if d ends in a sigmoid, which cannot be seen from
            outside. A probability that rounds to 0 or 1 is an infinite energy: better cut the
            sigmoid off.
        scale: nats per unit of d; ``None`` is 1, except for "wasserstein", which needs one.
        log_partition: c; "estimate" takes log Z of ``num_latents`` draws. ``None`` is 0 for
            "logistic" at scale 1, and an estimate otherwise.
        num_latents: draws of the base for that estimate.
        seed: of them; ``None`` takes one number from torch's global generator.

    Returns:
        The GEBM.

    Raises:
        ValueError: an option is out of range, or a few latents do not go through G and d.

    Warns:
        UserWarning: d ends in a sigmoid, and was said not to; the draws say little of log Z.

    Example:
        >>> from pyro_gebm.base import StandardNormal
        >>> gebm = from_gan(nn.Linear(2, 5), nn.Linear(5, 1), StandardNormal(2))
        >>> gebm.potential_fn(torch.zeros(3, 2)).shape, gebm.log_partition.item()
        (torch.Size([3]), 0.0)
    """
    discriminator = as_module("discriminator", discriminator)
    _check_options(discriminator, loss, output, scale, log_partition, num_latents)
    generator = as_module("generator", generator)
    base = Base(generator, _beside(prior, generator))
    factor = (1.0 if scale is None else scale) * (1.0 if loss == "kale" else -1.0)
    like = base.latent_prior.like
    energy = DiscriminatorEnergy(discriminator, torch.full((), factor).to(like), output)
    gebm = GEBM(base, energy)
    _probe(gebm, energy)
    estimates = log_partition is None and (loss != "logistic" or factor != -1.0)
    if estimates or log_partition == "estimate":
        source = torch.Generator().manual_seed(
            int(torch.randint(2**31, ())) if seed is None else seed
        )
        log_partition = importance_log_z(gebm, num_latents, generator=source).log_z
    with torch.no_grad():
        gebm.log_partition.fill_(float(log_partition or 0.0))
    return gebm


def _check_options(
    discriminator: nn.Module,
    loss: str,
    output: str,
    scale: float | None,
    log_partition: float | str | None,
    num_latents: int,
) -> None:
    check_choice("loss", loss, LOSSES)
    check_choice("output", output, OUTPUTS)
    check_count("num_latents", num_latents, minimum=2)
    if isinstance(log_partition, str):
        check_choice("log_partition", log_partition, ["estimate"])
    elif log_partition is not None:
        check_in_range("log_partition", log_partition, -float("inf"))
    if output == "probability" and loss != "logistic":
        raise ValueError(
            f"output: expected 'logit' for loss {loss!r}, whose discriminator gives no "
            "probability; got 'probability'"
        )
    if scale is not None:
        check_in_range("scale", scale, 0.0, open_low=True)
    elif loss == "wasserstein":
        raise ValueError(
            "scale: expected a number for loss 'wasserstein', whose critic has no scale in nats; "
            "got None; give one, or scale=1.0 and then calibrate(gebm, held_out, ...)"
        )
    if output == "logit" and isinstance(list(discriminator.modules())[-1], nn.Sigmoid):
        warnings.warn(
            "output: the discriminator's last module is a Sigmoid, and its output is taken as a "
            "logit; if it is a probability, pass output='probability'",
            stacklevel=3,
        )


def _beside(prior: Prior, generator: nn.Module) -> Prior:
    """A copy of the prior on the generator's device and in its dtype."""
    given: object = prior
    if not isinstance(given, Prior):
        return prior  # refused by Base, which says what to do
    like = next((p for p in generator.parameters() if p.is_floating_point()), None)
    if like is None or (like.device, like.dtype) == (prior.like.device, prior.like.dtype):
        return prior
    moved = copy.deepcopy(prior).to(like)
    if (like.device, like.dtype) != (moved.like.device, moved.like.dtype):
        raise ValueError(
            f"prior: expected {like.dtype} on {like.device}, as the generator; got "
            f"{prior.like.dtype} on {prior.like.device}; build its distribution there"
        )
    return moved


def _probe(gebm: GEBM, energy: DiscriminatorEnergy) -> None:
    """Send a few latents through both networks; torch's random state stays as it is."""
    z = draw_latents(gebm, _PROBES, torch.Generator().manual_seed(0))
    with torch.no_grad(), gebm.evaluating():
        try:
            x: object = gebm.base.generator(z)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(
                f"generator: expected one that takes latents of shape {tuple(z.shape)}; it raised "
                f"{type(error).__name__}: {str(error).splitlines()[0]}; "
                + latent_hint(gebm.base.generator, gebm.latent_dim)
            ) from error
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != _PROBES:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"generator: expected data (B, ...) for latents (B, {gebm.latent_dim}); got {got} "
                f"for B = {_PROBES}; wrap it: GeneratorAdapter(generator, select=...)"
            )
        try:
            value: object = energy.discriminator(x)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(
                f"discriminator: expected one that takes the generator's data {tuple(x.shape)}; "
                f"it raised {type(error).__name__}: {str(error).splitlines()[0]}; for a label "
                "wrap it: DiscriminatorAdapter(discriminator, label=...)"
            ) from error
    checked = check_finite("discriminator", _one_each(value, _PROBES))
    if energy.output == "probability" and not bool(((checked >= 0) & (checked <= 1)).all()):
        raise ValueError(
            f"discriminator: expected probabilities in [0, 1]; got {checked.tolist()}; pass "
            "output='logit'"
        )


def _one_each(value: object, batch: int) -> Tensor:
    """(B,) of what a discriminator returns."""
    if isinstance(value, Tensor) and value.ndim and value.shape == (batch, *[1] * (value.ndim - 1)):
        return value.reshape(batch)
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"discriminator: expected one number for each datum, ({batch},) or ({batch}, 1); got "
        f"{got}; wrap it: DiscriminatorAdapter(discriminator, select=...), such as a patch mean"
    )
