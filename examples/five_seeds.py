# %% [markdown]
# # The demo over five seeds
#
# What one learns: how much of the demo's gain is luck. Runs `pyro-gebm demo` once per seed, each in
# a process of its own, and prints docs/results.md's table in Markdown.
#
#     python examples/five_seeds.py --out runs/five

# %%
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

KERNELS = ("NUTS", "HMC", "Langevin")


def run_demo(seed: int, out: Path, extra: list[str]) -> dict:
    """Run the demo for one seed, unless its folder already holds the scores."""
    if not (out / "metrics.json").exists():
        command = [
            sys.executable,
            "-m",
            "pyro_gebm",
            "demo",
            "--seed",
            str(seed),
            "--out",
            str(out),
        ]
        subprocess.run([*command, *extra], check=True)
    return json.loads((out / "metrics.json").read_text())


def table_row(seed: int, metrics: dict) -> str:
    """One seed: base and floor, then ratio and R-hat of each kernel."""
    base, floor = metrics["base"], metrics["floor"]
    cells = [str(seed), f"{base['score']['mean']:.2f}", f"{floor['mean']:.2f}"]
    for kernel in KERNELS:
        found = metrics["kernels"][kernel]
        ratio = found["score"]["ratio"]
        cells += [f"{ratio['mean']:.2f} ± {ratio['sd']:.2f}", f"{found['rhat']:.3f}"]
    errors = [metrics["kernels"][kernel]["occupancy_error"] for kernel in KERNELS]
    cells.append(" / ".join(f"{error:.3f}" for error in [base["occupancy_error"], *errors]))
    return "| " + " | ".join(cells) + " |"


def median_row(results: list[dict]) -> str:
    """Medians over the seeds of base, ratios and R-hats."""
    cells = [
        "**median**",
        f"{statistics.median(r['base']['score']['mean'] for r in results):.2f}",
        "",
    ]
    for kernel in KERNELS:
        found = [result["kernels"][kernel] for result in results]
        cells.append(f"**{statistics.median(f['score']['ratio']['mean'] for f in found):.2f}**")
        cells.append(f"{statistics.median(f['rhat'] for f in found):.3f}")
    return "| " + " | ".join([*cells, ""]) + " |"


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/five"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--smoke", action="store_true", help="one seed of a toy-sized demo")
    arguments = parser.parse_args()
    seeds, extra = arguments.seeds, []
    if arguments.smoke:
        seeds = seeds[:1]
        extra = ["--base-steps", "50", "--refit-steps", "50", "--num-chains", "16"]
        extra += ["--num-samples", "30", "--warmup-steps", "30"]
    results = [run_demo(seed, arguments.out / str(seed), extra) for seed in seeds]
    titles = ["seed", "base", "floor"]
    for kernel in KERNELS:
        titles += [f"{kernel}: ratio", "R-hat"]
    titles.append("occupancy error: base / " + " / ".join(KERNELS))
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for seed, result in zip(seeds, results, strict=True):
        print(table_row(seed, result))
    print(median_row(results))


if __name__ == "__main__":
    main()
