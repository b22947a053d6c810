"""The page of the results: a table and a plot for each target and number of chains.

python tests/benchmarks/page.py runs/benchmark     # anew from results.json
"""

import html
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bars import draw
from results import Cell, median, spread, status

TARGETS = {
    "digits": "A trained model of scikit-learn's 8 × 8 digits, as in the demo: 16 latents, two "
    "networks with two hidden layers of 256. Truth: half a million weighted draws of the base.",
    "digits-short": "The model of the digits after a short training: 16 latents, two networks with "
    "two hidden layers of 256. Truth: half a million weighted draws of the base.",
    "mlp": "A latent MLP, 64 → 256 → 784 → 256 → 1, random weights, 4 nats of energy. Truth: "
    "a long run of BlackJAX.",
    "gauss100": "A Gaussian in 100 dimensions, condition number 10⁴, rotated. Truth: exact.",
    "funnel": "Neal's funnel in 10 dimensions. Truth: exact; E xᵢ² is left out.",
    "modes8": "Eight modes on a ring in the plane, masses 1 : 2 : ... : 8. Truth: exact.",
    "modes25": "Twenty-five modes on a grid in the plane, masses 1 : 2 : 3. Truth: exact.",
    "modes16d": "Eight modes in 16 dimensions. Truth: exact.",
    "overlap64": "Three modes in 64 dimensions, 18 nats from the base. Truth: exact.",
}
NAMES = {
    **{"ours": "pyro_gebm", "pyro": "Pyro", "numpyro": "NumPyro", "blackjax": "BlackJAX"},
    **{"torchebm": "TorchEBM", "ebmkit": "ebmkit"},
}
LEGEND = """\
All starts are draws of the base; every run has one core and a process of its own. Figures are
medians over interleaved rounds, ranges in brackets. **Seconds** are the processor's, of the whole
call, warm-up in; ours has its diagnostics in. **Once**: seconds of the clock that are paid once,
for compilation, or, where nothing is compiled, for a first short run. **Bulk**: the least bulk
ESS over z and z² of all dimensions; **tail**: the least tail ESS over z; a second, and per 1,000
gradients of a chain, warm-up in. **Bias**: the largest error of a mean of z or z², in standard
errors; of 200 fair ones it is below 4 nine times in ten. **Overhead**: seconds over those of the
same number of bare gradients of the whole batch, compiled for the JAX libraries; what a chain
waits for others counts. **MiB**: the most that was resident during a run over what was before it,
draws included; the largest of the rounds. **Modes**: ESS a second of the worst mode's indicator,
and the total variation between visited and exact masses. **Status**: "R-hat" above 1.01 (from 16
chains on: 1.05), "few" effective draws (below 400), "biased" by more than 5 standard errors; such
a run's ESS means little, and its bar is pale."""


class Column(NamedTuple):
    """A head, and what stands below it for a cell that has runs."""

    head: str
    show: Callable[[Cell], str]


def number(value: float, digits: int = 3) -> str:
    """Few digits, thousands apart, a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def ranged(cell: Cell, name: str) -> str:
    """Median, and the range if there are several runs."""
    low, high = spread(cell, name)
    shown = number(median(cell, name))
    return f"{shown} [{number(low)}, {number(high)}]" if len(cell["runs"]) > 1 else shown


def of(name: str, digits: int = 3) -> Callable[[Cell], str]:
    return lambda cell: number(median(cell, name), digits)


COLUMNS = [
    Column("rounds", lambda cell: str(len(cell["runs"]))),
    Column("seconds", of("cpu_seconds")),
    Column("once", lambda cell: number(cell["once_seconds"] or 0.0, 2)),
    Column("bulk/s", lambda cell: ranged(cell, "bulk_per_second")),
    Column("tail/s", of("tail_per_second")),
    Column("bulk/kgrad", of("bulk_per_kgradient")),
    Column("tail/kgrad", of("tail_per_kgradient")),
    Column("R-hat", lambda cell: f"{median(cell, 'rhat'):.3f}"),
    Column("bias", of("bias_max", 2)),
    Column("overhead", of("overhead", 2)),
    # A later round finds the memory of the first, which no allocator gives back whole.
    Column("MiB", lambda cell: number(spread(cell, "memory_mib")[1])),
]
OF_MODES = [
    Column("modes/s", of("mode_ess_per_second")),
    Column("TV", of("total_variation", 2)),
]


class Group(NamedTuple):
    """What stands side by side: one target, so many chains."""

    target: str
    chains: int
    cells: list[Cell]

    @property
    def columns(self) -> list[Column]:
        """Those of modes only where there are some."""
        return COLUMNS + (OF_MODES if self.target.startswith(("modes", "overlap")) else [])


def groups(cells: dict[str, Cell]) -> list[Group]:
    """In the order of ``TARGETS``, then by chains; cells without an answer are left out."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells.values():
        if cell["runs"] or cell["error"]:
            found.setdefault((cell["target"], cell["chains"]), []).append(cell)
    order = list(TARGETS)
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return [Group(target, chains, found[target, chains]) for target, chains in keys]


def table(group: Group) -> tuple[list[str], list[list[str]]]:
    """Heads and rows; the best rate comes first, what has not converged after what has."""
    heads = ["library", "kernel", "status", *(column.head for column in group.columns)]
    rows = []
    for cell in sorted(group.cells, key=rank):
        shown = [column.show(cell) if cell["runs"] else "–" for column in group.columns]
        lengths = f"{cell['warmup']} + {cell['draws']}"
        rows.append([NAMES[cell["library"]], f"{cell['kernel']} ({lengths})", status(cell), *shown])
    return heads, rows


