# %% [markdown]
# # How many dimensions do image patches have?
#
# What one learns: patches of natural images with 3 p² numbers lie near a set of far lower
# dimension, the reason for a base of few latents; and how much the figure hangs on the protocol.
# Estimates the intrinsic dimension of CIFAR-10 patches (Levina and Bickel) for p = 4, 13, 20, over
# numbers of patches and of neighbours, beside the slides' figures 13.3, 25.2 and 27.7, and
# prints tables in Markdown.
#
#     python examples/patch_dimension.py --data-root /data --out runs/patch_dimension
#
# The slides do not say how their patches were drawn. Here: of 32,000 random training images,
# 400,000 places (image, row, column) of the p × p × 3 window, uniformly without replacement, so
# that an image gives about twelve, free to overlap; pixels 0..255 (their scale does not matter)
# flattened, with uniform noise of one level so that flat patches are not equal (it moves the
# figures by about 0.1); neighbours of 2,000 random patches among all; the mean over them of
# (k - 2) / S with k = 30. This protocol was chosen for the slides' figures out of many, so
# agreement is no evidence for either. The figures rise with the number of patches, fall with k, and
# fall for large windows where those of one image overlap.

# %%
import argparse
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from pyro_gebm.metrics.dimension import DimensionCurve, intrinsic_dimension_curve

SLIDES = {4: 13.3, 13: 25.2, 20: 27.7}
COLOURS = {4: "#0072B2", 13: "#D55E00", 20: "#009E73"}  # safe for the colour-blind


def load_images(root: Path | None) -> Tensor:
    """The training images of CIFAR-10 (N, 32, 32, 3), uint8."""
    path = None if root is None else root / "cifar10.npz"
    if path is None or not path.exists():
        raise SystemExit(
            f"--data-root: expected a folder with cifar10.npz (train_images (50000, 32, 32, 3) "
            f"uint8); got {root}; or set PYRO_GEBM_DATA, or try --smoke"
        )
    return torch.from_numpy(np.load(path)["train_images"])


def smooth_noise(num: int, generator: torch.Generator) -> Tensor:
    """Stand-ins for images, for a smoke test without data."""
    noise = torch.rand(num, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(noise, size=(32, 32), mode="bilinear")
    return (smooth.permute(0, 2, 3, 1) * 255).to(torch.uint8)


def draw_patches(images: Tensor, p: int, num: int, generator: torch.Generator) -> Tensor:
    """``num`` windows (num, 3 p²) at different places, each as probable, in 1/128 of a level."""
    side = images.shape[1] - p + 1
    place = torch.randperm(len(images) * side * side, generator=generator)[:num]
    image, row, column = place // side**2, place // side % side, place % side
    window = torch.arange(p)
    rows, columns = row[:, None] + window, column[:, None] + window
    patches = images[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    patches = patches.reshape(len(place), -1).short()  # of two bytes: there are 480 million
    patches *= 128
    patches += torch.randint(128, patches.shape, generator=generator, dtype=torch.int16)
    return patches


def headline(curves: dict[int, DimensionCurve], k: int) -> str:
    """The largest number of patches against the slides."""
    lines = ["| p | 3 p² | slides | found | difference |", "|---|---|---|---|---|"]
    for p, curve in curves.items():
        place = curve.ks.index(k)
        found, error = (float(v[-1, place]) for v in (curve.dimension, curve.standard_error))
        difference = f"{100 * (found / SLIDES[p] - 1):+.1f} %"
        cells = [str(p), str(3 * p * p), str(SLIDES[p]), f"{found:.1f} ± {error:.1f}", difference]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sensitivity(curves: dict[int, DimensionCurve]) -> str:
    """All numbers of patches and of neighbours."""
    ks = next(iter(curves.values())).ks
    titles = ["patches", "p", *(f"k = {k}" for k in ks)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for p, curve in curves.items():
        for size, row in zip(curve.sizes, curve.dimension.tolist(), strict=True):
            cells = [str(size), str(p), *(f"{value:.1f}" for value in row)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(curves: dict[int, DimensionCurve], k: int, path: Path) -> None:
    """Estimates over the number of patches; dashes are the slides'."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for p, curve in curves.items():
        place = curve.ks.index(k)
        estimates, errors = curve.dimension[:, place], 2 * curve.standard_error[:, place]
        axes.errorbar(curve.sizes, estimates, errors, fmt="o-", color=COLOURS[p], label=f"p = {p}")
        axes.axhline(SLIDES[p], color=COLOURS[p], ls="--", lw=1)
    axes.set(xscale="log", xlabel="number of patches", ylabel="intrinsic dimension")
    axes.set_title(f"CIFAR-10 patches, {k} neighbours; bars: ± 2 standard errors")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=150)


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("PYRO_GEBM_DATA"))
    parser.add_argument("--out", type=Path, default=Path("runs/patch_dimension"))
    parser.add_argument("--images", type=int, default=32_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--ks", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--k", type=int, default=30, help="the k of the headline")
    parser.add_argument("--variant", default="unbiased")
    parser.add_argument("--centres", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few patches, of noise if need be")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(arguments.seed)
    if arguments.smoke:
        arguments.sizes, arguments.centres = [500, 1000], 200
    if arguments.smoke and arguments.data_root is None:
        images = smooth_noise(1000, generator)
    else:
        images = load_images(arguments.data_root and Path(arguments.data_root))
    images = images[torch.randperm(len(images), generator=generator)[: arguments.images]]
    curves = {}
    for p in SLIDES:
        curves[p] = intrinsic_dimension_curve(
            draw_patches(images, p, max(arguments.sizes), generator),
            sorted({*arguments.ks, arguments.k}),
            sizes=arguments.sizes,
            variant=arguments.variant,
            num_centres=arguments.centres,
            generator=generator,
            progress=not arguments.smoke,
        )
    print(headline(curves, arguments.k) + "\n")
    print(sensitivity(curves))
    draw(curves, arguments.k, arguments.out / "patch_dimension.png")


if __name__ == "__main__":
    main()
