"""Permutation tests: how often a split at random sets two samples as far apart as they are."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_choice, check_count
from pyro_gebm.metrics.discrepancy import (
    MAX_POOLED,
    choose_bandwidth,
    flat_pair,
    gaussian_kernel,
)
from pyro_gebm.metrics.scores import directions, distances

STATISTICS = ("energy", "mmd", "sliced_wasserstein")
"""The statistics by name."""

Statistic: TypeAlias = Callable[[Tensor, Tensor], float]
"""A distance of two samples, (N, ...) and (M, ...) -> a number, large where they differ."""

_Split: TypeAlias = Callable[[Tensor], Tensor]
"""Orders (P, n) of the pooled points, of which the first N count as x -> statistics (P,)."""

_BATCH = 128  # permutations at once: a matrix product for them all
_GATHERED = 2**22  # sorted places gathered at once: 32 MiB in float64
_TIE = 1e-10  # relative to the largest statistic: equal splits differ by rounding


class PermutationTest(NamedTuple):
    """Outcome of ``permutation_test``.

    Attributes:
        statistic: T of the samples as given.
        p_value: (1 + number of permutations with T at least as large) / (1 + R).
        num_permutations: R.
        null_mean: mean of T over the permutations.
        null_sd: standard deviation of T over the permutations (divisor R - 1).
    """

    statistic: float
    p_value: float
    num_permutations: int
    null_mean: float
    null_sd: float


def permutation_test(
    x: Tensor,
    y: Tensor,
    statistic: str | Statistic = "energy",
    num_permutations: int = 1000,
    *,
    bandwidth: float | None = None,
    num_directions: int = 200,
    generator: torch.Generator,
    progress: bool = False,
) -> PermutationTest:
    """Test whether two samples come from one law: p-value of a distance by permutation.

    Under the null hypothesis the pooled points are exchangeable, so that among the split as it
    is and R splits at random every rank is equally likely: p = (1 + #{T_r >= T})/(1 + R) is at
    most α with probability at most α, at any sample size (Phipson and Smyth, 2010). A small p
    says that the laws differ, not by how much; the smallest is 1/(1 + R). Points must be
    independent: draws of a Markov chain are not, so thin them first.

    ``"energy"`` (``energy_distance``) and ``"mmd"`` (``mmd``, squared) compute the matrix of all
    pairs once and permute by matrix products; ``"sliced_wasserstein"`` projects and sorts once.
    A callable is called R + 1 times.

    Args:
        x: sample (N, ...), N >= 2.
        y: sample (M, ...), M >= 2; as many as of x for ``"sliced_wasserstein"``.
        statistic: a name, or a function of two samples that is large where they differ.
        num_permutations: R, at least 2.
        bandwidth: of ``"mmd"``; ``None`` takes the median distance of the pooled points.
        num_directions: of ``"sliced_wasserstein"``.
        generator: source of the directions, then of the permutations.
        progress: show a progress bar.

    Returns:
        ``PermutationTest``.

    Raises:
        ValueError: the samples do not fit (see ``mmd``), the name is unknown, or the matrix of
            pairs would be too large (N + M > 4,096).

    Example:
        >>> import torch
        >>> rng = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(50, 2, generator=rng), torch.randn(60, 2, generator=rng) + 1
        >>> permutation_test(x, y, num_permutations=199, generator=rng).p_value
        0.005
    """
    check_count("num_permutations", num_permutations, minimum=2)
    flat_x, flat_y = flat_pair(x, y)
    if callable(statistic):
        split = _called(statistic, torch.cat([x, y.to(x)]), len(x))
    elif check_choice("statistic", statistic, STATISTICS) == "sliced_wasserstein":
        split = _sliced(flat_x, flat_y, num_directions, generator)
    else:
        split = _paired(statistic, torch.cat([flat_x, flat_y]), len(x), bandwidth)
    identity = torch.arange(len(x) + len(y), device=x.device)[None]
    observed = float(split(identity))
    null = _null(split, identity.numel(), num_permutations, generator, x.device, progress)
    reached = null >= observed - _TIE * float(null.abs().max())
    p_value = (1 + int(reached.sum())) / (1 + num_permutations)
    mean, sd = float(null.mean()), float(null.std())
    return PermutationTest(observed, p_value, num_permutations, mean, sd)


def _null(
    split: _Split,
    num_points: int,
    num_permutations: int,
    generator: torch.Generator,
    device: torch.device,
    progress: bool,
) -> Tensor:
    """Statistics of random splits, (num_permutations,) float64."""
    parts = []
    with tqdm(
        total=num_permutations, desc="permutations", disable=not progress, leave=False
    ) as bar:
        for done in range(0, num_permutations, _BATCH):
            count = min(_BATCH, num_permutations - done)
            orders = torch.stack(
                [
                    torch.randperm(num_points, generator=generator, device=generator.device)
                    for _ in range(count)
                ]
            )
            parts.append(split(orders.to(device)))
            bar.update(count)
    return torch.cat(parts)


def _called(statistic: Statistic, pooled: Tensor, count: int) -> _Split:
    """Any statistic, called on each split of the pooled points (n, ...)."""

    def split(orders: Tensor) -> Tensor:
        values = [statistic(pooled[order[:count]], pooled[order[count:]]) for order in orders]
        return torch.tensor([float(value) for value in values], dtype=torch.float64)

    return split


def _paired(name: str, pooled: Tensor, count: int, bandwidth: float | None) -> _Split:
    """A difference of mean distances (or kernels) within and between, of pooled points (n, d).

    With a = 1 for points of x and D the matrix of pairs, the sums within x, between and within
    y are a'Da, a'D1 - a'Da and 1'D1 - 2 a'D1 + a'Da.
    """
    n, other = len(pooled), len(pooled) - count
    if n > MAX_POOLED:
        raise ValueError(
            f"x, y: expected at most {MAX_POOLED} points together; got {n}, whose matrix of pairs "
            f"takes {n * n * 8 / 2**30:.2f} GiB, and some times that for the permutations; pass "
            "fewer points, such as x[::10]"
        )
    if name == "mmd":
        sign = 1.0
        matrix = gaussian_kernel(pooled, pooled, choose_bandwidth(pooled, bandwidth))
        matrix.fill_diagonal_(0.0)  # no point is paired with itself
    else:
        sign, matrix = -1.0, distances(pooled, pooled)
    row_sums, total = matrix.sum(1), matrix.sum()

    def split(orders: Tensor) -> Tensor:
        a = matrix.new_zeros(orders.shape).scatter_(1, orders[:, :count], 1.0)
        within_x, from_x = ((a @ matrix) * a).sum(1), a @ row_sums
        within_y = total - 2 * from_x + within_x
        within = within_x / (count * (count - 1)) + within_y / (other * (other - 1))
        return sign * (within - 2 * (from_x - within_x) / (count * other))

    return split


def _sliced(x: Tensor, y: Tensor, num_directions: int, generator: torch.Generator) -> _Split:
    """Sliced Wasserstein distance of splits: each point keeps its place along each direction."""
    check_count("num_directions", num_directions)
    if len(x) != len(y):
        raise ValueError(
            f"x, y: expected samples of one size for sliced_wasserstein; got {len(x)} and "
            f"{len(y)}; draw as many of one as of the other"
        )
    theta = directions(x, num_directions, generator)
    places, points = (torch.cat([x, y]) @ theta).T.contiguous().sort(dim=1)  # (L, n) each

    at_once = max(1, _GATHERED // places.numel())

    def split(orders: Tensor) -> Tensor:
        return torch.cat([some(part) for part in torch.split(orders, at_once)])

    def some(orders: Tensor) -> Tensor:
        of_x = torch.zeros_like(orders, dtype=torch.bool).scatter_(1, orders[:, : len(x)], True)
        first = of_x[:, points]  # (P, L, n): which of the sorted places are of x
        every = places.expand(first.shape)
        apart = (every[first] - every[~first]).view(len(orders), -1)  # by rank: sizes are equal
        values: Tensor = apart.square().mean(1).sqrt()
        return values

    return split
