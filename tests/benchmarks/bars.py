"""A bar for each kernel, as SVG that needs nothing beside it."""

import html
import math

from results import Cell, median, spread, status

LEFT, WIDTH, BAR, GAP = 170, 420, 14, 6
OURS, THEIRS = "#0072b2", "#d55e00"


def draw(cells: list[Cell], labels: list[str]) -> str:
    """Bulk ESS a second with its range; what has not converged is pale; what failed is named."""
    if not cells:
        return ""
    most = max((high(cell) for cell in cells), default=0.0) or 1.0
    lines = [bar(*pair, most, row) for row, pair in enumerate(zip(cells, labels, strict=True))]
    height = len(cells) * (BAR + GAP) + GAP
    return (
        f'<svg width="{LEFT + WIDTH + 160}" height="{height}" font-size="12" role="img" '
        f'viewBox="0 0 {LEFT + WIDTH + 160} {height}">'
        f"<title>Bulk ESS a second of the processor</title>{''.join(lines)}</svg>"
    )


def high(cell: Cell) -> float:
    """The largest rate of a cell, 0 where there is none."""
    most = spread(cell, "bulk_per_second")[1]
    return most if math.isfinite(most) else 0.0


def bar(cell: Cell, label: str, most: float, row: int) -> str:
    """One line: name, bar with its range, figure."""
    top = GAP + row * (BAR + GAP)
    middle = top + BAR / 2
    text = f'<text x="{LEFT - 6}" y="{middle + 4}" text-anchor="end">{html.escape(label)}</text>'
    told = status(cell)
    rate = median(cell, "bulk_per_second")
    if not math.isfinite(rate):
        short = html.escape(told[:60])
        return text + f'<text x="{LEFT}" y="{middle + 4}" fill="#a00">{short}</text>'
    scale = WIDTH / most
    colour = OURS if cell["library"] == "ours" else THEIRS
    pale = 1.0 if told == "ok" else 0.3
    length = max(1.0, rate * scale)
    text += (
        f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{colour}" '
        f'fill-opacity="{pale}"/>'
    )
    low, top_rate = (value * scale + LEFT for value in spread(cell, "bulk_per_second"))
    if len(cell["runs"]) > 1:
        text += f'<path d="M{low:.1f} {middle}H{top_rate:.1f}" stroke="#222"/>'
    note = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    note += "" if told == "ok" else f" ({told})"
    where = max(LEFT + length, top_rate) + 6
    return text + f'<text x="{where:.1f}" y="{middle + 4}">{html.escape(note)}</text>'
