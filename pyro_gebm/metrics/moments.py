"""Mean and covariance of features: of a tensor, of a stream of batches, of several processes."""

from typing import NamedTuple, final

from torch import Tensor

from pyro_gebm._checks import check_dims, check_finite


class FeatureStatistics(NamedTuple):
    """What the Fréchet distance needs of a sample of features.

    Attributes:
        count: number of features N; None where a file does not say it.
        mean: mean (K,), float64.
        covariance: unbiased covariance (K, K), float64.
    """

    count: int | None  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Tensor
    covariance: Tensor


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Count, mean and unbiased covariance of features, in float64 on their device.

    Args:
        features: features (N, K), N >= 2.

    Returns:
        ``FeatureStatistics``.

    Raises:
        ValueError: if features are not (N, K) with N >= 2 and K >= 1, or not all finite.

    Example:
        >>> import torch
        >>> feature_statistics(torch.tensor([[0.0], [2.0]])).covariance
        tensor([[2.]], dtype=torch.float64)
    """
    check_dims("features", features, 2, "(N, K)")
    if len(features) < 2 or features.shape[1] < 1:
        raise ValueError(
            f"features: expected (N, K) with N >= 2 and K >= 1; got {tuple(features.shape)}; "
            f"a covariance needs two samples"
        )
    return _statistics(_checked_moments(features))


@final
class StatisticsStream:
    """Statistics of features that arrive in batches; memory K² whatever their number.

    Counts, means and centred second moments are joined by the update of Chan, Golub and LeVeque
    (1983), which subtracts no large numbers. Streams of several processes are joined by ``merge``;
    a stream can be pickled.

    Attributes:
        count: number of features so far.

    Example:
        >>> import torch
        >>> stream = StatisticsStream()
        >>> for batch in (torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0]])):
        ...     stream.update(batch)
        >>> stream.statistics()
        FeatureStatistics(count=3, mean=tensor([2.], dtype=torch.float64),
            covariance=tensor([[4.]], dtype=torch.float64))
    """

    def __init__(self) -> None:
        self._moments: _Moments | None = None

    @property
    def count(self) -> int:
        """Number of features so far."""
        return 0 if self._moments is None else self._moments.number

    def update(self, features: Tensor) -> None:
        """Take in a batch of features (N, K); N may be 0 or 1.

        Raises:
            ValueError: if they are not finite (N, K), or K differs from earlier batches; the
                stream is then as before.
        """
        new = _checked_moments(features)
        self._moments = new if self._moments is None else _joined(self._moments, new)

    def merge(self, other: "StatisticsStream") -> None:
        """Take in all that another stream has seen; the other is not changed.

        Raises:
            ValueError: if its features are of another width.
        """
        if other._moments is not None:
            mine = self._moments
            self._moments = other._moments if mine is None else _joined(mine, other._moments)

    def statistics(self) -> FeatureStatistics:
        """``FeatureStatistics`` of all features so far.

        Raises:
            ValueError: if there are fewer than two.
        """
        if self._moments is None:
            raise ValueError("statistics: expected at least two features; got none; update() first")
        return _statistics(self._moments)


def merge_statistics(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    """Statistics of two samples together, from the statistics of each.

    Args:
        a: statistics of K features.
        b: statistics of the same K features of other data.

    Returns:
        What ``feature_statistics`` gives for all the features, up to rounding.

    Raises:
        ValueError: if the numbers of features differ, or a count is unknown.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])
        >>> merge_statistics(feature_statistics(a), feature_statistics(b)).mean.item()
        3.0
    """
    return _statistics(_joined(_moments_of("a", a), _moments_of("b", b)))


class _Moments(NamedTuple):
    """Number, mean (K,) and centred second moment Σ (x - mean)(x - mean)ᵀ (K, K), float64."""

    number: int
    mean: Tensor
    scatter: Tensor


def _moments(values: Tensor) -> _Moments:
    number = len(values)
    mean = values.mean(dim=0) if number else values.new_zeros(values.shape[1])
    centred = values - mean
    return _Moments(number, mean, centred.T @ centred)


def _checked_moments(features: Tensor) -> _Moments:
    check_dims("features", features, 2, "(N, K)")
    if features.shape[1] < 1:
        raise ValueError(f"features: expected (N, K) with K >= 1; got {tuple(features.shape)}")
    return _moments(check_finite("features", features).detach().double())


def _joined(a: _Moments, b: _Moments) -> _Moments:
    """Moments of two samples together (Chan, Golub and LeVeque, 1983)."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"statistics: expected features of one width; got {len(a.mean)} and {len(b.mean)}; "
            f"use one feature function for all batches"
        )
    number = a.number + b.number
    if number == 0:
        return a
    apart = b.mean.to(a.mean.device) - a.mean
    between = apart.outer(apart) * (a.number * b.number / number)
    scatter = a.scatter + b.scatter.to(a.scatter.device) + between
    return _Moments(number, a.mean + apart * (b.number / number), scatter)


def _statistics(moments: _Moments) -> FeatureStatistics:
    if moments.number < 2:
        raise ValueError(
            f"statistics: expected at least two features, which a covariance needs; got "
            f"{moments.number}"
        )
    covariance = moments.scatter / (moments.number - 1)
    return FeatureStatistics(moments.number, moments.mean, covariance)


def _moments_of(name: str, statistics: FeatureStatistics) -> _Moments:
    if statistics.count is None:
        raise ValueError(
            f"{name}: expected statistics that know their count, which weighs them; got None; "
            f"set it with _replace(count=...) if you know it"
        )
    scatter = statistics.covariance * (statistics.count - 1)
    return _Moments(statistics.count, statistics.mean, scatter)
