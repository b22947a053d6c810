# %% [markdown]
# # Inverting a generator, or sampling its posterior
#
# What one learns: what a posterior is worth beside the usual way of using a generator for an
# inverse problem. The lower half of held-out images is hidden; every method has the same CPU time
# for all of them: optimisation of z from many starts (GAN inversion), Langevin steps (MALA), Pyro's
# NUTS chain by chain (at two of the problems, which takes as long), and ours (HMC with global
# moves, NUTS), all problems in one batch. Scored on the hidden pixels: error of the mean, log score
# of the predictive density, coverage of 90 % intervals, and whether the chains agree.
#
#     python examples/compare_inversions.py --run runs/demo --seconds 40
#     python examples/compare_inversions.py --model runs/images/fashion-cpu-0.pt --data-root data
#     python examples/compare_inversions.py --smoke

# %%
import argparse
import math
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from inpainting import get_model
from torch import Tensor

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.cli.runs import load_run
from pyro_gebm.data.image_sets import load_image_set
from pyro_gebm.data.images import scale_pixels
from pyro_gebm.inverse import interval_coverage, posterior_x, sample_many
from pyro_gebm.operators import Mask, gaussian_noise, observe

NOISE = 0.2
"""Of what is seen, and of what the generator cannot make of a real image."""
CHAINS, PYRO_CHAINS = 4, 2
LARGEST = 1000
HELD_OUT = 2000


class Found(NamedTuple):
    """Images that a method has found: draws (L, P, ...), and how far its chains agree."""

    x: Tensor
    rhat: float
    gradients: str


def inpaint(y: Tensor, gebm: pg.GEBM, mask: Mask) -> None:
    observe("y", gaussian_noise(mask(gebm.model()), torch.tensor(NOISE), event_dim=1), y)


# %%
def inverted(gebm: pg.GEBM, mask: Mask, y: Tensor, steps: int, starts: int = 16) -> Found:
    """The z that fits best, by Adam from many starts; the energy takes part, as a prior."""
    with gebm.frozen():
        z = gebm.base.latent_prior.sample(len(y) * starts).requires_grad_()
        optimiser = torch.optim.Adam([z], lr=0.05)
        for _ in range(steps):
            misfit = (mask(gebm.base(z)).view(len(y), starts, -1) - y[:, None]).square().sum(-1)
            loss = misfit.flatten() / (2 * NOISE**2) + gebm.potential_fn(z)
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
        best = loss.view(len(y), starts).argmin(1)
        x = gebm.base(z.detach())
        x = x.view(len(y), starts, *x.shape[1:])[torch.arange(len(y)), best]
    return Found(x[None], math.nan, f"{steps}")


