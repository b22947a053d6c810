"""What a posterior says of x: mean, deviation and quantiles of every pixel, and draws."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm._checks import check_count, check_in_range
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.model import GEBM
from pyro_gebm.sampling import push_forward


class PosteriorImages(NamedTuple):
    """Moments of x = G(z) under a posterior, entry by entry; (P, *data shape) for P problems.

    Attributes:
        mean: (*data shape) in data units.
        deviation: standard deviation, of the same shape.
        quantiles: (Q, *data shape).
        probabilities: of the quantiles, (Q,).
    """

    mean: Tensor
    deviation: Tensor
    quantiles: Tensor
    probabilities: Tensor


def posterior_x(
    idata: InferenceData, gebm: GEBM, num_draws: int = 4096, *, name: str = "z"
) -> Tensor:
    """x = G(z) at draws spread evenly over all chains and draws.

    Args:
        idata: from ``sample`` or ``sample_many``.
        gebm: whose ``model(name=name)`` was sampled; left as it was.
        num_draws: at most so many.
        name: the site of its latent.

    Returns:
        (N, *data shape), of ``sample_many`` (N, P, *data shape), on the CPU; N is ``num_draws``
        or all draws, if they are fewer.

    Raises:
        ValueError: the posterior has no such site, or one of another width.
    """
    check_count("num_draws", num_draws)
    known = inference_data.names(idata, "posterior")
    if name not in known:
        raise ValueError(f"name: expected one of {known}; got {name!r}")
    z = inference_data.values(idata, name)
    if z.shape[-1] != gebm.latent_dim:
        raise ValueError(
            f"gebm: expected the one whose latent {name!r} has {z.shape[-1]} dimensions; got one "
            f"of {gebm.latent_dim}"
        )
    flat = z.reshape(-1, *z.shape[2:])
    places = np.linspace(0, len(flat) - 1, min(num_draws, len(flat))).round().astype(int)
    like = gebm.base.latent_prior.like
    with gebm.evaluating():
        return push_forward(gebm, torch.as_tensor(flat[places]).to(like))


def posterior_images(
    idata: InferenceData,
    gebm: GEBM,
    *,
    name: str = "z",
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    num_draws: int = 4096,
) -> PosteriorImages:
    """Mean, standard deviation and quantiles of every entry of x under a posterior.

    Args:
        idata: from ``sample`` or ``sample_many``.
        gebm: whose ``model(name=name)`` was sampled.
        name: the site of its latent.
        quantiles: probabilities in [0, 1].
        num_draws: how many draws are looked at, at most, spread evenly.

    Returns:
        ``PosteriorImages``.

    Raises:
        ValueError: as ``posterior_x``, or a probability is outside of [0, 1].

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Identity(), StandardNormal(2)), nn.Linear(2, 1))
        >>> z = np.random.default_rng(0).normal(size=(4, 500, 2)).astype("float32")
        >>> images = posterior_images(inference_data.build({"z": z}, {}, {}), gebm)
        >>> images.mean.shape, images.quantiles.shape
        (torch.Size([2]), torch.Size([3, 2]))
    """
    for probability in quantiles:
        check_in_range("quantiles", probability, 0.0, 1.0)
    x = posterior_x(idata, gebm, num_draws, name=name)
    probabilities = torch.tensor(list(quantiles), dtype=torch.float64)
    flat = x.reshape(len(x), -1)
    # torch.quantile takes at most 16 million numbers.
    parts = [
        torch.quantile(part.double(), probabilities, dim=0)
        for part in torch.split(flat, max(1, 2**23 // len(x)), 1)
    ]
    found = torch.cat(parts, 1).reshape(-1, *x.shape[1:])
    mean, deviation = x.double().mean(0), x.double().std(0)
    return PosteriorImages(mean, deviation, found, probabilities)
