"""Do samples, or modes, match training data? Tests of copying with exact nulls."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import trange

from pyro_gebm._checks import check_count, check_finite, check_in_range
from pyro_gebm.metrics.neighbours import nearest_neighbours

FeatureFunction: TypeAlias = Callable[[Tensor], Tensor]
"""Data (N, ...) -> features (N, ...)."""

_PERMUTED = 2**20  # labels permuted at once


class MemorisationScore(NamedTuple):
    """What ``memorisation_score`` finds.

    Attributes:
        auc: P(d(sample, train) < d(held-out, train)), ties counted half; 0.5 if honest.
        z: its standard score; above zero samples are nearer to training data than held-out
            data are, below zero farther.
        p_memorised: probability under the null of a score as high.
        p_underfitted: probability of one as low.
        tail_share: share of the samples among the nearest ``tail`` of all distances;
            ``tail`` itself if honest.
        tail_p: probability under the null of a share as high; sees a few copies among many samples.
        median_samples: median distance of samples to training data.
        median_held_out: that of held-out data.
        distances: of each sample to its nearest training datum (N,), float64.
        nearest: which one that is (N,), int64.
        num_samples: N.
        num_held_out: M.
    """

    auc: float
    z: float
    p_memorised: float
    p_underfitted: float
    tail_share: float
    tail_p: float
    median_samples: float
    median_held_out: float
    distances: Tensor
    nearest: Tensor
    num_samples: int
    num_held_out: int


def memorisation_score(
    samples: Tensor,
    train: Tensor,
    held_out: Tensor,
    *,
    feature_fn: FeatureFunction | None = None,
    tail: float = 0.05,
    num_permutations: int = 0,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> MemorisationScore:
    """Are samples nearer to training data than fresh data are? A test of data copying.

    The Mann-Whitney statistic of the distances to the nearest training datum, of samples against
    held-out data (Meehan, Chaudhuri and Dasgupta, 2020; their Z_U is minus this z, and they
    average it over the cells of a partition, which is not done here).

    Null: samples and held-out data are independent draws of one law, independent of the training
    data. Given those, all N + M distances are then independent and of one law, though they share
    the training set, so that permuting the labels "sample" and "held-out" is exact. With
    ``num_permutations`` the p-values are (1 + as extreme) / (1 + permutations), valid for any
    size and with ties; without, they come from the normal limit of the same distribution. Draws
    of one chain are not independent: thin them until they are, or take one per chain. A model whose
    law differs from the data's in any other way rejects on one side or the other too;
    ``training_share`` is not moved by that.

    Args:
        samples: (N, ...).
        train: what the model was trained on (T, ...).
        held_out: data that training never saw (M, ...).
        feature_fn: distances are between its values, computed without gradient on each set at
            once; between the flattened data if None.
        tail: share of the pooled distances that counts as near, in (0, 1).
        num_permutations: 0 for the normal limit.
        generator: source of the permutations.
        progress: show a progress bar.

    Returns:
        ``MemorisationScore``.

    Raises:
        ValueError: if shapes do not fit, a number is not finite, or the generator that
            permutations need is missing.

    Example:
        >>> import torch
        >>> data = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
        >>> train, held_out, fresh = data.split(200)
        >>> memorisation_score(train + 0.01, train, held_out).p_memorised < 1e-3
        True
        >>> memorisation_score(fresh, train, held_out).p_memorised > 0.05
        True
    """
    check_in_range("tail", tail, 0.0, 1.0, open_low=True)
    sets = _features(feature_fn, samples=samples, train=train, held_out=held_out)
    found = nearest_neighbours(sets[0], sets[1], 1, progress=progress)
    own = found.distances[:, 0]
    others = nearest_neighbours(sets[2], sets[1], 1, progress=progress).distances[:, 0]
    pooled, count = torch.cat([own, others.to(own.device)]), len(own)
    closeness = -_ranks(pooled)  # the higher, the nearer
    test = _label_test(closeness, count, num_permutations, generator, progress)
    near = (pooled <= pooled.quantile(tail)).double()
    tail_test = _label_test(near, count, num_permutations, generator, progress)
    pairs = count * len(others)
    u = float(closeness[:count].sum()) + pairs + count * (count + 1) / 2
    return MemorisationScore(
        u / pairs,
        test.z,
        test.p_more,
        test.p_less,
        float(near[:count].mean()),
        tail_test.p_more,
        float(own.quantile(0.5)),
        float(others.quantile(0.5)),
        own,
        found.indices[:, 0],
        count,
        len(others),
    )


class TrainingShare(NamedTuple):
    """What ``training_share`` finds.

    Attributes:
        share: of the samples whose nearest datum is a training datum.
        expected: the share under the null, T / (T + M).
        z: standard score of the share.
        p_value: probability under the null of a share as high.
        nearest: nearest datum of each sample (N,), int64; below T in train, else in held_out.
    """

    share: float
    expected: float
    z: float
    p_value: float
    nearest: Tensor


def training_share(
    samples: Tensor,
    train: Tensor,
    held_out: Tensor,
    *,
    feature_fn: FeatureFunction | None = None,
    num_permutations: int = 2000,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> TrainingShare:
    """How often the datum nearest to a sample is one that the model was trained on.

    Null: given the samples, training and held-out data are exchangeable, as they are if the
    samples know the law but not which draws of it were trained on. Permuting the labels "train"
    and "held-out" is then exact whatever the samples are: dependent, few, too smooth, or modes,
    such as ``energy_minima`` finds. Many samples near one datum count as one fact. It needs
    held-out data enough for some to be near; take all of the training data, since copies of what is
    left out tell nothing.

    Args:
        samples: (N, ...).
        train: (T, ...).
        held_out: (M, ...), drawn as train was.
        feature_fn: as in ``memorisation_score``.
        num_permutations: 0 for the normal limit.
        generator: source of the permutations.
        progress: show a progress bar.

    Returns:
        ``TrainingShare``.

    Raises:
        ValueError: if shapes do not fit, a number is not finite, or the generator that
            permutations need is missing.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> train, held_out = torch.randn(2, 100, 2, generator=generator)
        >>> training_share(train[:50] + 1e-3, train, held_out, generator=generator).share
        1.0
    """
    sets = _features(feature_fn, samples=samples, train=train, held_out=held_out)
    pool = torch.cat([sets[1], sets[2].to(sets[1].device)])
    nearest = nearest_neighbours(sets[0], pool, 1, progress=progress).indices[:, 0]
    hits = torch.bincount(nearest, minlength=len(pool)).double()
    test = _label_test(hits, len(train), num_permutations, generator, progress)
    share = float(hits[: len(train)].sum()) / len(samples)
    return TrainingShare(share, len(train) / len(pool), test.z, test.p_more, nearest)


class _LabelTest(NamedTuple):
    z: float
    p_more: float
    p_less: float


def _label_test(
    values: Tensor,
    count: int,
    num_permutations: int,
    generator: torch.Generator | None,
    progress: bool,
) -> _LabelTest:
    """Is the sum of the first ``count`` values extreme among those of random subsets?"""
    check_count("num_permutations", num_permutations, 0)
    total, rest = len(values), len(values) - count
    spread = math.sqrt(count * rest / total * float(values.var()))
    observed = values[:count].sum()
    # Values that are all equal tell nothing.
    z = (float(observed) - count * float(values.mean())) / spread if spread > 0 else 0.0
    if num_permutations == 0:
        return _LabelTest(z, math.erfc(z / math.sqrt(2)) / 2, math.erfc(-z / math.sqrt(2)) / 2)
    if generator is None:
        raise ValueError("generator: expected a torch.Generator for the permutations; got None")
    more = less = 1
    at_once = max(1, _PERMUTED // total)
    for start in trange(0, num_permutations, at_once, desc="permutations", disable=not progress):
        shape = min(at_once, num_permutations - start), total
        keys = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        permuted = values[keys.argsort(1)[:, :count].to(values.device)].sum(1)
        more += int((permuted >= observed).sum())
        less += int((permuted <= observed).sum())
    return _LabelTest(z, more / (1 + num_permutations), less / (1 + num_permutations))


def _ranks(values: Tensor) -> Tensor:
    """Ranks 1..N, ties sharing their mean; multiples of one half, so that sums are exact."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts - 1) / 2
    return ranks[group]


def _features(feature_fn: FeatureFunction | None, **sets: Tensor) -> list[Tensor]:
    """Each set as rows (N, K)."""
    rows = []
    for name, x in sets.items():
        if x.ndim < 2 or x.numel() == 0:
            raise ValueError(f"{name}: expected data (N, ...), N >= 1; got {tuple(x.shape)}")
        with torch.no_grad():
            features = x if feature_fn is None else feature_fn(x)
        if features.ndim == 0 or len(features) != len(x):
            raise ValueError(
                f"feature_fn: expected features ({len(x)}, ...); got {tuple(features.shape)}"
            )
        rows.append(check_finite(name, features.reshape(len(x), -1)))
        if rows[-1].shape[1] != rows[0].shape[1]:
            raise ValueError(
                f"{name}: expected data of the shape of the samples; got {tuple(x.shape)}, of "
                f"dimension {rows[-1].shape[1]} against {rows[0].shape[1]}"
            )
    return rows
