"""From a walk to its figures: scores on the way and in the long run, diagnostics, modes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm.comparison.results import SeedRun
from pyro_gebm.comparison.walk import Trail
from pyro_gebm.metrics import (
    ModeSummary,
    Scorer,
    class_occupancy,
    mode_summary,
    occupancy_distance,
)
from pyro_gebm.model import GEBM
from pyro_gebm.sampling import push_forward
from pyro_gebm.sampling.target import Target

STATIONARY_SETS = 8
"""Moments of the long run at which all chains' positions are scored."""

MOST_LABELS = 200
"""Draws of a chain that are labelled: each passes through generator and labeller."""

Labeller: TypeAlias = Callable[[Tensor], Any]
"""x (N, ...) -> integer labels (N,)."""


class Judge(NamedTuple):
    """How samples are judged."""

    gebm: GEBM
    target: Target
    scorer: Scorer
    labeller: Labeller | None
    mode_truth: NDArray[np.float64] | None
    """(K,)."""

    def push(self, u: Tensor) -> Tensor:
        """x of unconstrained positions (C, D'), on the CPU."""
        return push_forward(self.gebm, self.latents(u))

    def latents(self, u: Tensor) -> Tensor:
        """z of unconstrained positions (..., D')."""
        with torch.no_grad():
            return self.target.to_sites(u.to(self.gebm.base.latent_prior.like))["z"]

    def score(self, x: Tensor) -> float:
        """Of samples (C, ...).

        Raises:
            ValueError: it is not finite.
        """
        value = float(self.scorer.score(x))
        if not math.isfinite(value):
            raise ValueError(f"scorer: expected finite scores; got {value} for {len(x)} samples")
        return value

    def labels(self, x: Tensor) -> NDArray[np.int64]:
        """Of samples (N, ...), (N,).

        Raises:
            ValueError: the labeller gives something else than integers, one for each.
        """
        assert self.labeller is not None
        found = self.labeller(x)
        found = found.cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
        if found.shape != (len(x),) or found.dtype.kind not in "iu":
            raise ValueError(
                f"labeller: expected {len(x)} integers for {len(x)} samples; got {found.dtype} of "
                f"shape {found.shape}"
            )
        labels: NDArray[np.int64] = found.astype(np.int64)
        modes = None if self.mode_truth is None else len(self.mode_truth)
        if labels.min() < 0 or (modes is not None and labels.max() >= modes):
            raise ValueError(
                f"labeller: expected labels from 0 to below {modes or 'any number'}; got "
                f"{labels.min()}..{labels.max()}; give a truth for every mode"
            )
        return labels

    def occupancy_error(self, x: Tensor) -> float | None:
        """Total variation between mode frequencies of samples and the truth, if it is known."""
        if self.mode_truth is None:
            return None
        shares = class_occupancy(torch.as_tensor(self.labels(x)), len(self.mode_truth))
        return occupancy_distance(shares, torch.as_tensor(self.mode_truth))


def judge_trail(judge: Judge, trail: Trail, seed: int, base_score: float) -> SeedRun:
    """The figures of a walk from base samples of score ``base_score``."""
    draws = trail.long_z.shape[1]
    moments = np.unique(np.linspace(0, draws - 1, STATIONARY_SETS).round().astype(int))
    level = [judge.score(judge.push(trail.long_z[:, int(at)])) for at in moments]
    scores = [judge.score(judge.push(u)) for u in trail.points]
    latents = judge.latents(trail.long_z)
    idata = inference_data.build({"z": latents.cpu().numpy()}, {}, {})
    some = inference_data.suspects(idata)
    ess = inference_data.least_ess(some)
    return SeedRun(
        seed=seed,
        gradients=np.array([trail.warmup_gradients, *trail.gradients]),
        scores=np.array([base_score, *scores]),
        stationary_scores=np.array(level),
        warmup_gradients=trail.warmup_gradients,
        walk_gradients=trail.walk_gradients,
        batch_gradients=trail.batch_gradients,
        seconds=trail.seconds,
        transitions=trail.transitions,
        thinning=trail.thinning,
        rhat=inference_data.worst_rhat(some),
        ess=ess,
        ess_per_1000_gradients=1000 * ess / float(trail.long_steps.sum()),
        acceptance=trail.acceptance,
        divergent_share=trail.divergent_share,
        modes=_modes(judge, trail),
        tuning=trail.tuning,
        problems=trail.problems,
    )


def check_truth(mode_truth: ArrayLike | Tensor | None) -> NDArray[np.float64] | None:
    """Probabilities (K,), or a ``ValueError``."""
    if mode_truth is None:
        return None
    truth = mode_truth.cpu() if isinstance(mode_truth, Tensor) else mode_truth
    given = np.asarray(truth, dtype=np.float64)
    if given.ndim != 1 or not (given >= 0).all() or abs(given.sum() - 1) > 1e-5:
        raise ValueError(
            "mode_truth: expected the probability of every mode, (K,), summing to 1; got "
            f"{given.tolist()}; divide counts by their sum"
        )
    return given


def _modes(judge: Judge, trail: Trail) -> ModeSummary | None:
    """Of draws of the long run, evenly spaced, with the gradients between them."""
    if judge.labeller is None:
        return None
    draws = trail.long_z.shape[1]
    step = -(-draws // MOST_LABELS)
    ends = np.arange(step - 1, draws, step)
    if len(ends) < 4:
        return None
    labels = np.stack([judge.labels(judge.push(trail.long_z[:, int(at)])) for at in ends], 1)
    spent = trail.long_steps.cumsum(1)[:, ends]
    gradients = torch.diff(spent, dim=1, prepend=torch.zeros_like(spent[:, :1]))
    truth = judge.mode_truth
    count = None if truth is None else len(truth)
    return mode_summary(labels, count, truth=truth, gradients=gradients)
