"""Samples of a GAN thinned by its discriminator: rejection sampling and MH-GAN."""

import warnings

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_count, check_finite, check_in_range
from pyro_gebm.gan.refined import Counted, Refined, check_gebm, refine_in_batches
from pyro_gebm.mcmc import IMH, Tuning
from pyro_gebm.mcmc.random import generator_on, uniform
from pyro_gebm.metrics.partition import draw_latents
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.target import gebm_target


def mh_gan(
    gebm: GEBM,
    num_samples: int,
    *,
    num_proposals: int = 100,
    batch_size: int = 1024,
    generator: torch.Generator,
    progress: bool = False,
) -> Refined:
    """MH-GAN: the end of an independence Metropolis-Hastings chain for each sample.

    Proposals G(z'), z' ~ η, are accepted with min(1, exp(E(x) - E(x'))) (Turner, Hung, Frank,
    Saatchi and Yosinski, 2019, arXiv 1811.11357), by the library's own kernel ``IMH``. The paper
    calibrates the discriminator first (``calibrate``), takes 640 proposals, and starts chains at
    real data; here they start at draws of the base. With weights w = exp(-E)/Z <= M the law of
    the samples is within (1 - 1/M)^num_proposals of the model's, in total variation.

    Args:
        gebm: the model.
        num_samples: N chains, each of which gives one sample, independent of the others.
        num_proposals: K, of each chain.
        batch_size: chains that advance at once.
        generator: source of all noise; torch's global ones are left as they were.
        progress: show a progress bar.

    Returns:
        ``Refined``, at the cost of N (K + 1) energies.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> found = mh_gan(gebm, 7, num_proposals=10, generator=torch.Generator().manual_seed(0))
        >>> found.x.shape, found.num_energies
        (torch.Size([7, 5]), 77)
    """
    check_count("num_proposals", num_proposals)
    target = gebm_target(check_gebm(gebm), 1.0)
    counted = Counted(target.potential_fn)
    kernel = IMH(reference=target.reference)
    to_latent, from_latent, _ = gebm.base.latent_prior.coordinates()
    generator = generator_on(gebm.base.latent_prior.like.device, generator)

    def move(z: Tensor) -> Tensor:
        state = kernel.init(counted, from_latent(z))
        tuning = Tuning(torch.ones_like(z[:, 0]), torch.ones_like(z[0]))  # nothing to tune
        devices = [z.device] if z.is_cuda else []
        with torch.random.fork_rng(devices):
            for _ in range(num_proposals):
                state, _ = kernel.step(counted, state, tuning, generator=generator)
        return to_latent(state.z)

    return refine_in_batches(
        gebm,
        counted,
        move,
        num_samples,
        batch_size,
        generator=generator,
        progress=progress,
        name="MH-GAN",
    )