def sampled(gebm: pg.GEBM, mask: Mask, y: Tensor, steps: int, kernel: str, jumps: bool) -> Found:
    """All problems in one batch; a third of the transitions are warm-up."""
    idata = sample_many(
        partial(inpaint, gebm=gebm, mask=mask),
        y,
        kernel=kernel,
        num_samples=max(steps - steps // 3, 10),
        warmup_steps=max(steps // 3, 10),
        num_chains=CHAINS,
        global_moves=pg.GlobalMoves(num_proposals=16, every=4) if jumps else None,
        seed=0,
        progress=False,
    )
    n_steps = inference_data.values(idata, "n_steps", "sample_stats")
    rhat = float(torch.as_tensor(inference_data.rhat(idata)).reshape(len(y), -1).amax(1).median())
    return Found(posterior_x(idata, gebm, LARGEST), rhat, f"{n_steps.mean() * steps:.0f}")


def by_pyro(gebm: pg.GEBM, mask: Mask, y: Tensor, steps: int) -> Found:
    """Pyro's NUTS, problem by problem and chain by chain."""
    xs, rhats = [], []
    for row in y:
        idata = pg.sample(
            partial(inpaint, row, gebm, mask),
            kernel=pyro.infer.NUTS,
            num_samples=max(steps - steps // 3, 10),
            warmup_steps=max(steps // 3, 10),
            num_chains=PYRO_CHAINS,
            seed=0,
            progress=False,
        )
        xs.append(posterior_x(idata, gebm, LARGEST))
        rhats.append(inference_data.worst_rhat(idata))
    return Found(torch.stack(xs, 1), float(torch.tensor(rhats).median()), "-")


METHODS: dict[str, Callable[[pg.GEBM, Mask, Tensor, int], Found]] = {
    "optimisation, 16 starts": inverted,
    "Langevin (MALA)": partial(sampled, kernel="MALA", jumps=False),
    "Pyro's NUTS": by_pyro,
    "ours, NUTS": partial(sampled, kernel="NUTS", jumps=False),
    "ours, HMC": partial(sampled, kernel="HMC", jumps=False),
    "ours, HMC and global moves": partial(sampled, kernel="HMC", jumps=True),
}
PYRO_PROBLEMS, PYRO_STEPS = 2, 60
"""Chain by chain, Pyro's NUTS needs the others' time for all problems for a few steps at a few."""
FIRST_STEPS = 20


def within(method: Callable[[int], Found], seconds: float) -> tuple[Found, float]:
    """A method's run of about so many CPU seconds; shorter runs before tell how many steps."""
    steps = FIRST_STEPS
    while True:
        found, spent = timed(method, steps)
        if spent > 0.7 * seconds:
            return found, spent
        steps = math.ceil(steps * min(3.0, max(1.2, seconds / spent)))


def timed(method: Callable[[int], Found], steps: int) -> tuple[Found, float]:
    started = time.process_time()
    found = method(steps)
    return found, time.process_time() - started


def log_score(x: Tensor, truth: Tensor) -> float:
    """Mean over pixels of log (1/L) Σ N(truth; x_l, noise²), nats a pixel: high is good."""
    each = torch.distributions.Normal(x, NOISE).log_prob(truth)
    return float((each.logsumexp(0) - math.log(len(x))).mean())


def row(name: str, found: Found, seconds: float, truth: Tensor, hidden: Tensor) -> str:
    x, truth = found.x[..., hidden], truth[:, hidden]
    error = (x.mean(0) - truth).square().mean().sqrt()
    # A datum is x and noise; a point estimate has the noise alone for an interval.
    noisy = x.repeat(-(-LARGEST // len(x)), 1, 1)[:LARGEST]
    held = interval_coverage(noisy + NOISE * torch.randn_like(noisy), truth)
    cells = [name, f"{error:.3f}", f"{log_score(x, truth):.2f}"]
    cells += [f"{held.share:.3f} ± {held.standard_error:.3f}"]
    cells += ["-" if math.isnan(found.rhat) else f"{found.rhat:.3f}", found.gradients]
    return "| " + " | ".join([*cells, f"{seconds:.0f}"]) + " |"


# %%
def model_and_images(arguments: argparse.Namespace) -> tuple[pg.GEBM, Tensor]:
    """The prior, and held-out images (N, C, H, W) in [-1, 1]."""
    if arguments.run is not None:
        _, gebm, problem = load_run(str(arguments.run))
        return gebm, problem.test
    if arguments.model is None:
        return get_model(None, arguments.seed, arguments.smoke)
    root = arguments.data_root or os.environ.get("PYRO_GEBM_DATA", "data")
    test = load_image_set(arguments.data, Path(root), train=False, limit=HELD_OUT)
    return pg.load(arguments.model).eval(), scale_pixels(test.pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Optimisation and samplers at equal CPU time.")
    parser.add_argument("--run", type=Path, help="a run folder; digits are learned without one")
    parser.add_argument("--model", type=Path, help="a GEBM of examples/images.py, instead")
    parser.add_argument("--data", choices=["mnist", "fashion-mnist"], default="fashion-mnist")
    parser.add_argument("--data-root", type=Path, help="where --data is; else $PYRO_GEBM_DATA")
    parser.add_argument("--seconds", type=float, default=40, help="of CPU, for all problems")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gebm, real = model_and_images(arguments)
    torch.manual_seed(arguments.seed)
    num, seconds = (2, 0.2) if arguments.smoke else (arguments.problems, arguments.seconds)
    truth = real[torch.randperm(len(real))[:num]]
    seen = torch.zeros(truth.shape[1:], dtype=torch.bool)
    seen[:, : truth.shape[2] // 2] = True
    mask = Mask(seen)
    clean = mask(truth)
    y = clean + NOISE * torch.randn_like(clean)
    print("| method | RMSE | log score | 90 % hold | R-hat | gradients | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, method in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # R-hat is in the table
            if method is by_pyro:
                few = y[:PYRO_PROBLEMS]
                found, spent = timed(partial(method, gebm, mask, few), PYRO_STEPS)
            else:
                found, spent = within(partial(method, gebm, mask, y), seconds)
        judged = truth[: found.x.shape[1]]
        print(row(f"{name}, {len(judged)} problems", found, spent, judged, ~seen), flush=True)
    print(f"\n{num} problems, seed {arguments.seed}; R-hat: the median problem's; noise {NOISE}.")


if __name__ == "__main__":
    main()
