# %% [markdown]
# # How many measurements does a digit need?
#
# What one learns: compressed sensing with a GEBM as prior. Held-out digits are seen through a few
# random projections y = A x + noise; the posterior of x is sampled for all digits in one batch,
# for several numbers of measurements. The table sets its mean against two rivals without a
# posterior: the shortest x that fits (the pseudo-inverse), and the generator inverted by
# optimisation from many starts, the usual way with GANs.
#
#     python examples/compressed_sensing.py --run runs/demo
#     python examples/compressed_sensing.py --smoke

# %%
import time
import warnings
from functools import partial

import pyro
import torch
from inpainting import draw_rows, get_arguments, get_model
from torch import Tensor

import pyro_gebm as pg
from pyro_gebm.inverse import interval_coverage, posterior_x, sample_many
from pyro_gebm.operators import RandomProjection, gaussian_noise, observe

NOISE = 0.1


def sense(y: Tensor, gebm: pg.GEBM, operator: RandomProjection, width: float) -> None:
    """y: projections of x, with noise, and with what the generator cannot make of a real digit."""
    x = gebm.model()
    misfit = pyro.sample("misfit", pyro.distributions.HalfNormal(torch.tensor(width)))
    scale = (NOISE**2 + misfit**2).sqrt()
    observe("y", gaussian_noise(operator(x), scale, event_dim=1), y)


def shortest(operator: RandomProjection, y: Tensor) -> Tensor:
    """The x of least norm with A x = y, (P, 1, 8, 8)."""
    inverse = torch.linalg.pinv(operator.matrix).T.to(y)
    return (y @ inverse).reshape(-1, *operator.shape)


def invert(gebm: pg.GEBM, operator: RandomProjection, y: Tensor, starts: int, steps: int) -> Tensor:
    """G(z) for the z that fits best, by Adam from many starts, (P, 1, 8, 8)."""
    with gebm.frozen():
        z = gebm.base.latent_prior.sample(len(y) * starts).requires_grad_()
        optimiser = torch.optim.Adam([z], lr=0.05)
        for _ in range(steps):
            misfit = (operator(gebm.base(z)).view(len(y), starts, -1) - y[:, None]).square().sum(-1)
            optimiser.zero_grad()
            misfit.sum().backward()
            optimiser.step()
        best = misfit.argmin(1)
        found: Tensor = gebm.base(z.detach()).view(len(y), starts, *operator.shape)
    return found[torch.arange(len(y)), best]


# %%
def main() -> None:
    arguments = get_arguments("Compressed sensing with a GEBM as prior.", "runs/compressed_sensing")
    seed, smoke = arguments.seed, arguments.smoke
    gebm, real = get_model(arguments.run, seed, smoke)
    torch.manual_seed(seed)
    digits = real[: 4 if smoke else 12]
    draws = 20 if smoke else 100
    print("| m | shortest | inverted | posterior mean | 90 % of x | s inverted | s posterior |")
    print("|---|---|---|---|---|---|---|")
    for measurements in (16,) if smoke else (8, 16, 32):
        generator = torch.Generator().manual_seed(seed)
        operator = RandomProjection((1, 8, 8), measurements, generator=generator)
        clean = operator(digits)
        y = clean + NOISE * torch.randn_like(clean)
        started = time.perf_counter()
        inverted = invert(gebm, operator, y, 4, 20 if smoke else 400)
        between = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of R-hat, where the smoke test is short
            idata = sample_many(
                partial(sense, gebm=gebm, operator=operator, width=0.5),
                y,
                num_samples=draws,
                warmup_steps=draws,
                global_moves=pg.GlobalMoves(num_proposals=16, every=4),
                seed=seed,
                progress=not smoke,
            )
        seconds = time.perf_counter() - between
        x = posterior_x(idata, gebm)
        cells = [str(measurements)]
        for estimate in (shortest(operator, y), inverted, x.mean(0)):
            cells.append(f"{float((estimate - digits).square().mean().sqrt()):.3f}")
        found = interval_coverage(x, digits)
        cells.append(f"{found.share:.3f} ± {found.standard_error:.3f}")
        cells += [f"{between - started:.1f}", f"{seconds:.1f}"]
        print("| " + " | ".join(cells) + " |")
        seen = shortest(operator, y)[:, 0]
        path = arguments.out / f"sensing-{measurements}.png"
        draw_rows(path, seen[:4], digits[:4], idata.isel(problem=slice(4)), gebm)
    print("\nRMSE of a pixel in [-1, 1]. Pictures show the shortest x as the observation.")


if __name__ == "__main__":
    main()
