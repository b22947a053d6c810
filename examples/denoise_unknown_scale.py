# %% [markdown]
# # How noisy is this digit?
#
# What one learns: a noise scale is one more latent site. Held-out digits with noise of four scales,
# of which the model is told nothing; z and the scale are sampled together, for all digits in one
# batch. The table sets the scale found against the true one, and the error of the posterior mean
# against that of the noisy digit itself.
#
# A generator cannot make every real digit: what it misses is noise to the model, and the scale
# found has a floor, the misfit. The last row is about digits that the generator has made.
#
#     python examples/denoise_unknown_scale.py --run runs/demo
#     python examples/denoise_unknown_scale.py --smoke

# %%
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from inpainting import draw_rows, get_arguments, get_model, model_digits
from torch import Tensor

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.inverse import interval_coverage, posterior_x, sample_many
from pyro_gebm.operators import gaussian_noise, observe

SCALES = (0.1, 0.3, 0.6, 1.0)


def denoise(y: Tensor, gebm: pg.GEBM) -> None:
    """y: every pixel, with noise of one unknown scale."""
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(-1.0), 1.0))
    observe("y", gaussian_noise(gebm.model(), scale, event_dim=3), y)


def row(
    name: str, idata: InferenceData, gebm: pg.GEBM, y: Tensor, truth: Tensor, scale: Tensor
) -> str:
    """Scales found, errors and coverage of some problems."""
    x = posterior_x(idata, gebm)
    found = torch.as_tensor(inference_data.values(idata, "scale")).flatten(0, 1)
    of_scale, of_x = interval_coverage(found, scale), interval_coverage(x, truth)
    cells = [name, f"{float(found.mean()):.3f}", f"{of_scale.share:.2f}"]
    cells += [f"{float((e - truth).square().mean().sqrt()):.3f}" for e in (y, x.mean(0))]
    cells.append(f"{of_x.share:.3f} ± {of_x.standard_error:.3f}")
    return "| " + " | ".join(cells) + " |"


# %%
def main() -> None:
    arguments = get_arguments(
        "Denoising with a noise scale to be found.", "runs/denoise_unknown_scale"
    )
    seed, smoke = arguments.seed, arguments.smoke
    gebm, real = get_model(arguments.run, seed, smoke)
    torch.manual_seed(seed)
    each, draws = (2, 20) if smoke else (8, 150)
    own = model_digits(gebm, each)
    digits = torch.cat([real[: each * len(SCALES)], own])
    scale = torch.tensor([*SCALES, 0.3]).repeat_interleave(each)
    y = digits + scale[:, None, None, None] * torch.randn_like(digits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of R-hat, where the smoke test is too short
        idata = sample_many(
            partial(denoise, gebm=gebm),
            y,
            num_samples=draws,
            warmup_steps=draws,
            global_moves=pg.GlobalMoves(num_proposals=16, every=4),
            seed=seed,
            progress=not smoke,
        )
    print("| noise | scale found | 90 % of scale | RMSE noisy | RMSE mean | 90 % of x |")
    print("|---|---|---|---|---|---|")
    names = [f"{s}" for s in SCALES] + ["0.3, the model's own"]
    for place, name in enumerate(names):
        some = slice(place * each, (place + 1) * each)
        print(row(name, idata.isel(problem=some), gebm, y[some], digits[some], scale[some]))
    shown = list(range(0, len(digits), each))
    path = arguments.out / "denoised.png"
    draw_rows(path, y[shown][:, 0], digits[shown], idata.isel(problem=shown), gebm)


if __name__ == "__main__":
    main()
