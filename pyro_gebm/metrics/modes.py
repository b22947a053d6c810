"""Modes: how often each is visited, how surely, and how fast chains change between them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm._checks import check_count, check_dims, check_finite

Array: TypeAlias = ArrayLike | Tensor
Labeller: TypeAlias = Callable[[Any], Array]
"""Draws (C S, ...) -> labels (C S,)."""


class ModeSummary(NamedTuple):
    """What ``mode_summary`` finds of K modes; indicators that never vary have nan figures."""

    occupancy: NDArray[np.float64]
    """Share of the draws in each mode, (K,)."""
    mcse: NDArray[np.float64]
    """Its Monte-Carlo standard error √(p (1 - p) / ESS), (K,)."""
    missing: tuple[int, ...]
    """The modes that no chain visited."""
    rhat: NDArray[np.float64]
    """R-hat of each mode's indicator, (K,); inf if no chain changes but chains differ."""
    ess: NDArray[np.float64]
    """Bulk ESS of each indicator, (K,); the number of chains if no chain changes."""
    worst_rhat: float
    """Largest R-hat of a mode; nan if all draws are in one."""
    least_ess: float
    """Smallest ESS of a mode; nan if all draws are in one."""
    transition_matrix: NDArray[np.float64]
    """Share of the draws in mode i whose next one is in mode j, (K, K); nan rows: no draw in i."""
    switches_per_draw: float
    """Share of the draws that are in another mode than the draw before."""
    switches_per_1000_gradients: float | None
    """Changes of mode per 1,000 gradient evaluations."""
    ess_per_1000_gradients: float | None
    """``least_ess`` per 1,000 gradient evaluations of all chains together."""
    total_variation: float | None
    """½ Σ |occupancy - truth|, in [0, 1]."""
    largest_relative_error: float | None
    """max |occupancy / truth - 1|; inf if a mode of no mass was visited."""


def label_modes(z: Array, centres: Array) -> NDArray[np.int64]:
    """The nearest centre of each point, by Euclidean distance.

    Args:
        z: latents or data (..., D), such as draws (chain, draw, D).
        centres: (K, D).

    Returns:
        Labels (...,) in 0..K - 1.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.

    Example:
        >>> label_modes([[[0.1], [0.9]], [[3.0], [-2.0]]], [[0.0], [1.0]])
        array([[0, 1],
               [1, 0]])
    """
    points, to = (_tensor(array).double().cpu() for array in (z, centres))
    check_finite("z", points)
    check_finite("centres", check_dims("centres", to, 2, "(K, D)"))
    if points.ndim == 0 or points.shape[-1] != to.shape[1] or len(to) == 0:
        raise ValueError(
            f"z, centres: expected (..., D) and (K, D) with K >= 1; got {tuple(points.shape)} and "
            f"{tuple(to.shape)}"
        )
    # cdist by matrix products loses half the digits of small distances; this mode does not.
    exact = "donot_use_mm_for_euclid_dist"
    flat = torch.cdist(points.reshape(-1, to.shape[1]), to, compute_mode=exact).argmin(1)
    nearest: NDArray[np.int64] = flat.reshape(points.shape[:-1]).numpy()
    return nearest


def mode_summary(
    labels: Array | Labeller,
    num_modes: int | None = None,
    *,
    draws: Array | None = None,
    truth: ArrayLike | None = None,
    gradients: Array | None = None,
) -> ModeSummary:
    """How well a run visits the modes of its target.

    Every figure is that of the indicators 1[label = k], whose means are the occupancies: their
    R-hat and ESS say whether chains agree on a mode's mass and how surely it is known, and see
    what R-hat of the coordinates may not.

    Args:
        labels: the mode of each draw, integers (chain, draw), S >= 4; or a function that labels
            ``draws``, such as ``lambda z: label_modes(z, centres)`` or a classifier.
        num_modes: K; one more than the largest label if ``None``.
        draws: z or x (chain, draw, ...), for a function; it is given (chain · draw, ...).
        truth: the probability of each mode, (K,).
        gradients: gradient evaluations of each draw, (chain, draw): ``n_steps`` of the
            sample_stats.

    Raises:
        ValueError: labels are not integers (chain, draw) in 0..K - 1, there are fewer than four
            draws, or truth or gradients do not fit.

    Example:
        >>> labels = np.random.default_rng(0).integers(2, size=(4, 1000))
        >>> found = mode_summary(labels, 3, truth=[0.5, 0.5, 0.0])
        >>> found.occupancy.round(1), found.missing, bool(found.worst_rhat < 1.01)
        (array([0.5, 0.5, 0. ]), (2,), True)
    """
    modes, num_modes = _check_labels(_label(labels, draws), num_modes)
    expected = None if truth is None else _check_truth(truth, num_modes)
    work = None if gradients is None else _check_gradients(gradients, modes.shape)
    occupancy = np.bincount(modes.ravel(), minlength=num_modes) / modes.size
    rhat, ess = _diagnose(modes, num_modes)
    least = _extreme(ess, np.min)
    switched = modes[:, 1:] != modes[:, :-1]
    return ModeSummary(
        occupancy=occupancy,
        mcse=np.sqrt(occupancy * (1 - occupancy) / ess),
        missing=tuple(int(k) for k in np.flatnonzero(occupancy == 0)),
        rhat=rhat,
        ess=ess,
        worst_rhat=_extreme(rhat, np.max),
        least_ess=least,
        transition_matrix=_transition_matrix(modes, num_modes),
        switches_per_draw=float(switched.mean()),
        # The gradients of the first draw led to it, not from it.
        switches_per_1000_gradients=_per_1000(switched.sum(), work, slice(1, None)),
        ess_per_1000_gradients=_per_1000(least, work, slice(None)),
        total_variation=None if expected is None else 0.5 * float(abs(occupancy - expected).sum()),
        largest_relative_error=None if expected is None else _relative_error(occupancy, expected),
    )


