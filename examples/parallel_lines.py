# %% [markdown]
# # Two parallel lines that approach
#
# What one learns: why a base can follow KALE's gradient where the Jensen-Shannon divergence gives
# it none. Data are uniform on the segment x₁ = 0, the base on x₁ = s (after Arjovsky, Chintala and
# Bottou, 2017). For every s > 0 the two have nothing in common: their Jensen-Shannon divergence is
# log 2 and their KL infinite, however near they are. KALE within a class of smooth energies goes
# to zero with s:
#
# * a ball of radius r of an RKHS (random Fourier features), where the optimum is computed:
#   KALE <= r MMD, by Jensen's inequality;
# * energies of slope <= k, here an MLP under spectral norm, which has k a little above 1: the truth
#   is k W₁ = k s, by Jensen's inequality and E(x) = k x₁.
#
# It is the class that does it: the GAN's logistic loss within the same ball goes to zero as well,
# and an MLP without a bound climbs to log 2 with enough steps.
#
#     python examples/parallel_lines.py --out runs/parallel_lines

# %%
import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_gebm.nets import FourierEnergy, MLPEnergy
from pyro_gebm.objectives import gan_energy_loss, kale_bound
from pyro_gebm.plots import style
from pyro_gebm.training import solve_energy

RADII = (1.0, 10.0)


class Size(NamedTuple):
    """How much of everything."""

    points: int = 100
    features: int = 64
    steps: int = 800
    width: int = 32
    shifts: tuple[float, ...] = (1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)


SMOKE = Size(points=40, features=16, steps=30, width=8, shifts=(0.01, 0.1, 1.0))


def segments(shift: float, num: int) -> tuple[Tensor, Tensor]:
    """Data and base, (num, 2) each, at the same evenly spaced heights."""
    height = (torch.arange(num) + 0.5) / num
    real = torch.stack([torch.zeros(num), height], 1)
    return real, real + torch.tensor([shift, 0.0])


def ball(radius: float, size: Size) -> FourierEnergy:
    return FourierEnergy((2,), num_features=size.features, bandwidth=0.5, radius=radius).double()


def jensen_shannon(energy: nn.Module, real: Tensor, base: Tensor) -> Tensor:
    """Its lower bound in nats at a discriminator's logit -E: log 2 - loss/2."""
    return math.log(2) - gan_energy_loss(energy(real), energy(base)) / 2


def jensen_shannon_of_ball(real: Tensor, base: Tensor, radius: float, size: Size) -> float:
    """The best of a ball; the loss is convex in the energy's weights."""
    energy = ball(radius, size)
    optimiser = torch.optim.LBFGS(
        [energy.direction], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -jensen_shannon(energy, real.double(), base.double())
        loss.backward()
        return loss

    optimiser.step(closure)
    return -float(closure().detach())


def train(energy: nn.Module, real: Tensor, base: Tensor, objective: str, steps: int) -> float:
    """The value after so many steps on all of the points."""
    c = nn.Parameter(torch.zeros(()))
    adam = torch.optim.Adam([*energy.parameters(), c], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

    def value() -> Tensor:
        if objective == "jensen-shannon":
            return jensen_shannon(energy, real, base)
        return kale_bound(energy(real), energy(base), c)

    for _ in range(steps):
        adam.zero_grad()
        (-value()).backward()
        adam.step()
        schedule.step()
    energy.eval()
    with torch.no_grad():
        return float(value())


def values_at(shift: float, size: Size) -> dict[str, float]:
    """Every figure at one distance between the lines."""
    real, base = segments(shift, size.points)
    found = {
        f"KALE, RKHS ball r = {radius:g}": solve_energy(
            ball(radius, size), real, base, tolerance=1e-6
        ).value
        for radius in RADII
    }
    torch.manual_seed(0)
    bounded = MLPEnergy((2,), (size.width,) * 2, spectral_norm=True)
    found["KALE, MLP of slope 1"] = train(bounded, real, base, "kale", size.steps)
    found["JS, RKHS ball r = 10"] = jensen_shannon_of_ball(real, base, RADII[1], size)
    torch.manual_seed(0)
    free = MLPEnergy((2,), (size.width,) * 2)
    found["JS, MLP"] = train(free, real, base, "jensen-shannon", size.steps)
    found["JS, truth"] = math.log(2)
    return found


# %%
def draw(shifts: tuple[float, ...], found: list[dict[str, float]], path: Path) -> None:
    figure = style.new_figure(6.5, 4)
    axis = figure.subplots()
    for place, name in enumerate(found[0]):
        look = style.look(place)
        values = [row[name] for row in found]
        marker = None if name == "JS, truth" else look.marker
        colour = style.INK if name == "JS, truth" else look.colour
        axis.loglog(shifts, values, color=colour, marker=marker, ls=look.dashes, ms=4, label=name)
    axis.set_xlabel("distance s between the lines")
    axis.set_ylabel("nats")
    style.open_axes([axis])
    style.legend_below(figure, axis, columns=2)
    style.write(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="KALE and Jensen-Shannon of two parallel lines.")
    parser.add_argument("--out", type=Path, help="a folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="few points and steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = SMOKE if arguments.smoke else Size()
    found = [values_at(shift, size) for shift in size.shifts]
    print("| s | " + " | ".join(found[0]) + " |\n|" + "---|" * (len(found[0]) + 1))
    for shift, row in zip(size.shifts, found, strict=True):
        cells = [f"{shift:g}", *(f"{value:.4f}" for value in row.values())]
        print("| " + " | ".join(cells) + " |")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        draw(size.shifts, found, arguments.out / "parallel_lines.png")


if __name__ == "__main__":
    main()
