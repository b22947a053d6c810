# %% [markdown]
# # What an energy adds to a flow
#
# What one learns: a base with a density makes a GEBM's likelihood a number, -E(x) + log h(x) -
# log Z, in the units of any flow's. A RealNVP is fitted by maximum likelihood; a residual energy
# is then refitted on it by KALE, its penalty chosen on validation data; and the same network as
# a free r, where the model is exp(-r) whatever the base. Test NLLs over seeds, with standard
# errors, log Z by importance sampling, or by annealing where its weights are not to be trusted.
#
#     python examples/flow_density.py --data pinwheel

# %%
import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from _flows import (
    Bowl,
    Candidate,
    fitted_flow,
    log_z_of,
    mean_and_error,
    over_penalties,
)
from torch import Tensor, nn

import pyro_gebm as pg
from pyro_gebm.data import sample_toy
from pyro_gebm.flows import FreeEnergy
from pyro_gebm.metrics.likelihood import LogLikelihood, log_likelihood
from pyro_gebm.nets import MLPEnergy, NetworkSpec
from pyro_gebm.training.max_likelihood import FlowConfig, mean_nll

ROWS = ("flow by maximum likelihood", "GEBM, residual energy", "GEBM, free energy")


@dataclass(frozen=True)
class Budget:
    """How much of everything."""

    data: int = 4000
    flow_steps: int = 2500
    energy_steps: int = 1500
    penalties: tuple[float, ...] = (0.01, 0.03, 0.1)
    latents: int = 100_000
    width: int = 128


SMOKE = Budget(data=300, flow_steps=60, energy_steps=40, penalties=(0.03,), latents=2000, width=16)


def pinwheel(num: int, generator: torch.Generator, arms: int = 5) -> Tensor:
    """Five bent arms in the plane (Johnson et al., 2016), (num, 2), a few units wide."""
    radius = 1 + 0.3 * torch.randn(num, generator=generator)
    across = 0.1 * torch.randn(num, generator=generator)
    arm = torch.randint(arms, (num,), generator=generator)
    angle = 2 * math.pi * arm / arms + 0.25 * torch.exp(radius)
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack([cos * radius - sin * across, sin * radius + cos * across], dim=1)


def draw(name: str, num: int, generator: torch.Generator) -> Tensor:
    if name == "pinwheel":
        return pinwheel(num, generator)
    return sample_toy(name, num, generator=generator)


# %%
def config_of(penalty: float, budget: Budget) -> pg.TrainConfig:
    """The energy alone on the frozen base."""
    return pg.TrainConfig(
        base_steps=0,
        refit_steps=budget.energy_steps,
        refit_lr=1e-3,
        refit_gradient_penalty=penalty,
        log_partition_lr=1e-2,
        latents_per_datum=2,
        refit_patience=8,
        evaluate_every=max(budget.energy_steps // 30, 1),
        evaluation_samples=min(budget.latents, 20_000),
    )


def best_energy(
    base: pg.Base, kind: str, parts: tuple[Tensor, Tensor], budget: Budget, seed: int
) -> Candidate:
    """The penalty with the best bound on validation data, and its model."""

    def make_energy(own: pg.Base) -> nn.Module:
        network = MLPEnergy((2,), (budget.width, budget.width))
        if kind == "residual":
            return network
        return FreeEnergy(Bowl(network, 1.5 * float(parts[0].std())), own)

    return over_penalties(
        base, make_energy, lambda p: config_of(p, budget), budget.penalties, parts, seed
    )[0]


def judge(gebm: pg.GEBM, test: Tensor, budget: Budget, seed: int) -> LogLikelihood | None:
    """None where log Z is not to be trusted, which is said."""
    log_z = log_z_of(gebm, budget.latents, seed, chains=1024)
    if isinstance(log_z, str):
        print(f"seed {seed}: {log_z}")
        return None
    print(
        f"seed {seed}: log Z {log_z.log_z:.3f} ± {log_z.standard_error:.3f} by {log_z.method}, "
        f"ESS {log_z.ess:.0f}, k̂ {log_z.tail_shape:.2f}"
    )
    return log_likelihood(gebm, test, log_z)


def run(name: str, flow: str, budget: Budget, seed: int) -> dict[str, float]:
    """Test NLLs of the three models, in nats."""
    generator = torch.Generator().manual_seed(seed)
    x, held_out = draw(name, budget.data, generator), draw(name, budget.data // 2, generator)
    test = draw(name, 2 * budget.data, generator)
    config = FlowConfig(steps=budget.flow_steps, evaluate_every=max(budget.flow_steps // 40, 1))
    base = fitted_flow(NetworkSpec(flow, {"dim": 2}), x, held_out, config, seed)
    found = {ROWS[0]: mean_nll(base, test)}
    print(f"seed {seed}: {flow} by maximum likelihood, test NLL {found[ROWS[0]]:.3f}")
    for row, kind in zip(ROWS[1:], ("residual", "free"), strict=True):
        best = best_energy(base, kind, (x, held_out), budget, seed)
        judged = judge(best.gebm, test, budget, seed)
        found[row] = math.nan if judged is None else -judged.mean
        print(f"seed {seed}: {kind} energy, penalty {best.penalty}, test NLL {found[row]:.3f}")
    return found


def table(found: list[dict[str, float]]) -> str:
    """Means over seeds, and gains over the flow seed by seed, each with a standard error."""
    lines = ["| model | test NLL | gain over the flow | seeds |", "|---|---|---|---|"]
    for row in ROWS:
        kept = [run for run in found if not math.isnan(run[row])]
        nll = mean_and_error([run[row] for run in kept])
        gain = mean_and_error([run[ROWS[0]] - run[row] for run in kept])
        lines.append(f"| {row} | {nll} | {gain} | {len(kept)} |")
    return "\n".join(lines)


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description="Test NLL of a flow, and of GEBMs on it.")
    parser.add_argument("--data", default="pinwheel", help="pinwheel, gaussians8, moons, ...")
    parser.add_argument("--flow", default="nvp", choices=["nvp", "nsf"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--smoke", action="store_true", help="one seed and a tiny budget")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    budget, seeds = (SMOKE, 1) if arguments.smoke else (Budget(), arguments.seeds)
    found = [run(arguments.data, arguments.flow, budget, seed) for seed in range(seeds)]
    print(table(found))
    if arguments.out is not None:
        arguments.out.write_text(table(found) + "\n")


if __name__ == "__main__":
    main()
