"""The held-out figures: the bound, KALE, and how far c is from log Z."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm.model import GEBM
from pyro_gebm.objectives import (
    donsker_varadhan,
    importance_ess,
    kale_bound,
    log_partition_estimate,
)
from pyro_gebm.training.guard import TrainingError
from pyro_gebm.training.processes import Processes

CHUNK = 1024
FLAT = 1e-4
"""Spread of the energies, in nats, below which an energy tells nothing from anything."""


class HeldOut(NamedTuple):
    """Figures on held-out data and a large sample of the base, in nats."""

    bound: float
    """F(E, c) with the learned c."""
    kale: float
    """L(E), the bound at c = log Z: what the energy knows, whatever c does."""
    log_z: float
    """log Z of the large sample."""
    log_partition_error: float
    """c - log Z."""
    importance_ess: float
    """Effective share of the large sample under the model, in (0, 1]."""

    def judged(self, learns_constant: bool) -> float:
        """What the best energy is chosen by: the bound, or KALE where c does not follow it."""
        return self.bound if learns_constant else self.kale


@torch.no_grad()
def evaluate(gebm: GEBM, held_out: Tensor, num_samples: int, procs: Processes) -> HeldOut:
    """Judge a model on data (N, ...) and ``num_samples`` samples of its base.

    The samples come from the same seed every time, so that figures of one run are comparable;
    torch's generators and the modules' modes are left as they were. Processes, which decide by
    the figures when to stop, agree on them to the last bit. Warns of an energy that is the same
    everywhere: at its floor it has no gradient, and will not come back.
    """
    like = gebm.log_partition
    devices = [like.device] if like.is_cuda else []
    with torch.random.fork_rng(devices), gebm.evaluating():
        torch.default_generator.manual_seed(0)  # not the generators of other devices
        if like.is_cuda:
            torch.cuda.default_generators[like.device.index].manual_seed(0)
        energy = base_energies(gebm, num_samples)
        parts = torch.split(held_out, CHUNK)
        real = torch.cat([gebm.evaluate_energy(part.to(like)) for part in parts])
    if procs.rank == 0:
        _warn_if_flat(torch.cat([real, energy]))
    log_z = log_partition_estimate(energy)
    figures = [
        kale_bound(real, energy, like),
        donsker_varadhan(real, energy),
        log_z,
        like - log_z,
        importance_ess(energy),
    ]
    return HeldOut(*procs.mean(torch.stack(figures)).tolist())


def _warn_if_flat(energies: Tensor) -> None:
    low, high = energies.aminmax()
    if high - low < FLAT:
        warnings.warn(
            f"the energy is {low:.4g} nats on all data and base samples; if it was not so from the "
            "start, it is at a floor, without a gradient: train anew with a lower energy_lr or a "
            "larger gradient_penalty",
            RuntimeWarning,
            stacklevel=2,
        )


@torch.no_grad()
def large_sample_log_z(gebm: GEBM, num_samples: int, procs: Processes) -> Tensor:
    """log Z of ``num_samples`` samples of the base, a scalar on which processes agree.

    Raises:
        TrainingError: it is not finite.
    """
    log_z = procs.mean(log_partition_estimate(base_energies(gebm, num_samples)))
    if not math.isfinite(float(log_z)):
        raise TrainingError(
            f"log Z of {num_samples} samples of the base, {log_z:.4g}, is not finite: the energy "
            "is not finite on some of them, or too low; lower the learning rates or raise "
            "gradient_penalty, and check the networks"
        )
    return log_z


@torch.no_grad()
def base_energies(gebm: GEBM, num_samples: int) -> Tensor:
    """Energies (num_samples,) of samples of the base, the networks in eval mode."""
    z = gebm.base.latent_prior.sample(num_samples)
    with gebm.evaluating():
        return torch.cat([gebm.latent_energy(part) for part in torch.split(z, CHUNK)])
