"""The trained digits model as a target: trained once, and kept beside the results.

Its truth needs no sampler: a trained energy leaves the base's draws good importance weights, so
that moments come from half a million of them, with their errors.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from targets import TARGETS, Array, Ops, Target
from torch import Tensor, nn

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader, load_digits
from pyro_gebm.nets import MLPEnergy, MLPGenerator

FULL, SHORT = "digits", "digits-short"
"""Trained as in the demo, and one that is done in seconds."""
DRAWS, CHUNK = 500_000, 10_000
MIN_SHARE = 0.05  # of the weights' effective sample size
SHORT_TRAINING = pg.TrainConfig(base_steps=300, refit_steps=200)


def make_target(name: str, folder: Path) -> Target:
    """A target by its name; the digits come from ``folder``, where ``train`` has put them."""
    return digits(folder / f"{name}.npz") if name in (FULL, SHORT) else TARGETS[name]()


def build() -> pg.GEBM:
    """The networks, fresh."""
    base = pg.Base(MLPGenerator(16, (1, 8, 8)), pg.StandardNormal(16))
    return pg.GEBM(base, MLPEnergy((1, 8, 8)))


def train(path: Path, *, short: bool) -> None:
    """Train a model like the demo's (75 s; a few if ``short``), weigh base draws, write both."""
    torch.manual_seed(0)
    gebm = build()
    loader = BatchLoader(load_digits()[0], 128, generator=torch.Generator().manual_seed(1))
    for _ in pg.Trainer(gebm, SHORT_TRAINING if short else pg.TrainConfig()).fit(loader):
        pass
    weights = {
        f"{part}{index}{kind}": value.detach().numpy()
        for part, network in {"g": gebm.base.generator, "e": gebm.energy}.items()
        for index, layer in enumerate(_affine(network))
        for kind, value in {"w": layer.weight.T, "b": layer.bias}.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **weights, **weighed_moments(gebm))


def digits(path: Path) -> Target:
    """U = |z|²/2 + E(G(z)), 16 latents; G and E have two hidden layers of 256 each."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: train the digits model first; run.py does")
    stored = dict(np.load(path))
    mean, second, error = (stored.pop(name) for name in ("mean", "second_moment", "error"))
    del stored["share"]
    return Target(path.stem, _formula, stored, 1.0, mean, second, truth_error=error)


@torch.no_grad()
def weighed_moments(gebm: pg.GEBM) -> dict[str, Array]:
    """E z, E z² and their standard errors by importance weights from the base.

    Raises:
        ValueError: the weights are too uneven to be a truth.
    """
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(DRAWS, gebm.latent_dim, generator=generator)
    energy = torch.cat([gebm.energy(gebm.base.generator(part)) for part in z.split(CHUNK)])
    weights = torch.softmax(-energy.double(), 0)
    share = float(1 / weights.square().sum() / DRAWS)
    if share < MIN_SHARE:
        raise ValueError(f"digits: expected weights of a share above {MIN_SHARE}; got {share:.3f}")
    (mean, mean_error), (second, second_error) = (_weighed(weights, v) for v in (z, z**2))
    error = np.stack([mean_error, second_error])
    return {"mean": mean, "second_moment": second, "error": error, "share": np.array(share)}


def _weighed(weights: Tensor, values: Tensor) -> tuple[Array, Array]:
    """Self-normalised mean, and its standard error by the delta method."""
    values = values.double()
    mean = weights @ values
    error = (weights.square() @ (values - mean).square()).sqrt()
    return mean.numpy(), error.numpy()


def _affine(network: Any) -> list[nn.Linear]:
    return [layer for layer in network.layers if isinstance(layer, nn.Linear)]


def _formula(ops: Ops, w: dict[str, Any], z: Any) -> Any:
    x = ops.tanh(_layers(ops, w, "g", z))
    return 0.5 * (z**2).sum(-1) + _layers(ops, w, "e", x)[..., 0]


def _layers(ops: Ops, w: dict[str, Any], part: str, x: Any) -> Any:
    for index in range(3):
        x = x @ w[f"{part}{index}w"] + w[f"{part}{index}b"]
        x = ops.silu(x) if index < 2 else x
    return x