def rejection_sampling(
    gebm: GEBM,
    num_samples: int,
    *,
    log_bound: float | None = None,
    percentile: float | None = None,
    num_pilot: int = 10_000,
    batch_size: int = 1024,
    max_draws: int | None = None,
    generator: torch.Generator,
    progress: bool = False,
) -> Refined:
    """Rejection sampling of the base by the density ratio, or DRS, its tempered form.

    A draw of the base is kept with probability p = exp(-E(x) - m), m >= max -E. With the true
    maximum the samples are exactly the model's. Discriminator rejection sampling (Azadi, Olsson,
    Darrell, Goodfellow and Odena, 2019, arXiv 1810.06758) estimates m as the largest -E so far,
    and, where hardly anything would be kept, keeps with probability σ(F - γ), F = log p/(1 - p),
    with γ a percentile of F: γ = 0 is rejection sampling, a larger share kept is a smaller
    correction.

    Args:
        gebm: the model.
        num_samples: N draws to be kept.
        log_bound: m, a bound of -E that is known; ``None`` takes the largest of the pilot, and
            of the draws as they come.
        percentile: of F over the pilot, for γ: 95 in the paper's figures, which keeps few,
            lower ones keep more. ``None`` is γ = 0.
        num_pilot: draws of the base that m and γ are found from, and that are not kept.
        batch_size: draws at once.
        max_draws: after which to give up; ``None`` is 1,000 N.
        generator: source of all noise; torch's global ones are left as they were.
        progress: show a progress bar.

    Returns:
        ``Refined``; ``num_energies`` counts the pilot, too.

    Raises:
        ValueError: an argument is out of range, an energy is NaN or -inf, or ``max_draws`` were
            not enough.

    Warns:
        UserWarning: a draw exceeded the ``log_bound``, so that it is none.

    Example:
        >>> from torch import nn
        >>> from pyro_gebm.base import Base, StandardNormal
        >>> gebm = GEBM(Base(nn.Linear(2, 5), StandardNormal(2)), nn.Linear(5, 1))
        >>> source = torch.Generator().manual_seed(0)
        >>> rejection_sampling(gebm, 7, num_pilot=100, generator=source).x.shape
        torch.Size([7, 5])
    """
    check_count("num_samples", num_samples)
    check_count("batch_size", batch_size)
    check_count("num_pilot", num_pilot)
    if log_bound is not None:
        check_in_range("log_bound", log_bound, -torch.inf)
    if percentile is not None and check_in_range("percentile", percentile, 0.0, 100.0) == 100:
        raise ValueError("percentile: expected one below 100, which keeps nothing; got 100")
    max_draws = 1000 * num_samples if max_draws is None else check_count("max_draws", max_draws)
    counted = Counted(check_gebm(gebm).latent_energy)
    generator = generator_on(gebm.base.latent_prior.like.device, generator)
    kept: list[Tensor] = []
    count = draws = 0
    with gebm.frozen(), tqdm(total=num_samples, desc="rejection", disable=not progress) as bar:
        log_max, shift = log_bound, 0.0
        if log_bound is None or percentile is not None:
            pilot = _scores(counted, draw_latents(gebm, num_pilot, generator), batch_size)
            log_max = float(pilot.max()) if log_bound is None else log_bound
            if percentile is not None:
                order = _log_odds(pilot, log_max).sort().values
                shift = float(order[int(percentile / 100 * (len(order) - 1))])
        assert log_max is not None
        while count < num_samples:
            if draws >= max_draws:
                raise ValueError(
                    f"max_draws: expected enough for {num_samples} samples; got {count} from "
                    f"{draws} draws; give a percentile, take mh_gan, or calibrate the energy"
                )
            z = draw_latents(gebm, batch_size, generator)
            score = _scores(counted, z, batch_size)
            draws += batch_size
            log_max = _raised(log_max, score, log_bound)
            keep = (_log_odds(score, log_max) - shift).sigmoid()
            kept.append(z[uniform(keep, generator) < keep])
            bar.update(min(len(kept[-1]), num_samples - count))
            count += len(kept[-1])
        latents = torch.cat(kept)[:num_samples]
        with torch.no_grad():
            x = torch.cat([gebm.base(part) for part in torch.split(latents, batch_size)])
    return Refined(x, latents, counted.gradients, counted.energies)


def _scores(counted: Counted, z: Tensor, batch_size: int) -> Tensor:
    """-E(G(z)), (n,) float64."""
    with torch.no_grad():
        score = -torch.cat([counted(part) for part in torch.split(z, batch_size)]).double()
    # -inf, a weight of zero, is a draw that is never kept.
    check_finite("-E", score[score != -torch.inf])
    return score


def _log_odds(score: Tensor, log_max: float) -> Tensor:
    """F = log p/(1 - p) of p = exp(score - max); +inf where p is 1."""
    log_p = (score - log_max).clamp(max=0.0)  # p = 1 above a bound that is none
    return log_p - torch.log(-torch.expm1(log_p))


def _raised(log_max: float, score: Tensor, log_bound: float | None) -> float:
    """The largest score so far; a warning where it was said to be known."""
    largest = float(score.max())
    if log_bound is not None and largest > log_bound:
        warnings.warn(
            f"log_bound: expected a bound of -E; got {log_bound:.6g}, and a draw of {largest:.6g}: "
            "the samples kept so far are not quite the model's",
            stacklevel=3,
        )
    return max(log_max, largest)
