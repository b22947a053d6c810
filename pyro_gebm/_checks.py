"""Boundary checks: each refuses before any work, naming what was expected and what came."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def check_choice(name: str, value: T, choices: Iterable[T]) -> T:
    """Return ``value`` if it is one of ``choices``, else raise ``ValueError`` listing them."""
    options = list(choices)
    if value not in options:
        listed = ", ".join(map(str, options))
        raise ValueError(f"{name}: expected one of {listed}; got {value!r}")
    return value


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """Return ``value`` if it is a whole number >= ``minimum``, else raise ``ValueError``."""
    given: object = value  # may be anything; NumPy's integers are welcome
    if isinstance(given, bool) or not isinstance(given, Integral) or value < minimum:
        raise ValueError(f"{name}: expected a whole number >= {minimum}; got {value!r}")
    return value


def check_seed(seed: int) -> int:
    """Return ``seed`` as Python's int if torch can take it, else raise ``ValueError``."""
    if check_count("seed", seed, minimum=0) >= 2**63:
        raise ValueError(f"seed: expected a whole number below 2**63; got {seed}")
    return int(seed)


def check_in_range(
    name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return ``value`` if it is finite and in [low, high] ((low, high] if ``open_low``)."""
    given: object = value
    number = isinstance(given, Real) and not isinstance(given, bool)
    inside = number and math.isfinite(value) and low <= value <= high
    if not inside or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}: expected a number in {bracket}{low}, {high}]; got {value!r}")
    return value


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor`` if it is finite, else raise ``ValueError`` naming the first bad index."""
    bad = ~torch.isfinite(tensor)
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name}: expected finite numbers; got {tensor[index].item()} at index {index} "
            f"({int(bad.sum())} in all); remove or impute them first"
        )
    return tensor


def check_dims(name: str, tensor: Tensor, dims: int, shape: str) -> Tensor:
    """Return ``tensor`` if it has ``dims`` dimensions, else raise naming ``shape``."""
    if tensor.ndim != dims:
        raise ValueError(f"{name}: expected shape {shape}; got {tuple(tensor.shape)}")
    return tensor


def check_sizes(name: str, sizes: Iterable[int], min_length: int = 0) -> list[int]:
    """Return ``sizes`` as a list if each is a whole number >= 1, else raise ``ValueError``."""
    listed = list(sizes)
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in listed)
    if not whole or len(listed) < min_length:
        raise ValueError(
            f"{name}: expected {min_length} or more whole numbers >= 1, such as (64, 64); "
            f"got {listed!r}"
        )
    return listed


def check_batch(name: str, tensor: Tensor, datum_shape: tuple[int, ...]) -> Tensor:
    """Return ``tensor`` if it has shape (B, *datum_shape), else raise ``ValueError``."""
    # Integer comparisons only: networks call this inside samplers and under vmap.
    if tensor.shape[1:] != datum_shape or tensor.ndim == 0:
        wanted = ", ".join(["B", *map(str, datum_shape)])
        raise ValueError(
            f"{name}: expected shape ({wanted}); got {tuple(tensor.shape)}; reshape it, and "
            f"give a single datum as a batch of one with [None]"
        )
    return tensor


def check_one_each(name: str, values: Tensor, count: int) -> Tensor:
    """Return one number for each of ``count`` data as (count,), else raise ``ValueError``."""
    if values.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"{name}: expected shape ({count},) or ({count}, 1) for a batch of {count}; "
            f"got {tuple(values.shape)}; end the network with one unit per datum"
        )
    return values.reshape(count)
