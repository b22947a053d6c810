"""The comparison in a sentence."""

import math

from pyro_gebm.comparison.results import Comparison, Interval, KernelResult, Summary
from pyro_gebm.inference_data import RHAT_LIMIT

DIVERGENT_LIMIT = 0.01


def verdict(comparison: Comparison) -> str:
    """One sentence: which kernels improve on the base, by how much, and which to distrust.

    A kernel improves (or worsens) the score if the interval of its ratio to the base at the end
    of the budget lies below (above) 1; of a single seed the ratio itself. It has converged if
    the largest R-hat of its long run, over latents and, with labels, modes, is at most 1.01.
    """
    protocol, results = comparison.protocol, comparison.kernels.values()
    where = f"At {protocol.budget:,} gradient evaluations a chain, warm-up included"
    if protocol.beta != 1:
        where += f", and β = {protocol.beta:g}"
    ran = [(result, result.summary) for result in results if result.summary is not None]
    clauses = _shifts(protocol.score, [pair for pair in ran if _doubt(pair[1]) is None])
    clauses += [
        f"{result.kernel} {_doubt(summary)}, its score being {_ratio(summary.end_ratio)}"
        for result, summary in ran
        if _doubt(summary) is not None
    ]
    clauses += [f"{r.kernel} failed ({_short(r.failure)})" for r in results if r.summary is None]
    single = " (one seed, hence no intervals)" if len(protocol.seeds) == 1 and ran else ""
    return f"{where}, {'; '.join(clauses)}{single}."


def _shifts(score: str, pairs: list[tuple[KernelResult, Summary]]) -> list[str]:
    """What converged kernels do to the score."""
    groups: dict[str, list[str]] = {}
    for result, summary in pairs:
        ratio = summary.end_ratio
        groups.setdefault(_direction(ratio), []).append(f"{result.kernel} to {_number(ratio)}")
    found = []
    for way in ("lowers", "raises"):
        if way in groups:
            first, *rest = groups[way]
            name, _, value = first.rpartition(" to ")
            others = f" ({', '.join(rest)})" if rest else ""
            found.append(f"{name} {way} the {score} to {value} of the base's{others}")
    if "same" in groups:
        listed = ", ".join(groups["same"])
        found.append(f"no difference from the base's {score} is shown for {listed} of it")
    if "unknown" in groups:
        names = ", ".join(text.rpartition(" to ")[0] for text in groups["unknown"])
        found.append(
            f"the base's own {score} is not above 0 for every seed, which leaves nothing to "
            f"improve on for {names}"
        )
    return found


def _direction(ratio: Interval) -> str:
    if math.isnan(ratio.mean):
        return "unknown"
    low, high = (ratio.mean, ratio.mean) if ratio.count == 1 else (ratio.low, ratio.high)
    return "lowers" if high < 1 else "raises" if low > 1 else "same"


def _doubt(summary: Summary) -> str | None:
    """Why the figures of a kernel are not to be trusted."""
    if not summary.rhat <= RHAT_LIMIT:
        return f"has not converged (R-hat {_rhat(summary.rhat)})"
    if summary.divergent_share > DIVERGENT_LIMIT:
        return f"diverges in {summary.divergent_share:.0%} of its draws"
    return None


def _rhat(rhat: float) -> str:
    if math.isnan(rhat):
        return "unknown: a latent never varied"
    if math.isinf(rhat):
        return "infinite: chains stay in different modes"
    return f"{rhat:.3f}" if rhat < 1.05 else f"{rhat:.2f}"


def _ratio(ratio: Interval) -> str:
    return "not comparable" if math.isnan(ratio.mean) else f"{_number(ratio)} of the base's"


def _number(ratio: Interval) -> str:
    if ratio.count == 1:
        return f"{ratio.mean:z.2f}"
    digits = 2 if ratio.half_width >= 0.005 else 3
    return f"{ratio.mean:z.{digits}f} ± {ratio.half_width:.{digits}f}"


def _short(failure: str | None, longest: int = 200) -> str:
    words = " ".join((failure or "").split())
    return words if len(words) <= longest else words[: longest - 3] + "..."
