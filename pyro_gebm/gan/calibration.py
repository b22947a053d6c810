"""Platt scaling of a GEBM's energy: a logistic regression of real against generated data."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_count, check_finite
from pyro_gebm.gan.convert import ScaledEnergy
from pyro_gebm.metrics.partition import base_energies, data_energies
from pyro_gebm.model import GEBM

BINS = 15
"""Equal bins of [0, 1] of the calibration error."""

_MAX_STEPS = 100
_TOLERANCE = 1e-10  # of the Newton decrement, in nats per datum


class Calibration(NamedTuple):
    """What a calibration found: log p/b (x) is estimated by a · (-E(x)) + b.

    Log losses and errors are those of telling the real from the generated, with P(real | x) =
    σ(log p/b (x) + log N/M), on the very data of the fit, whose two numbers cost the first one
    about 1/(N + M) nats of optimism.

    Attributes:
        a: slope; 1 if the energy was at the right scale, below if it was overconfident.
        b: offset in nats; minus the c of the calibrated GEBM.
        a_error: standard error of ``a``, by the inverse of the Fisher information.
        b_error: standard error of ``b``: as the numbers of real and generated data are chosen, and
            not drawn, 1/N + 1/M of its variance are not there (Prentice and Pyke, 1979).
        log_loss_before: mean log loss of -E - c, in nats; log 2 for a flat one, if N = M.
        log_loss: after.
        ece_before: expected calibration error of -E - c, over 15 equal bins of [0, 1].
        ece: after.
        log_mean_ratio: log of the mean of exp(-aE + b) over generated data: about 0, since a
            density ratio has mean one, unless a line does not fit.
    """

    a: float
    b: float
    a_error: float
    b_error: float
    log_loss_before: float
    log_loss: float
    ece_before: float
    ece: float
    log_mean_ratio: float


class Calibrated(NamedTuple):
    """A calibrated GEBM and how it came about."""

    gebm: GEBM
    calibration: Calibration


def calibrate(
    gebm: GEBM, real: Tensor, *, num_latents: int | None = None, generator: torch.Generator
) -> Calibrated:
    """Fit slope and offset of a GEBM's log density ratio on held-out data (Platt, 1999).

    Maximises the likelihood of P(real | x) = σ(a · (-E(x)) + b + log N/M) over a and b by
    Newton's method; log N/M is what the sizes of the samples, and not the laws, have to do with
    it. If data and base are told apart only by what E ranks them by, a · (-E) + b is log p/b.

    One slope cannot mend a wrong ranking. A smooth discriminator may be too flat within modes and
    wrong between them: the best slope is then far above 1, log loss falls, and the samples get
    worse. If the calibration error does not fall, or ``importance_log_z`` finds few even draws,
    train an energy on the frozen generator instead.

    Args:
        gebm: the model; its networks are shared with the result, not copied, and unchanged.
        real: data (N, ...), which neither network was trained on: on training data a
            discriminator looks more confident than it may be.
        num_latents: M fresh draws of the base; ``None`` is N.
        generator: source of the latents; torch's global ones are left as they were.

    Returns:
        The GEBM of energy a E and c = -b, and the ``Calibration``.

    Raises:
        ValueError: there are fewer than two data, energies are not finite, do not vary, or
            separate real from generated data, which no finite slope describes.

    Warns:
        UserWarning: a <= 0: E is lower on generated data than on real ones.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Identity(), StandardNormal(1)), nn.Linear(1, 1, bias=False))
        >>> _ = nn.init.constant_(gebm.energy.weight, -5.0)  # -E = 5 x
        >>> source = torch.Generator().manual_seed(0)
        >>> real = 0.5 + torch.randn(20_000, 1, generator=source)  # log p/b = x/2 - 1/8
        >>> found = calibrate(gebm, real, generator=source).calibration
        >>> abs(found.a - 0.1) < 4 * found.a_error, abs(found.b + 0.125) < 4 * found.b_error
        (True, True)
    """
    if len(real) < 2:
        raise ValueError(f"real: expected at least two data (N, ...); got {tuple(real.shape)}")
    num_latents = len(real) if num_latents is None else check_count("num_latents", num_latents, 2)
    # Minus the energies, low to high: how real each looks.
    on_real = -check_finite("energy of real data", data_energies(gebm, real))
    on_base = -check_finite(
        "energy of generated data", base_energies(gebm, num_latents, generator=generator)
    )
    _check_overlap(on_real, on_base)
    score = torch.cat([on_real, on_base]).cpu()
    is_real = (torch.arange(len(score)) < len(on_real)).double()
    prior_odds = math.log(len(on_real) / len(on_base))
    coefficients, errors = _logistic_regression(score, is_real, prior_odds)
    a, b = coefficients.tolist()
    a_error, b_error = errors.tolist()
    b_error = math.sqrt(b_error**2 - 1 / len(on_real) - 1 / len(on_base))
    if a <= 0:
        warnings.warn(
            f"calibrate: the slope is {a:.3g}: the energy is lower on generated data than on real "
            "ones; check the sign and the loss, or whether the discriminator has learned anything",
            stacklevel=2,
        )
    before = score - gebm.log_partition.item() + prior_odds
    after = a * score + b + prior_odds
    calibration = Calibration(
        a,
        b,
        a_error,
        b_error,
        log_loss_before=_log_loss(before, is_real),
        log_loss=_log_loss(after, is_real),
        ece_before=calibration_error(before.sigmoid(), is_real),
        ece=calibration_error(after.sigmoid(), is_real),
        log_mean_ratio=float(torch.logsumexp(a * on_base + b, 0)) - math.log(len(on_base)),
    )
    return Calibrated(_scaled(gebm, a, b), calibration)


def calibration_error(probability: Tensor, label: Tensor) -> float:
    """Expected calibration error: Σ_k n_k/n |mean p - mean y| over 15 equal bins of [0, 1].

    Naeini, Cooper and Hauskrecht (2015). It is positive for finite samples of a perfectly
    calibrated forecast, too: about √(bins/n).

    Args:
        probability: p (n,) in [0, 1].
        label: y (n,), 0 or 1.

    Returns:
        The error, in [0, 1].

    Example:
        >>> calibration_error(torch.tensor([0.25, 0.25, 0.8]), torch.tensor([0.0, 1.0, 1.0]))
        0.2333...
    """
    bins = (probability * BINS).long().clamp(max=BINS - 1)  # p = 1 belongs to the last
    gap = torch.zeros(BINS, dtype=torch.float64).index_add_(
        0, bins, probability.double() - label.double()
    )
    return float(gap.abs().sum()) / len(probability)


def _scaled(gebm: GEBM, a: float, b: float) -> GEBM:
    like = gebm.log_partition.detach()
    scaled = GEBM(gebm.base, ScaledEnergy(gebm.energy, torch.full_like(like, a)))
    with torch.no_grad():
        scaled.log_partition.fill_(-b)
    return scaled


def _check_overlap(on_real: Tensor, on_base: Tensor) -> None:
    low, high = float(on_real.min()), float(on_real.max())
    base_low, base_high = float(on_base.min()), float(on_base.max())
    if low == high == base_low == base_high:
        raise ValueError(
            f"energy: expected energies that vary; got {-low} everywhere, which tells nothing apart"
        )
    if low >= base_high or base_low >= high:
        raise ValueError(
            "energy: expected real and generated data that overlap; got energies that separate "
            f"them: real in [{-high:.4g}, {-low:.4g}], generated in [{-base_high:.4g}, "
            f"{-base_low:.4g}]; take more data, or a discriminator that is less sure"
        )


def _logistic_regression(score: Tensor, label: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """(a, b) of σ(a s + b + offset) by Newton's method, and their standard errors."""
    center, spread = score.mean(), score.std()
    # Standardised, so that the Hessian is well conditioned.
    design = torch.stack([(score - center) / spread, torch.ones_like(score)], 1)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(_MAX_STEPS):
        probability = (design @ weights + offset).sigmoid()
        slope = design.T @ (label - probability)
        step = torch.linalg.solve(_information(design, probability), slope)
        if float(slope @ step) < _TOLERANCE * len(score):
            break
        weights = weights + _halved(design, label, offset, weights, step)
    else:
        raise ValueError(
            "energy: expected real and generated data that overlap; got a slope that grows without "
            "end; take more data"
        )
    covariance = torch.linalg.inv(_information(design, (design @ weights + offset).sigmoid()))
    back = torch.stack(
        [
            torch.stack([1 / spread, torch.zeros_like(spread)]),
            torch.stack([-center / spread, torch.ones_like(spread)]),
        ]
    )
    return back @ weights, (back @ covariance @ back.T).diagonal().sqrt()


def _information(design: Tensor, probability: Tensor) -> Tensor:
    return (design * (probability * (1 - probability))[:, None]).T @ design


def _halved(design: Tensor, label: Tensor, offset: float, weights: Tensor, step: Tensor) -> Tensor:
    """The Newton step, halved until it lowers the loss, which is convex."""
    loss = _log_loss(design @ weights + offset, label)
    while _log_loss(design @ (weights + step) + offset, label) > loss + 1e-15:
        step = step / 2
    return step


def _log_loss(logit: Tensor, label: Tensor) -> float:
    """Mean log loss of logits (n,) for labels 0 and 1, in nats."""
    return float(torch.nn.functional.binary_cross_entropy_with_logits(logit, label))
