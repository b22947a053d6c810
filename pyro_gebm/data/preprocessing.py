"""From a table to parts that a model can learn: splits, scales, and two papers' habits."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_gebm._checks import check_choice, check_count, check_in_range
from pyro_gebm.data.scaling import (
    AffineMap,
    check_rows,
    fit_standardization,
    fit_whitening,
    refuse_constant,
)
from pyro_gebm.data.tables import Table

PREPROCESSINGS = ("standardize", "maf", "gebm")
_SHARE = 0.1
_WHITENED_ROWS = 10_000


class Split(NamedTuple):
    """Rows of a table, (N, D) each."""

    train: Tensor
    held_out: Tensor
    """For choosing and stopping."""
    test: Tensor


class Prepared(NamedTuple):
    """A table as a model sees it, in the default dtype."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    scaling: AffineMap
    """From the data's units (with the noise of dequantisation, where it is asked for)."""
    columns: tuple[str, ...]
    """Names in the order of the columns of the parts."""


def split_rows(
    x: Tensor, *, test: float = _SHARE, held_out: float = _SHARE, generator: torch.Generator
) -> Split:
    """Deal the rows of x (N, ...) at random into three parts.

    Args:
        x: data.
        test: share of all rows, in (0, 1); rounded to rows.
        held_out: share of all rows, in (0, 1).
        generator: source of the permutation.

    Raises:
        ValueError: a share is out of its range, or a part would be empty.

    Example:
        >>> parts = split_rows(torch.arange(20.0), generator=torch.Generator().manual_seed(0))
        >>> [len(part) for part in parts]
        [16, 2, 2]
    """
    for name, share in (("test", test), ("held_out", held_out)):
        check_in_range(name, share, 0.0, 1.0, open_low=True)
    num_test, num_held_out = round(test * len(x)), round(held_out * len(x))
    num_train = len(x) - num_test - num_held_out
    if min(num_train, num_test, num_held_out) < 1:
        raise ValueError(
            f"x: expected rows enough for three parts; got {len(x)}, of which {num_train} would be "
            f"train, {num_held_out} held out and {num_test} test"
        )
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    parts = torch.split(x[order], [num_train, num_held_out, num_test])
    return Split(*parts)