def _diagnose(modes: NDArray[Any], num_modes: int) -> tuple[NDArray[np.float64], ...]:
    """R-hat and ESS of each indicator, (K,) each."""
    indicators = (modes[..., None] == np.arange(num_modes)).astype(np.float64)
    changes = (indicators != indicators[:, :1]).any((0, 1))
    differs = (indicators != indicators[:1, :1]).any((0, 1))
    # ArviZ has numbers for what does not vary, but they mean nothing.
    rhat = np.where(differs, np.inf, np.nan)
    ess = np.where(differs, float(len(modes)), np.nan)
    if changes.any():
        idata = inference_data.build({"mode": indicators[..., changes]}, {}, {})
        rhat[changes] = inference_data.rhat(idata, "mode")
        ess[changes] = inference_data.ess(idata, "mode")
    return rhat, ess


def _transition_matrix(modes: NDArray[Any], num_modes: int) -> NDArray[np.float64]:
    pairs = modes[:, :-1] * num_modes + modes[:, 1:]
    counts = np.bincount(pairs.ravel(), minlength=num_modes**2).reshape(num_modes, num_modes)
    left = counts.sum(1, keepdims=True)
    shares = np.full(counts.shape, np.nan)
    np.divide(counts, left, out=shares, where=left > 0)
    return shares


def _extreme(figures: NDArray[np.float64], pick: Callable[..., Any]) -> float:
    known = figures[~np.isnan(figures)]
    return float(pick(known)) if len(known) else float("nan")


def _per_1000(amount: float, gradients: NDArray[np.float64] | None, draws: slice) -> float | None:
    return None if gradients is None else float(1000 * amount / gradients[:, draws].sum())


def _relative_error(occupancy: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    if occupancy[truth == 0].any():
        return float("inf")
    some = truth > 0
    return float(abs(occupancy[some] / truth[some] - 1).max())


def _label(labels: Array | Labeller, draws: Array | None) -> NDArray[Any]:
    if not callable(labels):
        return _numpy(labels)
    if draws is None:
        raise ValueError("draws: expected z or x (chain, draw, ...), as labels is a function")
    of: Any = draws if isinstance(draws, Tensor) else np.asarray(draws)
    if of.ndim < 2:
        raise ValueError(f"draws: expected (chain, draw, ...); got shape {tuple(of.shape)}")
    found = _numpy(labels(of.reshape(-1, *of.shape[2:])))
    if found.shape != (of.shape[0] * of.shape[1],):
        raise ValueError(
            f"labels: expected one label for each of {of.shape[0] * of.shape[1]} draws from the "
            f"function; got shape {found.shape}"
        )
    return found.reshape(of.shape[:2])


def _check_labels(labels: NDArray[Any], num_modes: int | None) -> tuple[NDArray[np.int64], int]:
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or not len(labels) or labels.shape[1] < 4:
        raise ValueError(
            "labels: expected integers (chain, draw) of at least 4 draws; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    count = int(labels.max()) + 1 if num_modes is None else check_count("num_modes", num_modes)
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(
            f"labels: expected values in 0..{count - 1}; got {labels.min()}..{labels.max()}; raise "
            "num_modes, or give draws of no mode a label of their own"
        )
    return labels.astype(np.int64), count


def _check_truth(truth: ArrayLike, num_modes: int) -> NDArray[np.float64]:
    given = np.asarray(truth, dtype=np.float64)
    if given.shape != (num_modes,) or not (given >= 0).all() or abs(given.sum() - 1) > 1e-5:
        raise ValueError(
            f"truth: expected {num_modes} probabilities that sum to 1; got {truth!r}; give one for "
            "each mode, and num_modes if the last were not visited"
        )
    return given


def _check_gradients(gradients: Array, shape: tuple[int, ...]) -> NDArray[np.float64]:
    given = _numpy(gradients).astype(np.float64)
    if given.shape != shape or not (given >= 0).all() or not given[:, 1:].sum() > 0:
        raise ValueError(
            f"gradients: expected counts of shape {shape}, not all 0; got shape {given.shape}; "
            "leave them out for a sampler without gradients"
        )
    return given


def _numpy(array: Array) -> NDArray[Any]:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _tensor(array: Array) -> Tensor:
    # A copy: torch warns when it shares the memory of an array that must not be written.
    return array.detach() if isinstance(array, Tensor) else torch.tensor(np.asarray(array))
