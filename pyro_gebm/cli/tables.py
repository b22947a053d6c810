"""The comparison in words: table, verdict, and what goes into metrics.json."""

import math
from collections.abc import Sequence
from typing import Any

from pyro_gebm.cli.evaluation import NUM_SETS, BaseScore, Settings, Verdict
from pyro_gebm.cli.judges import Judge
from pyro_gebm.inference_data import RHAT_LIMIT
from pyro_gebm.metrics import MeanSpread
from pyro_gebm.report import Table


def comparison_table(judge: Judge, base: BaseScore, verdicts: Sequence[Verdict]) -> Table:
    """The base and every kernel, a line each."""
    header = [
        "samples",
        judge.score_name,
        "ratio to base",
        "occupancy error",
        "R-hat",
        "ESS",
        "divergences",
        "gradients",
        "seconds",
    ]
    rows = [["base alone", spread(base.score), "1", _share(base.occupancy_error), *["-"] * 5]]
    rows += [
        [
            verdict.kernel,
            spread(verdict.score.refined),
            spread(verdict.score.ratio),
            _share(verdict.occupancy_error),
            f"{verdict.rhat:.3f}",
            f"{verdict.ess:,.0f}",
            f"{verdict.divergences:,}",
            f"{verdict.gradients:,.0f}",
            f"{verdict.seconds:.1f}",
        ]
        for verdict in verdicts
    ]
    return Table(header, rows)


def notes(
    judge: Judge, base: BaseScore, verdicts: Sequence[Verdict], settings: Settings, set_size: int
) -> list[str]:
    """What the table's columns mean, with the protocol."""
    lines = [
        f"{judge.protocol}.",
        f"± is the standard deviation over {NUM_SETS} sets of {set_size:,} samples; "
        f"β = {settings.beta:g}, {settings.num_chains} chains, seed {settings.seed}.",
        f"Floor, two random halves of the {base.num_test:,} test data: {spread(base.floor)}. "
        + base.floor_note,
        "Occupancy error: total variation between class (or mode) frequencies and the truth.",
        "R-hat: largest, ESS: smallest over latents. Gradients: evaluations per chain, warm-up in.",
    ]
    if any(math.isnan(verdict.score.ratio.mean) for verdict in verdicts):
        lines.append("A set of the base is as near as real data are: there is no ratio to it.")
    if base.near_modes is not None:
        shares = [("base", base.near_modes), *[(v.kernel, v.near_modes) for v in verdicts]]
        listed = ", ".join(f"{name} {share:.3f}" for name, share in shares)
        lines.append(f"Share of samples within 3 standard deviations of a mode: {listed}.")
    return lines


def verdict_line(verdicts: Sequence[Verdict], base: BaseScore) -> str:
    """One sentence: which kernels improve on the base, and whether they may be believed."""
    good = [v for v in verdicts if v.score.ratio.mean + v.score.ratio.sd < 1]
    sound = [v for v in good if v.rhat < RHAT_LIMIT and _keeps_occupancy(v, base)]
    if sound:
        listed = ", ".join(f"{v.kernel} ({v.score.ratio.mean:.2f})" for v in sound)
        sentence = f"Verdict: the energy helps: {listed} times the base's distance"
        sentence += ", with converged chains"
        sentence += "." if base.occupancy_error is None else " and no worse occupancy."
        rest = [v.kernel for v in verdicts if v not in sound]
        return sentence + (f" Not so: {', '.join(rest)}." if rest else "")
    if good:
        names = ", ".join(v.kernel for v in good)
        return f"Verdict: {names}: closer than the base, but R-hat or occupancy speak against it."
    return "Verdict: no kernel improves on the base here."


def metrics_json(
    judge: Judge, base: BaseScore, verdicts: Sequence[Verdict], settings: Settings, set_size: int
) -> dict[str, Any]:
    """Everything the table says, with the protocol, for a machine."""
    return {
        "score": judge.score_name,
        "protocol": judge.protocol,
        "settings": {**settings._asdict(), "sets": NUM_SETS, "set_size": set_size},
        "base": {
            "score": base.score._asdict(),
            "occupancy_error": base.occupancy_error,
            "near_modes": base.near_modes,
        },
        "floor": {**base.floor._asdict(), "test_data": base.num_test},
        "kernels": {
            verdict.kernel: {
                **verdict._asdict(),
                "score": {name: _plain(part) for name, part in verdict.score._asdict().items()},
            }
            for verdict in verdicts
        },
        "verdict": verdict_line(verdicts, base),
    }


def _keeps_occupancy(verdict: Verdict, base: BaseScore) -> bool:
    if verdict.occupancy_error is None or base.occupancy_error is None:
        return True
    return verdict.occupancy_error <= base.occupancy_error


def spread(value: MeanSpread) -> str:
    """Mean and standard deviation; a dash where there is none."""
    return "-" if math.isnan(value.mean) else f"{value.mean:.3g} ± {value.sd:.2g}"


def _plain(value: MeanSpread) -> dict[str, float | None]:
    """For JSON, which has no NaN."""
    return {name: None if math.isnan(part) else part for name, part in value._asdict().items()}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