def dequantized(x: Tensor, steps: Tensor, *, generator: torch.Generator) -> Tensor:
    """x (N, D) with uniform noise of one step ``steps`` (D,) about each value.

    What was rounded to steps gets a bounded density: the likelihood of the noisy data is, by
    Jensen's inequality, a lower bound on that of the rounded ones, per step (Theis, van den
    Oord and Bethge, 2016, "A note on the evaluation of generative models", section 3.1).
    """
    noise = torch.rand(x.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return x.double() + (noise.to(x.device) - 0.5) * steps.to(x.device)


def rounding_steps(x: Tensor) -> Tensor:
    """Median gap between the different values of each column of x (N, D), (D,) float64.

    Raises:
        ValueError: a column is constant.
    """
    columns = [np.unique(column) for column in check_rows(x).double().T.numpy()]
    refuse_constant(x, torch.tensor([float(np.ptp(values)) for values in columns]))
    return torch.tensor([float(np.median(np.diff(values))) for values in columns]).double()


def prepare(
    table: Table, preprocessing: str = "standardize", *, seed: int = 0, dequantize: bool = False
) -> Prepared:
    """Split and scale a table, in a clean way or as one of two papers did.

    ``standardize``: rows dealt at random into 80 % train, 10 % held out, 10 % test; each column
    to mean 0 and variance 1 **on the training part**. Dequantisation adds uniform noise
    one step wide, the step being the median gap of the training part's values.

    ``maf``: as Papamakarios, Pavlakou and Murray (2017) did with MiniBooNE. Rows whose first
    column is below -100 are outliers and go; so do columns whose *smallest* value occurs more than
    5 times (the text says: a value that recurs too often). In the order of the file: the last
    10 % test, the last 10 % of the rest held out; the seed is not used. Scaled by mean and
    standard deviation of train and held-out part together. Never dequantised.

    ``gebm``: as Arbel, Zhou and Gretton (2021) did, after Wenliang et al. (2019). Rows are shuffled
    and columns permuted by numpy's legacy generator; all data are centred, and whitened by an
    SVD of the first 10,000 rows, **before** the split, so that the test part takes part in
    the scale; last 10 % test, then the last 10 % of the rest, at most 1,000, held out. Their
    dequantisation, used for both wines but not for Parkinsons, adds noise two steps wide, uniform
    in ± the median gap. Their seed is 1 in all runs, and gives their split, number by number. Their
    NLLs are those of the whitened data: ``scaling.log_det`` is left out.

    Args:
        table: as ``read_table`` gives it.
        preprocessing: one of the three names.
        seed: of the split and of the noise.
        dequantize: add noise to what was rounded.

    Returns:
        ``Prepared``.

    Raises:
        ValueError: the name is unknown, a column is constant, there are too few rows, or "maf" is
            to be dequantised.

    Example:
        >>> table = Table(torch.randn(50, 2).double() * 9 + 4, ("a", "b"))
        >>> prepared = prepare(table, seed=3)
        >>> [len(part) for part in prepared[:3]]
        [40, 5, 5]
        >>> bool(prepared.train.std(0, correction=0).allclose(torch.ones(2)))
        True
    """
    check_choice("preprocessing", preprocessing, PREPROCESSINGS)
    check_count("seed", seed, minimum=0)
    if preprocessing == "gebm":
        return _as_gebm(table, seed, dequantize)
    if preprocessing == "standardize":
        return _standardized(table, seed, dequantize)
    if dequantize:
        raise ValueError("dequantize: expected False with 'maf', which does not; got True")
    return _as_maf(table)


def drop_correlated(table: Table, threshold: float = 0.98) -> Table:
    """Leave out columns until no two have a correlation above a threshold in size.

    As Wenliang et al. (2019) do: the first column that has such a partner goes, and the rest is
    looked at again. Their later looks forget the absolute value; here none does, which makes
    no difference to Parkinsons.

    Args:
        table: with columns that are not constant.
        threshold: in (0, 1].

    Raises:
        ValueError: a column is constant, or the threshold out of its range.

    Example:
        >>> x = torch.arange(6.0).double()
        >>> table = Table(torch.stack([x, 1 - 2 * x, x.square()], dim=1), ("a", "b", "c"))
        >>> drop_correlated(table).columns
        ('b', 'c')
    """
    check_in_range("threshold", threshold, 0.0, 1.0, open_low=True)
    fit_standardization(table.values)  # refuses what has no correlation
    left = list(range(len(table.columns)))
    while True:
        correlation = torch.corrcoef(table.values[:, left].T).reshape(len(left), len(left))
        paired = ((correlation.abs() > threshold).sum(1) > 1).nonzero()
        if len(paired) == 0:
            return Table(table.values[:, left], tuple(table.columns[i] for i in left))
        del left[int(paired[0])]


# --- the three ways ------------------------------------------


def _standardized(table: Table, seed: int, noisy: bool) -> Prepared:
    generator = torch.Generator().manual_seed(seed)
    parts = split_rows(table.values, generator=generator)
    if noisy:
        steps = rounding_steps(parts.train)
        parts = Split(*(dequantized(part, steps, generator=generator) for part in parts))
    return _scaled(parts, fit_standardization(parts.train), table.columns)


def _as_maf(table: Table) -> Prepared:
    values = table.values[table.values[:, 0] >= -100]
    kept = [
        place for place, column in enumerate(values.T) if int((column == column.min()).sum()) <= 5
    ]
    if not kept:
        raise ValueError("preprocessing 'maf' leaves no column: each repeats its smallest value")
    rest, test = _last(values[:, kept], int(_SHARE * len(values)))
    train, held_out = _last(rest, int(_SHARE * len(rest)))
    columns = tuple(table.columns[place] for place in kept)
    return _scaled(Split(train, held_out, test), fit_standardization(rest), columns)


def _as_gebm(table: Table, seed: int, noisy: bool) -> Prepared:
    # The legacy generator, in their order of calls, gives their very split.
    rng = np.random.RandomState(seed)
    values = table.values.numpy().copy()
    rng.shuffle(values)
    if noisy:
        for place, step in enumerate(rounding_steps(torch.from_numpy(values)).tolist()):
            values[:, place] += (rng.rand(len(values)) * 2 - 1) * step
    order = rng.permutation(values.shape[1])
    x = torch.from_numpy(values[:, order])
    scaling = fit_whitening(x, rows=_WHITENED_ROWS)
    rest, test = _last(x, int(_SHARE * len(x)))
    train, held_out = _last(rest, min(int(_SHARE * len(rest)), 1000))
    return _scaled(
        Split(train, held_out, test), scaling, tuple(table.columns[place] for place in order)
    )


def _last(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """All but the last rows, and these."""
    if not 0 < count < len(x):
        raise ValueError(f"table: expected at least 12 rows for three parts; got {len(x)}")
    return x[:-count], x[-count:]


def _scaled(parts: Split, scaling: AffineMap, columns: tuple[str, ...]) -> Prepared:
    like = torch.get_default_dtype()
    train, held_out, test = (scaling.apply(part).to(like) for part in parts)
    return Prepared(train, held_out, test, scaling, columns)
