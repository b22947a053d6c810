"""Scores that compare samples directly: class and mode frequencies, and the energy distance."""

import math

import torch
from torch import Tensor

from pyro_gebm._checks import check_count, check_dims, check_finite, check_in_range

_CHUNK = 1024  # rows of a distance matrix held at once


def class_occupancy(labels: Tensor, num_classes: int) -> Tensor:
    """Frequency of each class among labels.

    Args:
        labels: integer labels (N,) in 0..num_classes - 1, N >= 1.
        num_classes: K.

    Returns:
        Frequencies (K,), float64, summing to one.

    Raises:
        ValueError: if labels are empty, not integers (N,), or out of range.

    Example:
        >>> import torch
        >>> class_occupancy(torch.tensor([0, 2, 2, 2]), 3)
        tensor([0.2500, 0.0000, 0.7500], dtype=torch.float64)
    """
    check_count("num_classes", num_classes)
    check_dims("labels", labels, 1, "(N,)")
    if len(labels) == 0 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels: expected at least one integer; got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels: expected values in 0..{num_classes - 1}; got {int(labels.min())}.."
            f"{int(labels.max())}; raise num_classes or renumber the labels"
        )
    return torch.bincount(labels.long(), minlength=num_classes).double() / len(labels)


def occupancy_distance(p: Tensor, q: Tensor) -> float:
    """Total variation between two occupancies: ½ Σ |p_k - q_k|, in [0, 1].

    Args:
        p: frequencies (K,), non-negative and summing to one.
        q: frequencies (K,), likewise.

    Returns:
        The share of mass that is in the wrong class.

    Raises:
        ValueError: if the shapes differ, or p or q is not a distribution.

    Example:
        >>> import torch
        >>> occupancy_distance(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        0.5
    """
    _check_distribution("p", p)
    _check_distribution("q", q)
    if p.shape != q.shape:
        raise ValueError(
            f"occupancy_distance: expected p and q over the same classes; got {len(p)} and {len(q)}"
        )
    return 0.5 * (p.double() - q.to(p.device).double()).abs().sum().item()


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance between two samples: 2 E|X - Y| - E|X - X'| - E|Y - Y'|.

    Székely and Rizzo (2013), Euclidean norm. The within-sample terms leave out the pairs of a
    point with itself (a U-statistic), so the estimate is unbiased and can be slightly negative
    for two samples of one law. Cost N M d; memory is bounded by chunks.

    Args:
        x: sample (N, d), N >= 2.
        y: sample (M, d), M >= 2.

    Returns:
        The estimate, in units of the data.

    Raises:
        ValueError: if the shapes do not fit, a sample has fewer than two points, or not all
            numbers are finite.

    Example:
        >>> import torch
        >>> energy_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [5.0]]))
        6.0
    """
    check_points("x", x, minimum=2)
    check_points("y", y, minimum=2)
    check_same_width("energy_distance", x, y)
    return 2 * distance_between(x, y) - distance_within(x) - distance_within(y)


def distance_between(x: Tensor, y: Tensor) -> float:
    """Mean distance of a point of ``x`` (N, d) from one of ``y`` (M, d)."""
    return _distance_sum(x, y) / (len(x) * len(y))


def distance_within(x: Tensor) -> float:
    """Mean distance of two different points of ``x`` (N, d)."""
    return _distance_sum(x, x) / (len(x) * (len(x) - 1))


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, num_directions: int = 200, generator: torch.Generator
) -> float:
    """Sliced Wasserstein distance of order 2 between two samples of one size.

    The square root of the mean over directions θ, uniform on the sphere, of the squared
    one-dimensional distance (1/N) Σ (x_(i) - y_(i))², sorted along θ (Rabin, Peyré, Delon and
    Bernot, 2012). Two samples of one law are apart by the noise of sampling, of order N^(-1/2).

    Args:
        x: samples (N, ...).
        y: samples (N, ...), of the same shape.
        num_directions: directions; the more, the less the figure depends on which.
        generator: source of the directions.

    Returns:
        The distance, in the units of the data.

    Raises:
        ValueError: the shapes differ, or there is no sample.

    Example:
        >>> import torch
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> shifted = x + torch.tensor([3.0, 4.0])  # |m|/√2 in two dimensions
        >>> distance = sliced_wasserstein(
        ...     x, shifted, num_directions=5000, generator=torch.Generator().manual_seed(1)
        ... )
        >>> abs(distance - 5 / 2**0.5) < 0.1
        True
    """
    check_count("num_directions", num_directions)
    if x.shape != y.shape or x.ndim == 0 or len(x) == 0:
        raise ValueError(
            f"x, y: expected one shape (N, ...), N >= 1; got {tuple(x.shape)} and "
            f"{tuple(y.shape)}; draw as many samples of one as of the other"
        )
    x, y = (sample.reshape(len(sample), -1).double() for sample in (x, y))
    theta = directions(x, num_directions, generator)
    apart = (x @ theta).sort(dim=0).values - (y @ theta).sort(dim=0).values
    return float(apart.square().mean().sqrt())


def directions(x: Tensor, num_directions: int, generator: torch.Generator) -> Tensor:
    """Uniform on the unit sphere of points ``x`` (N, d), (d, num_directions)."""
    size = (x.shape[1], num_directions)
    theta = torch.randn(size, generator=generator, device=generator.device, dtype=x.dtype)
    unit: Tensor = theta / theta.norm(dim=0)
    return unit.to(x.device)


def mode_share(x: Tensor, modes: Tensor, radius: float) -> float:
    """Share of points that lie within ``radius`` of some mode.

    For Gaussian modes with standard deviation s in two dimensions, 1 - exp(-radius²/2s²) of exact
    samples do (at least): 0.989 at radius 3 s.

    Args:
        x: points (N, d), N >= 1.
        modes: modes (K, d), K >= 1.
        radius: largest Euclidean distance that counts, > 0.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: if the shapes do not fit, a number is not finite, or the radius is not positive.

    Example:
        >>> import torch
        >>> points, modes = torch.tensor([[0.1], [0.9], [3.0], [7.0]]), torch.tensor([[0.0], [1.0]])
        >>> mode_share(points, modes, 0.2)
        0.5
    """
    check_in_range("radius", radius, 0.0, open_low=True)
    distances = _to_modes(x, modes)
    return (distances.min(dim=1).values <= radius).double().mean().item()


def mode_occupancy(x: Tensor, modes: Tensor) -> Tensor:
    """Frequency of each mode, every point counted to its nearest one.

    Args:
        x: points (N, d), N >= 1.
        modes: modes (K, d), K >= 1.

    Returns:
        Frequencies (K,), float64, summing to one.

    Raises:
        ValueError: if the shapes do not fit or a number is not finite.

    Example:
        >>> import torch
        >>> points, modes = torch.tensor([[0.1], [0.4], [3.0], [7.0]]), torch.tensor([[0.0], [1.0]])
        >>> mode_occupancy(points, modes)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    return class_occupancy(_to_modes(x, modes).argmin(dim=1), len(modes))


