"""The scoring protocol: Fréchet distances to real data, their floor, and the paired ratio."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_count
from pyro_gebm.metrics.frechet import frechet_distance
from pyro_gebm.metrics.moments import feature_statistics
from pyro_gebm.metrics.scores import (
    check_points,
    check_same_width,
    distance_between,
    distance_within,
    energy_distance,
)


class MeanSpread(NamedTuple):
    """A figure over repeats.

    Attributes:
        mean: mean over repeats.
        sd: standard deviation between repeats (divisor count - 1); NaN for a single one.
        count: number of repeats.
    """

    mean: float
    sd: float
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


class RelativeScore(NamedTuple):
    """Scores of refined and base samples, set by set, and of their ratio (below 1 is better)."""

    refined: MeanSpread
    base: MeanSpread
    ratio: MeanSpread


class Scorer(Protocol):
    """Scores samples against fixed real data; lower is better."""

    def score(self, x: Tensor) -> float:
        """Distance of samples (N, ...) to the real data."""

    def floor(self, *, generator: torch.Generator, repeats: int = 20) -> MeanSpread:
        """Distance between random halves of the real data."""


@final
class FrechetScorer:
    """Squared Fréchet distance of samples to fixed real data, in a given feature space.

    The estimate from finite samples is biased upwards, the more so the fewer they are: compare
    only scores of sets of one size, and print ``floor`` beside them.

    Args:
        feature_fn: data (N, ...) -> features (N, K), such as ``Classifier.features``; it is called
            without gradient on all N at once.
        reference: real data (N, ...).
        labels: classes (N,) of the reference; the halves of the floor then have equal class
            proportions, whose chance differences would otherwise be most of it.

    Attributes:
        statistics: ``FeatureStatistics`` of the reference.

    Raises:
        ValueError: if the features are not finite (N, K) with N >= 2.

    Example:
        >>> import torch
        >>> scorer = FrechetScorer(lambda x: x, torch.tensor([[0.0], [2.0]]))
        >>> scorer.score(torch.tensor([[3.0], [5.0]]))
        9.0
    """

    def __init__(
        self,
        feature_fn: Callable[[Tensor], Tensor],
        reference: Tensor,
        *,
        labels: Tensor | None = None,
    ) -> None:
        if labels is not None and labels.shape != (len(reference),):
            raise ValueError(
                f"labels: expected shape ({len(reference)},), one for each datum; got "
                f"{tuple(labels.shape)}"
            )
        self._labels = labels
        self._feature_fn = feature_fn
        self._features = self._embed(reference)
        self.statistics = feature_statistics(self._features)

    def score(self, x: Tensor) -> float:
        """Squared Fréchet distance between samples (N, ...), N >= 2, and the reference."""
        return frechet_distance(feature_statistics(self._embed(x)), self.statistics)

    def floor(self, *, generator: torch.Generator, repeats: int = 20) -> MeanSpread:
        """Distance between two random disjoint halves of the reference: what real data score.

        Halves hold N // 2 data each (one is left out of an odd number), so this floor carries the
        finite-sample bias of that size; about half of it remains for sets of size N.

        Random halves also differ in their class proportions, as sets of samples do: on the digits
        that is most of the floor, and a stratified split scores lower.

        Args:
            generator: source of the splits.
            repeats: number of splits, each a new permutation.

        Returns:
            Mean and standard deviation over the splits, which share data: the standard deviation
            says how much one split matters, not how uncertain the mean is.

        Raises:
            ValueError: if the reference holds fewer than 4 data, or ``repeats`` is not >= 1.
        """
        return mean_spread(
            [
                frechet_distance(feature_statistics(first), feature_statistics(second))
                for first, second in _halves(self._features, repeats, generator, self._labels)
            ]
        )

    def _embed(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._feature_fn(x)


@final
class EnergyDistanceScorer:
    """Energy distance of vectors to fixed real data, by the unbiased estimate.

    Args:
        reference: real data (N, d), N >= 4.

    Example:
        >>> import torch
        >>> EnergyDistanceScorer(torch.tensor([[0.0], [1.0]])).score(torch.tensor([[4.0], [5.0]]))
        6.0
    """

    def __init__(self, reference: Tensor) -> None:
        check_points("reference", reference, minimum=2)
        self._reference, self._within = reference, distance_within(reference)

    def score(self, x: Tensor) -> float:
        """Energy distance between samples (N, d), N >= 2, and the reference."""
        check_points("x", x, minimum=2)
        check_same_width("x", x, self._reference)
        between = distance_between(x, self._reference)
        return 2 * between - distance_within(x) - self._within

    def floor(self, *, generator: torch.Generator, repeats: int = 20) -> MeanSpread:
        """Distance between random disjoint halves of the reference; about 0, being unbiased.

        Raises:
            ValueError: the reference holds fewer than 4 data, or ``repeats`` is not >= 1.
        """
        return mean_spread(
            [
                energy_distance(first, second)
                for first, second in _halves(self._reference, repeats, generator)
            ]
        )


def relative_score(
    scorer: Scorer, refined_sets: Sequence[Tensor], base_sets: Sequence[Tensor]
) -> RelativeScore:
    """Relative score d(refined)/d(base), paired set by set.

    A base set that scores 0 or less (unbiased distances can) leaves nothing to improve on: its
    ratio is NaN, and so is their mean.

    Set i of the one is compared with set i of the other (same seed, same size), and the ratios
    are averaged: what the two share cancels before the spread is taken.

    Args:
        scorer: holds the real data.
        refined_sets: R sets (N, ...) of samples of the model.
        base_sets: R sets (N, ...) of samples of its base.

    Returns:
        ``RelativeScore``, each part over the R sets.

    Raises:
        ValueError: if there are no sets, or their numbers or shapes differ.

    Example:
        >>> import torch
        >>> scorer = FrechetScorer(lambda x: x, torch.tensor([[0.0], [2.0]]))
        >>> near, far = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]])
        >>> ratio = relative_score(scorer, [near, near], [far, far]).ratio
        >>> round(ratio.mean, 9), ratio.sd, ratio.count
        (0.25, 0.0, 2)
    """
    if len(refined_sets) != len(base_sets) or len(base_sets) == 0:
        raise ValueError(
            f"relative_score: expected as many refined as base sets, at least one; got "
            f"{len(refined_sets)} and {len(base_sets)}"
        )
    for index, (refined_set, base_set) in enumerate(zip(refined_sets, base_sets, strict=True)):
        if refined_set.shape != base_set.shape:
            raise ValueError(
                f"relative_score: expected sets of one shape in pair {index}, since the score "
                f"depends on the size; got {tuple(refined_set.shape)} and {tuple(base_set.shape)}"
            )
    refined = [scorer.score(x) for x in refined_sets]
    base = [scorer.score(x) for x in base_sets]
    ratios = score_ratios(refined, base)
    return RelativeScore(mean_spread(refined), mean_spread(base), mean_spread(ratios))


def score_ratios(scores: Sequence[float], base: Sequence[float]) -> list[float]:
    """Scores over those of the base, pair by pair; NaN where a base of 0 leaves nothing to gain."""
    return [s / b if b > 0 else math.nan for s, b in zip(scores, base, strict=True)]


def _halves(
    rows: Tensor, repeats: int, generator: torch.Generator, labels: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random disjoint halves of ``rows``, ``repeats`` times, stratified by ``labels`` if given."""
    check_count("repeats", repeats)
    half = len(rows) // 2
    if half < 2:
        raise ValueError(
            f"floor: expected a reference of at least 4 data, for two halves; got {len(rows)}"
        )
    for _ in range(repeats):
        order = torch.randperm(len(rows), generator=generator, device=generator.device)
        order = order.to(rows.device)
        if labels is not None:
            # Shuffled within each class, then every other one: both halves get as many of each.
            by_class = order[labels[order].argsort(stable=True)]
            order = torch.cat([by_class[::2], by_class[1::2]])
        yield rows[order[:half]], rows[order[len(rows) - half :]]


def mean_spread(values: Sequence[float]) -> MeanSpread:
    """Mean and standard deviation, NaN where a value is or there is but one."""
    # statistics.stdev fails on a NaN.
    known = len(values) > 1 and not any(map(math.isnan, values))
    sd = statistics.stdev(values) if known else math.nan
    return MeanSpread(statistics.fmean(values), sd, len(values))
