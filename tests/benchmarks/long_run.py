"""Writes ``mlp_truth.json``: moments of the latent MLP target from a long run of BlackJAX.

    python tests/benchmarks/long_run.py

Another library's sampler, so that ours is not measured against itself.
"""

import json

import numpy as np
from jobs import Job, use_one_core

use_one_core()  # before jax is imported

from measures import diagnose  # noqa: E402
from peers import prepare_blackjax  # noqa: E402
from targets import MLP_TRUTH, mlp  # noqa: E402


def main() -> None:
    """256 chains of ChEES, in eight runs of their own warm-up and starts."""
    job = Job("blackjax", "ChEES", "mlp", chains=256, draws=500, warmup=300)
    runner = prepare_blackjax(mlp(), job).runner
    z = np.concatenate([runner(seed).z for seed in range(100, 108)]).astype(np.float64)
    stored = {}
    for name, values in {"mean": z, "second_moment": z**2}.items():
        error = values.std((0, 1)) / np.sqrt(diagnose("ess", values, method="mean"))
        stored[name] = np.round(values.mean((0, 1)), 6).tolist()
        stored[f"{name}_error"] = np.round(error, 6).tolist()
    MLP_TRUTH.write_text(
        json.dumps({"source": f"{job}, 8 runs", "rhat": diagnose("rhat", z).max(), **stored})
    )


if __name__ == "__main__":
    main()