def rank(cell: Cell) -> tuple[bool, float]:
    rate = median(cell, "bulk_per_second")
    return status(cell) != "ok", -rate if math.isfinite(rate) else math.inf


def best(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Bulk ESS a second of each library's best kernel that has converged in every round."""
    heads = ["target", "chains", *NAMES.values()]
    rows = []
    for group in groups(data["cells"]):
        row = [group.target, str(group.chains)]
        for library in NAMES:
            mine = [cell for cell in group.cells if cell["library"] == library]
            good = sorted((cell for cell in mine if status(cell) == "ok"), key=rank)
            tried = "none converged" if any(cell["runs"] for cell in mine) else "failed"
            row.append(best_of(good[0]) if good else tried if mine else "–")
        rows.append(row)
    return heads, rows


def best_of(cell: Cell) -> str:
    return f"{number(median(cell, 'bulk_per_second'))} ({cell['kernel']})"


def training(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Milliseconds of a round of training, ours beside another loop."""
    heads = ["networks", "beside", "theirs, ms", "ours, ms", "ratio (quartiles)", "rounds"]
    rows = []
    for found in data["training"]:
        low, high = found["quartiles"]
        times = [f"{found[f'{whose}_milliseconds']:.1f}" for whose in ("their", "our")]
        ratio = f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"
        rows.append([found["networks"], found["beside"], *times, ratio, str(found["rounds"])])
    return heads, rows


def sections(data: dict[str, Any]) -> Iterator[tuple[int, str, str, Any, list[Cell]]]:
    """(level, title, words, table, what is drawn) of all that the page shows."""
    yield 2, "The best of each library", "Bulk ESS a second of the processor.", best(data), []
    seen: set[str] = set()
    for group in groups(data["cells"]):
        if group.target not in seen:
            seen.add(group.target)
            yield 2, group.target, TARGETS[group.target], None, []
        plural = "chain" if group.chains == 1 else "chains"
        drawn = sorted(group.cells, key=rank)
        yield 3, f"{group.target}, {group.chains:,} {plural}", "", table(group), drawn
    if data["training"]:
        words = "A round: two energy steps and one base step; five and one in the authors' recipe."
        yield 2, "Training", words, training(data), []


def about(data: dict[str, Any]) -> list[str]:
    """Machine and versions of each session that has left something."""
    kept = {run["session"] for cell in data["cells"].values() for run in cell["runs"]}
    kept |= {found["session"] for found in data["training"]}
    lines = []
    for index, told in enumerate(data["sessions"]):
        if index not in kept:
            continue
        runs = [run for cell in data["cells"].values() for run in cell["runs"]]
        loads = sorted(run["load"] for run in runs if run["session"] == index) or told["load"]
        versions = ", ".join(f"{name} {which}" for name, which in told["versions"].items())
        lines.append(
            f"{told['date'][:16].replace('T', ' ')} UTC, {told['cpu']}, {told['cores']} cores, "
            f"load {told['load'][0]:.1f} before and {loads[len(loads) // 2]:.1f} during the runs "
            f"(above 1: others were at work), Python {told['python']}, {versions}: "
            f"`{told['command']}`"
        )
    return lines


def write_page(folder: Path, data: dict[str, Any]) -> None:
    """page.md and page.html, which needs nothing beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.md").write_text(markdown(data))
    (folder / "page.html").write_text(page(data))


def markdown(data: dict[str, Any]) -> str:
    lines = ["# Benchmark", "", LEGEND, "", *(f"- {line}" for line in about(data)), ""]
    for level, title, words, tabled, _ in sections(data):
        lines += [f"{'#' * level} {title}", "", *([words, ""] if words else [])]
        if tabled:
            heads, rows = tabled
            lines += [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
            lines.append("")
    return "\n".join(lines)


def page(data: dict[str, Any]) -> str:
    body = [f"<h1>Benchmark</h1><p>{marked(LEGEND)}</p>"]
    body.append("<ul>" + "".join(f"<li>{marked(line)}</li>" for line in about(data)) + "</ul>")
    for level, title, words, tabled, drawn in sections(data):
        body.append(f"<h{level}>{html.escape(title)}</h{level}>")
        body.append(f"<p>{marked(words)}</p>" if words else "")
        body.append(draw(drawn, [f"{NAMES[c['library']]} {c['kernel']}" for c in drawn]))
        body.append(tagged(*tabled) if tabled else "")
    return f"<!doctype html><meta charset=utf-8>{STYLE}<title>Benchmark</title>{''.join(body)}\n"


def tagged(heads: list[str], rows: list[list[str]]) -> str:
    """A table, which scrolls sideways where the window is narrow."""
    lines = ["".join(f"<th>{html.escape(head)}</th>" for head in heads)]
    for row in rows:
        kind = ' class="bad"' if heads[2] == "status" and row[2] != "ok" else ""
        lines.append("".join(f"<td{kind}>{html.escape(text)}</td>" for text in row))
    inner = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{inner}</table></div>'


def marked(text: str) -> str:
    """The little Markdown of our own words."""
    text = html.escape(text, quote=False)
    for mark, tag in (("**", "b"), ("`", "code")):
        parts = text.split(mark)
        text = "".join(f"<{tag}>{p}</{tag}>" if i % 2 else p for i, p in enumerate(parts))
    return text


STYLE = """<meta name=viewport content="width=device-width"><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#222}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;margin:.5em 0 1.5em}
th,td{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,th:nth-child(2),td:first-child,td:nth-child(2){text-align:left}
.bad{color:#888}svg{max-width:100%;height:auto}h3{margin-bottom:.2em}
</style>"""


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), json.loads((Path(sys.argv[1]) / "results.json").read_text()))
