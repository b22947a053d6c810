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
import copy
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader, sample_toy
from pyro_gebm.flows import FreeEnergy, flow_base
from pyro_gebm.metrics.likelihood import (
    LogLikelihood,
    UntrustedLogZError,
    log_likelihood,
    trusted_log_z,
)
from pyro_gebm.nets import MLPEnergy, NetworkSpec, build
from pyro_gebm.training.max_likelihood import FlowConfig, fit_flow, mean_nll

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


class Bowl(nn.Module):
    """r(x) = |x|²/2s² + a network: exp(-r) is integrable, and heavier than the data."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x / self.scale).square().sum(-1) + self.network(x)


# %%
def fit_energy(
    gebm: pg.GEBM, x: Tensor, held_out: Tensor, penalty: float, budget: Budget, seed: int
) -> tuple[float, pg.GEBM]:
    """The energy alone on the frozen base; the best bound on validation data, and its model."""
    config = pg.TrainConfig(
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
    loader = BatchLoader(x, 256, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    looks = [
        info.held_out.bound
        for info in pg.Trainer(gebm, config, held_out=held_out).refit_energy(loader)
        if info.held_out is not None
    ]
    return max(looks), gebm.eval()


def best_energy(
    base: pg.Base, kind: str, parts: tuple[Tensor, Tensor], budget: Budget, seed: int
) -> tuple[float, pg.GEBM]:
    """The penalty with the best bound on validation data, and its model."""
    found = []
    for penalty in budget.penalties:
        own = copy.deepcopy(base)
        torch.manual_seed(seed)
        network = MLPEnergy((2,), (budget.width, budget.width))
        scale = 1.5 * float(parts[0].std())
        energy = network if kind == "residual" else FreeEnergy(Bowl(network, scale), own)
        bound, gebm = fit_energy(pg.GEBM(own, energy), *parts, penalty, budget, seed)
        found.append((bound, penalty, gebm))
    _, penalty, gebm = max(found, key=lambda row: row[0])
    return penalty, gebm


def judge(gebm: pg.GEBM, test: Tensor, budget: Budget, seed: int) -> LogLikelihood | None:
    """None where log Z is not to be trusted, which is said."""
    generator = torch.Generator().manual_seed(seed)
    chains = min(1024, budget.latents // 20 // 16 * 16)
    try:
        log_z = trusted_log_z(
            gebm, num_latents=budget.latents, num_chains=chains, generator=generator
        )
    except UntrustedLogZError as error:
        print(f"seed {seed}: {error}")
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
    torch.manual_seed(seed)
    base = flow_base(build(NetworkSpec(flow, {"dim": 2})))
    loader = BatchLoader(x, 256, generator=torch.Generator().manual_seed(seed))
    config = FlowConfig(steps=budget.flow_steps, evaluate_every=max(budget.flow_steps // 40, 1))
    for _ in fit_flow(base, loader, config, held_out=held_out):
        pass
    found = {ROWS[0]: mean_nll(base, test)}
    print(f"seed {seed}: {flow} by maximum likelihood, test NLL {found[ROWS[0]]:.3f}")
    for row, kind in zip(ROWS[1:], ("residual", "free"), strict=True):
        penalty, gebm = best_energy(base, kind, (x, held_out), budget, seed)
        judged = judge(gebm, test, budget, seed)
        found[row] = math.nan if judged is None else -judged.mean
        print(f"seed {seed}: {kind} energy, penalty {penalty}, test NLL {found[row]:.3f}")
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


def mean_and_error(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "none trusted"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


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
