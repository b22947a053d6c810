"""Pictures that ArviZ draws."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from pyro_gebm.inference_data._arviz import IS_ARVIZ_1, InferenceData, az
from pyro_gebm.inference_data.build import subset, values


def plot_rank(idata: InferenceData, path: str | Path, dims: Sequence[int]) -> None:
    """Marginals and ranks of some latents of up to eight chains, by ArviZ, as a picture."""
    import matplotlib.pyplot as plt

    chains = range(min(8, values(idata, "z").shape[0]))
    some = subset(idata, dims, chains)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if IS_ARVIZ_1:
            az.plot_rank_dist(some, compact=False).savefig(str(path), dpi=110)
        else:
            axes = az.plot_trace(some, kind="rank_bars", compact=False, figsize=(10, 2 * len(dims)))
            figure = axes.ravel()[0].figure
            figure.tight_layout()
            figure.savefig(str(path), dpi=110)
    plt.close("all")
