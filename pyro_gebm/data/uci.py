"""Three tables of UCI as the papers on density estimation have them, from a data root."""

from pathlib import Path

from pyro_gebm._checks import check_choice
from pyro_gebm.data.preprocessing import drop_correlated
from pyro_gebm.data.tables import Column, Table, read_table

_FILES: dict[str, tuple[str, tuple[Column, ...]]] = {
    "redwine": ("winequality-red.csv", ("quality",)),
    "whitewine": ("winequality-white.csv", ("quality",)),
    "parkinsons": ("parkinsons_updrs.data", ("subject#", "age", "sex")),
}
UCI_NAMES = tuple(_FILES)


def load_uci(name: str, root: str | Path) -> Table:
    """Read a table of UCI without the columns that the papers leave out.

    * ``redwine`` (1599, 11) and ``whitewine`` (4898, 11): Cortez et al., 2009, without quality.
      The values are rounded, and every sixth row is a repetition: a density can be made as
      high as one likes at such points, and a test part shares rows with its training part. Add
      noise of the rounding's size (``prepare(dequantize=True)``) before likelihoods are compared.
    * ``parkinsons`` (5875, 15): Tsanas et al., 2009, without subject, age and sex, and less one
      of each two columns of correlation above 0.98. All 42 subjects are in all parts of a split.

    Args:
        name: one of the three.
        root: folder with ``uci/winequality-red.csv``, ``uci/winequality-white.csv`` or
            ``uci/parkinsons_updrs.data``.

    Raises:
        ValueError: the name is unknown, or the file is not there.
    """
    check_choice("name", name, UCI_NAMES)
    file, drop = _FILES[name]
    path = Path(root) / "uci" / file
    if not path.exists():
        raise ValueError(
            f"root: expected a folder with uci/{file}; got {root}; UCI's repository has the file"
        )
    table = read_table(path, drop=drop)
    return drop_correlated(table) if name == "parkinsons" else table
