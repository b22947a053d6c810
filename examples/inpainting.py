# %% [markdown]
# # What is in the hidden half of a digit?
#
# What one learns: how a trained GEBM is a prior in a Pyro model. The lower half of held-out digits
# is hidden; z and the noise scale are sampled given the upper half, for all digits in one batch
# (`sample_many`), and for the first one with the diagnostics of `pg.sample`. A picture shows the
# observation, the truth, mean and standard deviation of the posterior, and a dozen draws.
#
# The table says how often the 90 % interval of a hidden pixel holds it: for digits that the model
# itself has drawn, where theory says 90 %, and for real ones, where it need not.
#
#     python examples/inpainting.py --run runs/demo
#     python examples/inpainting.py --smoke

# %%
import argparse
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm import tqdm

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.cli.models import build_model
from pyro_gebm.cli.problems import load_problem
from pyro_gebm.data import BatchLoader
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.inverse import interval_coverage, posterior_images, posterior_x, sample_many
from pyro_gebm.operators import Mask, gaussian_noise, observe


def get_arguments(description: str, out: str) -> argparse.Namespace:
    """What the examples on digits are told; the folder to write to is there."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", type=Path, help="a run folder of pyro-gebm train or demo")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a toy-sized run")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return arguments


def get_model(
    run: Path | None, seed: int, smoke: bool, base_steps: int = 2000
) -> tuple[pg.GEBM, Tensor]:
    """The GEBM of a run, or one trained now, and held-out digits (N, 1, 8, 8)."""
    problem = load_problem("digits", seed)
    if run is not None:
        return pg.load(run / "gebm.pt").eval(), problem.test
    torch.manual_seed(seed)
    steps = {"base_steps": 30, "refit_steps": 30} if smoke else {"base_steps": base_steps}
    config = replace(problem.training, evaluate_every=0, **steps)
    loader = BatchLoader(problem.train, 128, generator=torch.Generator().manual_seed(seed + 1))
    trainer = pg.Trainer(build_model(problem), config)
    for _ in tqdm(trainer.fit(loader), desc="train", disable=smoke):
        pass
    return trainer.averaged().eval(), problem.test


@torch.no_grad()
def exact_latents(gebm: pg.GEBM, num: int, candidates: int) -> Tensor:
    """Draws of ν, (num, D): candidates from η, resampled without repeats by exp(-E(G(z))).

    Exact but for terms of the order num / (ESS of the candidates); no chain takes part, so that
    the truths cannot share a fault of the sampler.
    """
    z = gebm.base.latent_prior.sample(candidates)
    energy = torch.cat([gebm.latent_energy(part) for part in z.split(4096)])
    # The largest of log weight + Gumbel noise are draws without replacement.
    noise = -torch.empty_like(energy).exponential_().log()
    return z[(noise - energy).topk(num).indices]


@torch.no_grad()
def model_digits(gebm: pg.GEBM, num: int) -> Tensor:
    """Digits that the GEBM itself draws, (num, 1, 8, 8)."""
    digits: Tensor = gebm.base(exact_latents(gebm, num, 20_000))
    return digits


def draw_rows(path: Path, observed: Tensor, truth: Tensor, idata: InferenceData, gebm: pg.GEBM):
    """A row per problem: observation, truth, mean, standard deviation, a dozen draws.

    Args:
        path: file to write.
        observed: (P, H, W), NaN where nothing was seen.
        truth: (P, 1, H, W).
        idata: from ``sample_many``.
        gebm: the prior.
    """
    images, draws = posterior_images(idata, gebm), posterior_x(idata, gebm, 12)
    names = ["observed", "truth", "mean", "deviation"] + ["draws"] + [""] * 11
    figure, axes = plt.subplots(
        len(truth), 16, figsize=(11, 0.72 * len(truth) + 0.2), squeeze=False
    )
    # By hand: the automatic layouts take seconds for so many axes.
    top = 1 - 0.2 / figure.get_figheight()
    figure.subplots_adjust(0.005, 0.005, 0.995, top, wspace=0.06, hspace=0.06)
    for p, row in enumerate(axes):
        cells = [observed[p], truth[p, 0], images.mean[p, 0], images.deviation[p, 0]]
        for place, image in enumerate([*cells, *draws[:, p, 0]]):
            # Observations need not be images of the data's range, and deviations are not.
            high = {0: None, 3: 1.0}.get(place, 1.0)
            low = {0: None, 3: 0.0}.get(place, -1.0)
            axis = row[place]
            axis.set_facecolor("#88AACC")  # what was not seen
            colours = "magma" if place == 3 else "gray"
            axis.imshow(image, cmap=colours, vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[])
            if p == 0:
                axis.set_title(names[place], fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# %%
def inpaint(y: Tensor, gebm: pg.GEBM, mask: Mask) -> None:
    """y: the pixels that are seen, with noise of unknown scale."""
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(-1.5), 0.5))
    x = gebm.model()
    observe("y", gaussian_noise(mask(x), scale, event_dim=1), y)


def coverage_row(name: str, idata: InferenceData, gebm: pg.GEBM, truth: Tensor, mask: Mask) -> str:
    """Coverage of the hidden pixels, of x and of x with noise: a datum is x and noise."""
    hidden = ~mask.mask
    x = posterior_x(idata, gebm)[..., hidden]
    scale = torch.as_tensor(inference_data.values(idata, "scale")).flatten(0, 1)
    noisy = x + scale[:, :, None] * torch.randn_like(x)
    error = (x.mean(0) - truth[:, hidden]).square().mean().sqrt()
    cells = [name, f"{error:.3f}", f"{float(scale.mean()):.3f}"]
    for draws in (x, noisy):
        found = interval_coverage(draws, truth[:, hidden])
        cells.append(f"{found.share:.3f} ± {found.standard_error:.3f}")
    converged = (inference_data.rhat(idata) < 1.05).reshape(len(truth), -1).all(1).mean()
    return "| " + " | ".join([*cells, f"{converged:.2f}"]) + " |"


def main() -> None:
    arguments = get_arguments("Inpainting with a GEBM as prior.", "runs/inpainting")
    seed, smoke = arguments.seed, arguments.smoke
    gebm, real = get_model(arguments.run, seed, smoke)
    torch.manual_seed(seed)
    num = 6 if smoke else 16
    seen = torch.zeros(1, 8, 8, dtype=torch.bool)
    seen[:, :4] = True
    mask, noise = Mask(seen), 0.1
    sets = {"the model's own": model_digits(gebm, num), "held-out": real[:num]}
    # The model's own noise: its scale is drawn from the prior, as calibration wants it.
    scales = dist.LogNormal(-1.5, 0.5).sample((num, 1))
    model = partial(inpaint, gebm=gebm, mask=mask)
    steps = (
        {"num_samples": 20, "warmup_steps": 20}
        if smoke
        else {"num_samples": 200, "warmup_steps": 150}
    )
    print("| digits | RMSE | noise | 90 % of x | 90 % of x + noise | converged |")
    print("|---|---|---|---|---|---|")
    for name, digits in sets.items():
        clean = mask(digits)
        y = clean + (scales if name != "held-out" else noise) * torch.randn_like(clean)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table counts what has converged
            idata = sample_many(
                model,
                y,
                **steps,
                global_moves=pg.GlobalMoves(num_proposals=16, every=4),
                seed=seed,
                progress=not smoke,
            )
        print(coverage_row(name, idata, gebm, digits, mask))
    few = idata.isel(problem=slice(6))
    draw_rows(arguments.out / "inpainting.png", mask.fill(y)[:6, 0], real[:6], few, gebm)

    # %% One problem with all diagnostics
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        one = pg.sample(partial(model, y[0]), **steps, num_chains=16, seed=seed, progress=False)
    print(
        f"\nFirst held-out digit: R-hat {inference_data.worst_rhat(one):.3f}, global moves "
        f"{one.attrs.get('global_moves')}, {float(one.attrs['sampling_time']):.0f} s"
    )
    for warning in told:
        print(warning.message)


if __name__ == "__main__":
    main()
