# %% [markdown]
# # Are posteriors under a learned prior as wide as they say?
#
# What one learns: simulation-based calibration of inpainting digits. Digits are drawn from the
# GEBM itself, the noise scale from its prior, the pixels that are seen from the likelihood, and
# the posteriors of all problems are sampled in one batch. Then the rank of the truth among the
# draws is uniform for every latent and for the scale, and a 90 % interval of a hidden pixel holds
# it nine times of ten, whatever the model: if not, the sampler is at fault. Of held-out real digits
# neither need hold: there the model itself is judged. A picture shows the ranks.
#
#     python examples/calibration.py --run runs/demo
#     python examples/calibration.py --smoke

# %%
import time
import warnings
from functools import partial

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from inpainting import exact_latents, get_arguments, get_model, inpaint
from torch import Tensor

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.inverse import (
    Calibration,
    Coverage,
    calibration,
    interval_coverage,
    posterior_x,
    sample_many,
)
from pyro_gebm.operators import Mask

CANDIDATES = 200_000
HELD_OUT_NOISE = 0.1
BINS = 16


def posteriors(y: Tensor, gebm: pg.GEBM, mask: Mask, seed: int, smoke: bool) -> InferenceData:
    """Two chains for each problem, thinned, so that the ranks see draws that are nearly free."""
    steps = {"num_samples": 24, "warmup_steps": 30, "thinning": 1}
    if not smoke:
        steps = {"num_samples": 64, "warmup_steps": 150, "thinning": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what has converged is printed
        return sample_many(
            partial(inpaint, gebm=gebm, mask=mask),
            y,
            num_chains=2,
            global_moves=pg.GlobalMoves(num_proposals=16, every=2),
            seed=seed,
            progress=not smoke,
            **steps,
        )


def hidden_coverage(idata: InferenceData, gebm: pg.GEBM, x: Tensor, mask: Mask) -> Coverage:
    """90 % intervals of the hidden pixels."""
    hidden = ~mask.mask
    return interval_coverage(posterior_x(idata, gebm)[..., hidden], x[:, hidden])


def draw_ranks(path: str, found: Calibration) -> None:
    """Empirical distribution of the ranks minus the uniform one, a line per site's component."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    grid = torch.arange(found.num_draws + 2) / (found.num_draws + 1)
    for name, colour in (("z", "#3B6FB6"), ("scale", "#C8553D")):
        ranks = found.ranks[name].reshape(len(found.ranks[name]), -1)
        for place, column in enumerate(ranks.T):
            below = torch.stack([(column < k).double().mean() for k in range(len(grid))])
            label = f"{name}, {ranks.shape[1]} component(s)" if place == 0 else None
            axis.plot(grid, below - grid, color=colour, linewidth=1, label=label)
    # Kolmogorov's 95 % and, for all components together, about 99.7 % lines.
    num = len(ranks)
    for level, style in ((1.36, "--"), (1.82, ":")):
        for sign in (-1, 1):
            axis.axhline(sign * level / num**0.5, color="grey", linewidth=0.8, linestyle=style)
    axis.set(xlabel="rank of the truth / (L + 1)", ylabel="ECDF - uniform")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def share_converged(idata: InferenceData) -> float:
    return float((inference_data.rhat(idata) < 1.1).reshape(-1).mean())


# %%
def main() -> None:
    arguments = get_arguments("Calibration of inpainting.", "runs/calibration")
    seed, smoke, started = arguments.seed, arguments.smoke, time.perf_counter()
    gebm, real = get_model(arguments.run, seed, smoke)
    torch.manual_seed(seed)
    num = 64 if smoke else 512
    seen = torch.zeros(1, 8, 8, dtype=torch.bool)
    seen[:, :4] = True
    mask = Mask(seen)
    z = exact_latents(gebm, num, CANDIDATES)
    scale = dist.LogNormal(-1.5, 0.5).sample((num,))
    with torch.no_grad():
        x = gebm.base(z)
    y = mask(x) + scale[:, None] * torch.randn(num, int(seen.sum()))
    idata = posteriors(y, gebm, mask, seed, smoke)
    bins = 8 if smoke else BINS
    found = calibration(idata, {"z": z, "scale": scale}, num_bins=bins)
    draw_ranks(str(arguments.out / "calibration.png"), found)
    own = hidden_coverage(idata, gebm, x, mask)
    real_y = mask(real[:num])
    real_y = real_y + HELD_OUT_NOISE * torch.randn_like(real_y)
    held_out_idata = posteriors(real_y, gebm, mask, seed, smoke)
    held_out = hidden_coverage(held_out_idata, gebm, real[:num], mask)
    print(f"{num} problems, {found.num_draws} draws each, {time.perf_counter() - started:.0f} s")
    print("| site | smallest p | median p |")
    print("|---|---|---|")
    for name, p in found.p_values.items():
        print(f"| {name} | {float(p.min()):.2g} | {float(p.median()):.2g} |")
    print(f"Smallest p times their number: {found.worst:.2g}\n")
    print("| digits | 90 % intervals hold | should be | R-hat < 1.1 |")
    print("|---|---|---|---|")
    for name, seen_, chains in (
        ("the model's own", own, idata),
        ("held-out", held_out, held_out_idata),
    ):
        share = f"{seen_.share:.3f} ± {seen_.standard_error:.3f}"
        expected = f"{seen_.expected:.3f}" if name != "held-out" else "-"
        print(f"| {name} | {share} | {expected} | {share_converged(chains):.2f} |")


if __name__ == "__main__":
    main()