def _to_modes(x: Tensor, modes: Tensor) -> Tensor:
    """Distances (N, K) of every point to every mode."""
    check_points("x", x)
    check_points("modes", modes)
    check_same_width("modes", x, modes)
    return distances(x.detach().double(), modes.to(x.device).double())


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean, (N, M) of points (N, d) and (M, d)."""
    # cdist by matrix products loses half the digits of small distances; this mode does not.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _distance_sum(x: Tensor, y: Tensor) -> float:
    x, y = x.detach().double(), y.detach().double()
    return math.fsum(float(distances(rows, y).sum()) for rows in torch.split(x, _CHUNK))


def check_points(name: str, points: Tensor, minimum: int = 1) -> None:
    """Raise ``ValueError`` unless points are finite (N, d), N >= ``minimum``."""
    check_dims(name, points, 2, "(N, d)")
    if len(points) < minimum:
        raise ValueError(f"{name}: expected at least {minimum} points; got {len(points)}")
    check_finite(name, points)


def check_same_width(name: str, x: Tensor, y: Tensor) -> None:
    """Raise ``ValueError`` unless both are points of one dimension."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{name}: expected points of one dimension; got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def _check_distribution(name: str, p: Tensor) -> None:
    check_dims(name, p, 1, "(K,)")
    total = p.double().sum().item()
    if not (bool((p >= 0).all()) and abs(total - 1) < 1e-5):
        raise ValueError(
            f"{name}: expected non-negative frequencies that sum to 1; got sum {total}; divide "
            f"counts by their sum"
        )
