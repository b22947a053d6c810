"""``pyro-gebm compare``: kernels against gradient evaluations, as a table, a page and JSON."""

import argparse
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_gebm.cli.judges import Judge, build_judge, class_truth
from pyro_gebm.cli.pictures import floor_line
from pyro_gebm.cli.problems import Problem
from pyro_gebm.cli.runs import load_run, open_folder
from pyro_gebm.cli.tables import spread
from pyro_gebm.comparison import (
    Comparison,
    Interval,
    KernelResult,
    common_curve,
    compare,
    to_dict,
    verdict,
)
from pyro_gebm.metrics import label_modes
from pyro_gebm.plots import (
    Curve,
    Occupancy,
    plot_curves,
    plot_mode_occupancy,
    plot_transition_matrix,
)
from pyro_gebm.report import (
    Page,
    Picture,
    RunFolder,
    Section,
    Table,
    format_table,
    render_page,
    write_json,
    write_text,
)

HEADER = (
    "kernel",
    "score",
    "ratio to base",
    "long run: ratio",
    "R-hat",
    "ESS / 1,000 gradients",
    "occupancy error",
    "switches / 1,000 gradients",
    "acceptance",
    "divergent",
    "gradients (warm-up)",
    "seconds",
)


def run_compare(arguments: argparse.Namespace) -> None:
    """Compare kernels on a trained model at a budget of gradient evaluations."""
    source, gebm, problem = load_run(arguments.run, arguments.data_root, arguments.device)
    out = open_folder(arguments.out or source.path)
    judge = build_judge(problem, progress=True)
    found = compare(
        gebm,
        scorer=judge.scorer,
        kernels=arguments.kernels,
        budget=arguments.budget,
        num_chains=arguments.num_chains,
        warmup_steps=arguments.warmup_steps,
        beta=arguments.beta,
        seeds=arguments.seeds,
        global_moves=None if arguments.global_moves == "off" else "auto",
        labeller=labeller_of(judge),
        mode_truth=class_truth(problem, judge),
        score_name=judge.score_name,
    )
    print(f"\n{format_table(HEADER, [_row(r) for r in found.kernels.values() if r.summary])}\n")
    for line in (*failures(found), *notes(judge, found)):
        print(line)
    print(f"\nVerdict: {verdict(found)}")
    pictures = draw(found, problem, judge, out)
    write_json(out.comparison, {"measured": judge.protocol, **to_dict(found)})
    write_text(out.comparison_page, render_page(page_of(problem, judge, found, pictures)))
    written = [out.comparison_page, out.comparison, *[picture.path for picture in pictures]]
    print(f"Wrote {', '.join(path.name for path in written)} to {out.path}.")


def labeller_of(judge: Judge) -> Callable[[Tensor], Any] | None:
    """Samples to classes, or to the nearest mode; ``None`` where there are none."""
    if judge.classifier is not None:
        return judge.classifier.predict
    modes = judge.modes
    return None if modes is None else lambda x: label_modes(x, modes)


def page_of(problem: Problem, judge: Judge, found: Comparison, pictures: list[Picture]) -> Page:
    """The page of a comparison."""
    rows = [_row(result) for result in found.kernels.values()]
    protocol = found.protocol
    return Page(
        title=f"{problem.name}: samplers at {protocol.budget:,} gradient evaluations a chain",
        verdict=verdict(found),
        sections=[
            Section(
                "Scores",
                [Table(HEADER, rows)],
                notes=[*failures(found), *notes(judge, found)],
            ),
            Section("Pictures", pictures=pictures),
            Section("How it was measured", notes=[f"{judge.protocol}.", *protocol.notes]),
        ],
        protocol=[
            (name.replace("_", " "), str(value))
            for name, value in protocol._asdict().items()
            if name != "notes"
        ],
    )


def notes(judge: Judge, found: Comparison) -> list[str]:
    """What the base and real data score, and what ± means."""
    seeds = len(found.protocol.seeds)
    reach = f"± is a 95 % interval over {seeds} seeds." if seeds > 1 else "One seed: no intervals."
    return [
        f"The base scores {_interval(found.base.score)}; two halves of the test data "
        f"{spread(found.floor)}. {judge.floor_note}",
        f"{reach} Score and ratio: the chains' positions at the end of the budget; the ratio is "
        "to the base samples that they started from. Long run: the second half.",
    ]


def failures(found: Comparison) -> list[str]:
    """A line for each kernel that failed."""
    return [f"{r.kernel}: failed, {r.failure}" for r in found.kernels.values() if r.failure]


def draw(found: Comparison, problem: Problem, judge: Judge, out: RunFolder) -> list[Picture]:
    """Curves, and where there are modes their occupancy and the first kernel's transitions."""
    ran = [result for result in found.kernels.values() if result.summary is not None]
    if not ran:
        return []
    score = found.protocol.score
    picture = Picture(
        out.picture("compare_curves"),
        f"{score} of the chains' positions against gradient evaluations, warm-up included; "
        "chains start from base samples.",
    )
    curves = {result.kernel: Curve(*common_curve(result)) for result in ran}
    plot_curves(curves, picture.path, score=score, floor=floor_line(found.floor))
    return [picture, *_draw_modes(ran, problem, judge, out, found.protocol.seeds[0])]


def _draw_modes(
    ran: list[KernelResult], problem: Problem, judge: Judge, out: RunFolder, seed: int
) -> list[Picture]:
    summaries = {r.kernel: r.runs[0].modes for r in ran}
    bars = {
        name: Occupancy(modes.occupancy, modes.mcse) for name, modes in summaries.items() if modes
    }
    first = ran[0].runs[0].modes
    if first is None or not bars:
        return []
    occupancy = Picture(
        out.picture("compare_occupancy"),
        f"Share of the long run in each mode or class, seed {seed}.",
    )
    truth = class_truth(problem, judge)
    plot_mode_occupancy(bars, occupancy.path, truth=truth)
    transitions = Picture(
        out.picture("compare_transitions"),
        f"Where a draw of {ran[0].kernel} goes from each mode or class, seed {seed}.",
    )
    plot_transition_matrix(first.transition_matrix, transitions.path)
    return [occupancy, transitions]


def _row(result: KernelResult) -> list[str]:
    summary = result.summary
    if summary is None:
        return [result.kernel, "failed, see below"]
    error, switches = summary.occupancy_error, summary.switches_per_1000_gradients
    return [
        result.kernel,
        _interval(summary.end),
        _interval(summary.end_ratio),
        _interval(summary.stationary_ratio),
        f"{summary.rhat:.3f}",
        f"{summary.ess_per_1000_gradients:.1f}",
        "-" if error is None else _interval(error),
        "-" if switches is None else f"{switches:.1f}",
        f"{summary.acceptance:.2f}",
        f"{summary.divergent_share:.2%}",
        f"{summary.gradients:,.0f} ({summary.warmup_gradients:,.0f})",
        f"{summary.seconds:.0f}",
    ]


def _interval(value: Interval) -> str:
    reach = "" if value.count == 1 else f" ± {value.half_width:.2g}"
    return f"{value.mean:.3g}{reach}"
