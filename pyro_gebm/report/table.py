"""Tables as text."""

from collections.abc import Iterable, Sequence


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right.

    Example:
        >>> print(format_table(["kernel", "R-hat"], [["HMC", "1.002"], ["NUTS", "1.01"]]))
        kernel  R-hat
        -------------
        HMC     1.002
        NUTS     1.01
    """
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
