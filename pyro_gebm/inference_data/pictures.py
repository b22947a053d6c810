"""Pictures that ArviZ draws."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pyro_gebm.inference_data._arviz import IS_ARVIZ_1, InferenceData, az
from pyro_gebm.inference_data.build import build, names, subset, values
from pyro_gebm.inference_data.diagnostics import bfmi

DPI = 110
MOST_CHAINS = 8
"""Chains that a picture has room for."""

POOR_BFMI = 0.3


def plot_rank(idata: InferenceData, path: str | Path, dims: Sequence[int]) -> None:
    """Marginals and ranks of some latents of up to eight chains, by ArviZ, as a picture.

    Raises:
        ValueError: there is no such latent.
    """
    some = _few_chains(idata, dims, divergences=False)
    with _closing():
        if IS_ARVIZ_1:
            _save(az.plot_rank_dist(some, compact=False), path)
        else:
            size = (10, 2 * len(dims))
            _save(az.plot_trace(some, kind="rank_bars", compact=False, figsize=size), path)


def plot_trace(idata: InferenceData, path: str | Path, dims: Sequence[int]) -> None:
    """Marginals and traces of some latents of up to eight chains, divergences marked.

    Args:
        idata: a run with ``z``.
        path: file to write.
        dims: the latents, such as ``range(4)``.

    Raises:
        ValueError: there is no such latent.
    """
    some = _few_chains(idata, dims)
    with _closing():
        if IS_ARVIZ_1:
            _save(az.plot_trace_dist(some, compact=False), path)
        else:
            drawn = az.plot_trace(some, compact=False, figsize=(10, 2 * len(dims)))
            _figure(drawn).axes[-1].set_xlabel("draw")
            _save(drawn, path)


def plot_autocorr(
    idata: InferenceData, path: str | Path, dims: Sequence[int], max_lag: int = 100
) -> None:
    """Autocorrelation of some latents over lags, of each of up to four chains.

    Args:
        idata: a run with ``z``.
        path: file to write.
        dims: the latents.
        max_lag: draws, at most half of a chain.

    Raises:
        ValueError: there is no such latent.
    """
    some = _few_chains(idata, dims, 4)
    # With fewer draws than lags the estimate is all noise.
    lag = max(1, min(max_lag, some["posterior"].sizes["draw"] // 2))
    with _closing():
        if IS_ARVIZ_1:
            drawn = az.plot_autocorr(some, max_lag=lag)
            _figure(drawn).axes[0].set_ylabel("autocorrelation")
        else:
            drawn = az.plot_autocorr(some, max_lag=lag, figsize=(10, 2 * len(dims)), textsize=8)
            _figure(drawn).supxlabel("lag, draws")
            _figure(drawn).supylabel("autocorrelation")
            for axis in _figure(drawn).axes:
                axis.set(title=axis.get_title().replace("\n", ", chain "), ylim=(-0.5, 1.05))
        _save(drawn, path)


def plot_energy(idata: InferenceData, path: str | Path) -> None:
    """The energies H of all draws against their changes from draw to draw, with BFMI.

    Where the changes are much narrower than the energies, momentum draws are too small a step
    for a heavy tail (Betancourt 2016): BFMI, the ratio of their variances, is then below 0.3.

    Args:
        idata: a run of a Hamiltonian kernel, whose sample_stats have "energy".
        path: file to write.

    Raises:
        ValueError: it has none.
    """
    if "energy" not in names(idata, "sample_stats"):
        raise ValueError(
            "idata: expected sample_stats with 'energy', as HMC, NUTS and ChEES have; got "
            f"{names(idata, 'sample_stats')}; look at plot_trace instead"
        )
    energy = values(idata, "energy", "sample_stats")
    alone = build({"energy": energy}, {"hamiltonian": energy}, {})
    ratios = bfmi(alone)
    poor = int((ratios < POOR_BFMI).sum())
    told = f"BFMI: least {ratios.min():.2f} of {len(ratios)} chains, {poor} below {POOR_BFMI}"
    with _closing():
        if IS_ARVIZ_1:
            drawn = az.plot_energy(alone, threshold=POOR_BFMI)
        else:
            drawn = az.plot_energy(alone, bfmi=False, figsize=(7, 4), fill_alpha=(0.6, 0.45))
        figure = _figure(drawn)
        figure.suptitle(told)
        figure.axes[-1].set_xlabel("energy H less its mean; its change between draws; nats")
        _save(drawn, path)


def _few_chains(
    idata: InferenceData, dims: Sequence[int], most: int = MOST_CHAINS, *, divergences: bool = True
) -> InferenceData:
    """Some latents of the first chains, with divergences where they are wanted and known."""
    z = values(idata, "z")
    if len(dims) == 0 or min(dims) < 0 or max(dims) >= z.shape[2]:
        raise ValueError(f"dims: expected some of 0..{z.shape[2] - 1}; got {list(dims)}")
    chains = range(min(most, len(z)))
    some = subset(idata, dims, chains)
    if not divergences or "diverging" not in names(idata, "sample_stats"):
        return some
    flags = values(idata, "diverging", "sample_stats")[np.asarray(chains)]
    return build({n: values(some, n) for n in names(some, "posterior")}, {"diverging": flags}, {})


@contextmanager
def _closing() -> Iterator[None]:
    """Without ArviZ's warnings; the figures made here are closed, the user's left open."""
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    try:
        with warnings.catch_warnings(), plt.style.context("tableau-colorblind10"):
            warnings.simplefilter("ignore")
            yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def _figure(drawn: Any) -> Any:
    """The figure of what ArviZ returns: a PlotCollection, or axes in 0.x."""
    if IS_ARVIZ_1:
        return drawn.viz["figure"].item()
    return np.ravel(drawn)[0].figure


def _save(drawn: Any, path: str | Path) -> None:
    figure = _figure(drawn)
    if not IS_ARVIZ_1:
        figure.tight_layout()
    figure.savefig(str(path), dpi=DPI, bbox_inches="tight")
