"""The targets: one formula each, evaluated by torch and by jax on the same float32 weights.

Every target is a base N(0, s² I) reweighted by an energy, so that our global moves and our
tempering apply to all of them; the kernels of the other libraries see the potential alone.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pyro_gebm as pg

Array = NDArray[Any]
MLP_TRUTH = Path(__file__).with_name("mlp_truth.json")


class Ops(NamedTuple):
    """What torch and jax spell differently."""

    exp: Callable[[Any], Any]
    logsumexp: Callable[[Any, int], Any]
    silu: Callable[[Any], Any]
    tanh: Callable[[Any], Any]


TORCH = Ops(torch.exp, torch.logsumexp, nn.functional.silu, torch.tanh)


class Modes(NamedTuple):
    """Components of one isotropic scale; a point belongs to the nearest mean."""

    masses: Array  # (K,), exact
    means: Array  # (K, D)
    scale: float

    def nearest(self, z: Array) -> Array:
        """Index of the nearest mean, (..., D) -> (...)."""
        # |z|² is the same for all means.
        return np.argmax(z @ self.means.T - 0.5 * (self.means**2).sum(-1), -1)

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """Exact draws, (n, D)."""
        chosen = rng.choice(len(self.masses), n, p=self.masses)
        return self.means[chosen] + self.scale * rng.standard_normal((n, self.means.shape[1]))


@dataclass(frozen=True)
class Target:
    """A potential, where chains start, and what is known of it exactly (NaN where nothing is)."""

    name: str
    formula: Callable[[Ops, dict[str, Any], Any], Any]
    weights: dict[str, Array]
    base_scale: float
    mean: Array  # E z, (D,)
    second_moment: Array  # E z², (D,)
    truth_error: Array | None = None  # standard errors of the two where they are estimates, (2, D)
    modes: Modes | None = None

    @property
    def dim(self) -> int:
        return len(self.mean)

    def torch_potential(self) -> Callable[[Tensor], Tensor]:
        """(C, D) -> (C,)."""
        weights = {name: torch.from_numpy(value) for name, value in self.weights.items()}
        return lambda z: self.formula(TORCH, weights, z)

    def jax_potential(self) -> Callable[[Any], Any]:
        """(D,) -> (), for ``jax.vmap``."""
        import jax

        ops = Ops(jax.numpy.exp, jax.nn.logsumexp, jax.nn.silu, jax.numpy.tanh)
        weights = {name: jax.numpy.asarray(value) for name, value in self.weights.items()}
        return lambda z: self.formula(ops, weights, z)

    def gebm(self, potential_fn: Callable[[Tensor], Tensor] | None = None) -> pg.GEBM:
        """The target as base and energy, for what needs a base: global moves, tempering."""
        potential_fn = potential_fn or self.torch_potential()
        scale = torch.full((self.dim,), self.base_scale)
        prior = pg.LatentPrior(dist.Normal(torch.zeros(self.dim), scale).to_event(1))
        return pg.GEBM(pg.Base(nn.Identity(), prior), Reweighting(potential_fn, self.base_scale))

    def start(self, chains: int, seed: int, kind: str = "base") -> Array:
        """Draws from the base, or ``kind="exact"`` ones of the modes, (C, D) float32."""
        rng = np.random.default_rng(seed)
        if kind == "base":
            return np.float32(self.base_scale * rng.standard_normal((chains, self.dim)))
        if self.modes is None:
            raise ValueError(f"starts: expected 'base' for {self.name}, which has no exact draws")
        return np.float32(self.modes.draw(rng, chains))


class Reweighting(nn.Module):
    """E(z) = U(z) - |z|²/2s²."""

    def __init__(self, potential_fn: Callable[[Tensor], Tensor], base_scale: float) -> None:
        super().__init__()
        self.potential_fn, self.precision = potential_fn, base_scale**-2

    def forward(self, z: Tensor) -> Tensor:
        return self.potential_fn(z) - 0.5 * self.precision * z.square().sum(-1)


class Counted:
    """A potential that counts its calls, and the positions it was called with."""

    def __init__(self, potential_fn: Callable[[Tensor], Tensor]) -> None:
        self.potential_fn, self.calls, self.positions = potential_fn, 0, 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        self.positions += z[..., 0].numel()
        return self.potential_fn(z)


def mlp() -> Target:
    """U = |z|²/2 + E(G(z)): random G 64 -> 256 -> 784, E 784 -> 256 -> 1, 4 nats of energy.

    Truth: a long run of another library's sampler (``python long_run.py`` says which).
    """
    rng = np.random.default_rng(1)
    sizes = [
        ("g1", 64, 256, 2.0),
        ("g2", 256, 784, 1.0),
        ("e1", 784, 256, 1.0),
        ("e2", 256, 1, 1.0),
    ]
    weights = {
        name: np.float32(gain * rng.standard_normal((fan_in, width)) / math.sqrt(fan_in))
        for name, fan_in, width, gain in sizes
    }
    energies = _latent_energy(TORCH, _tensors(weights), torch.from_numpy(_noise(rng, 4096, 64)))
    weights["e2"] *= np.float32(4.0 / energies.std().item())
    mean, second, error = _long_run_moments(64)
    return Target("mlp", _mlp_formula, weights, 1.0, mean, second, truth_error=error)


def gauss100() -> Target:
    """N(0, C) in 100 dimensions, standard deviations from 0.1 to 10, rotated at random."""
    rng = np.random.default_rng(2)
    scales = np.logspace(-1, 1, 100)
    rotation, _ = np.linalg.qr(rng.standard_normal((100, 100)))
    variances = (rotation**2) @ scales**2
    weights = {"whiten": np.float32(rotation / scales)}
    return Target("gauss100", _gauss_formula, weights, 3.0, np.zeros(100), variances)


def funnel() -> Target:
    """Neal (2003): v ~ N(0, 9), nine xᵢ ~ N(0, eᵛ). E xᵢ² is left out: its error is endless."""
    second = np.array([9.0] + [np.nan] * 9)
    return Target("funnel", _funnel_formula, {}, 3.0, np.zeros(10), second)


def modes8() -> Target:
    """A ring of eight in the plane, radius 4, scale 0.3, masses 1 : 2 : ... : 8."""
    angles = np.arange(8) * math.pi / 4
    means = 4.0 * np.stack([np.cos(angles), np.sin(angles)], -1)
    return _mixture("modes8", np.arange(1.0, 9.0), means, 0.3, base_scale=3.0)


def modes25() -> Target:
    """A grid of 5 x 5 in the plane, spacing 2, scale 0.2, masses 1 : 2 : 3 in turn."""
    axis = np.arange(-4.0, 5.0, 2.0)
    means = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(25, 2)
    return _mixture("modes25", 1.0 + np.arange(25) % 3, means, 0.2, base_scale=3.0)


def modes16d() -> Target:
    """Eight in 16 dimensions, 3 from the origin in orthogonal directions, scale 0.5."""
    directions, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((16, 8)))
    return _mixture("modes16d", np.arange(1.0, 9.0), 3.0 * directions.T, 0.5, base_scale=1.0)


def overlap64() -> Target:
    """Three in 64 dimensions, 18 nats away from the base N(0, I), masses 0.5, 0.3, 0.2."""
    masses, scale, dim = np.array([0.5, 0.3, 0.2]), 0.75, 64
    # KL of separated components: Σ w (|μ|²/2 + D(s² - 1 - log s²)/2 + log w).
    shrink = 0.5 * dim * (scale**2 - 1 - math.log(scale**2))
    radius = math.sqrt(2 * (18.0 - shrink - (masses * np.log(masses)).sum()))
    directions, _ = np.linalg.qr(np.random.default_rng(4).standard_normal((dim, 3)))
    return _mixture("overlap64", masses, radius * directions.T, scale, base_scale=1.0)


TARGETS: dict[str, Callable[[], Target]] = {
    make.__name__: make for make in (mlp, modes8, gauss100, funnel, modes25, modes16d, overlap64)
}


def _mixture(name: str, masses: Array, means: Array, scale: float, base_scale: float) -> Target:
    masses = masses / masses.sum()
    weights = {"log_masses": np.log(masses), "means": means, "scale": np.array(scale)}
    return Target(
        name,
        _mixture_formula,
        {key: value.astype(np.float32) for key, value in weights.items()},
        base_scale,
        mean=masses @ means,
        second_moment=masses @ (means**2 + scale**2),
        modes=Modes(masses, means, scale),
    )


def _mixture_formula(ops: Ops, w: dict[str, Any], z: Any) -> Any:
    scaled = (z[..., None, :] - w["means"]) / w["scale"]
    return -ops.logsumexp(w["log_masses"] - 0.5 * (scaled**2).sum(-1), -1)


def _gauss_formula(_: Ops, w: dict[str, Any], z: Any) -> Any:
    return 0.5 * ((z @ w["whiten"]) ** 2).sum(-1)


def _funnel_formula(ops: Ops, _: dict[str, Any], z: Any) -> Any:
    v = z[..., 0]
    return v**2 / 18 + 0.5 * ops.exp(-v) * (z[..., 1:] ** 2).sum(-1) + 4.5 * v


def _mlp_formula(ops: Ops, w: dict[str, Any], z: Any) -> Any:
    return 0.5 * (z**2).sum(-1) + _latent_energy(ops, w, z)


def _latent_energy(ops: Ops, w: dict[str, Any], z: Any) -> Any:
    x = ops.silu(z @ w["g1"]) @ w["g2"]
    return (ops.silu(x @ w["e1"]) @ w["e2"])[..., 0]


def _tensors(weights: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def _noise(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _long_run_moments(dim: int) -> tuple[Array, Array, Array | None]:
    if not MLP_TRUTH.exists():
        return np.full(dim, np.nan), np.full(dim, np.nan), None
    stored = json.loads(MLP_TRUTH.read_text())
    error = np.array([stored["mean_error"], stored["second_moment_error"]])
    return np.array(stored["mean"]), np.array(stored["second_moment"]), error
