"""A round of training as the authors' code goes about it (GeneralizedEBM, trainer.py).

Five energy steps to a base step; data and samples each have a pass of their own; the penalty, on
interpolates and on the weights' squares, comes with every energy step; exp has no linear
continuation; the energy's parameters stay free in the base's step, which sums their gradients up
and looks at the data as well; each loss is read as a number. Left out: its map of gradients, its
log files, its pictures and its scores.
"""

import torch
from torch import nn

import pyro_gebm as pg

BATCH = 128
ENERGY_STEPS = 5
CONFIG = pg.TrainConfig(
    base_steps=10**6,
    energy_steps=ENERGY_STEPS,
    energy_lr=1e-5,
    base_lr=2e-4,
    gradient_penalty=0.1,
    gradient_penalty_end=0.1,
    penalty_every=1,
    ema_decay=0.0,
    schedule="constant",
)
"""The same schedule for our Trainer; it has no penalty on weights."""


class Data:
    """What a loop by hand draws from: batches in a new order for each pass, and latents."""

    def __init__(self, gebm: pg.GEBM, x: torch.Tensor) -> None:
        self.gebm, self.x = gebm, x
        self.order, self.at = torch.randperm(len(x), device=x.device), 0

    def batch(self) -> torch.Tensor:
        if self.at + BATCH > len(self.x):
            self.order, self.at = torch.randperm(len(self.x), device=self.x.device), 0
        self.at += BATCH
        return self.x[self.order[self.at - BATCH : self.at]]

    def latents(self) -> torch.Tensor:
        return torch.randn(BATCH, self.gebm.latent_dim, device=self.x.device)


class Authors(Data):
    """Networks, optimisers and the order of things."""

    def __init__(self, gebm: pg.GEBM, x: torch.Tensor) -> None:
        super().__init__(gebm, x)
        self.log_partition = nn.Parameter(torch.zeros(1, device=x.device))
        energy = [*gebm.energy.parameters(), self.log_partition]
        self.energy = torch.optim.Adam(energy, lr=1e-5, betas=(0.5, 0.9))
        parameters = gebm.base.generator.parameters()
        self.base = torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.9))
        self.losses: list[float] = []

    def round(self) -> None:
        """Five steps of the energy, one of the base."""
        for _ in range(ENERGY_STEPS):
            self.energy_step(self.batch())
        self.base_step(self.batch())

    def energy_step(self, real: torch.Tensor) -> None:
        self.energy.zero_grad()
        with torch.no_grad():
            fake = self.gebm.base.generator(self.latents())
        energy, c = self.gebm.energy, self.log_partition
        loss = (energy(real) + c).mean() + (-(energy(fake) + c)).exp().mean() - 1
        (loss + 0.1 * self.penalty(real, fake)).backward()
        self.energy.step()
        self.losses.append(loss.item())

    def penalty(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        energy = self.gebm.energy
        weights = list(energy.parameters())
        # Divided by the sum of the dimensions, as there.
        squares = sum(p.square().sum() for p in weights) / sum(sum(p.shape) for p in weights)
        u = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
        points = (u * real + (1 - u) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
        return squares + slope.flatten(1).square().sum(1).mean()

    def base_step(self, real: torch.Tensor) -> None:
        self.base.zero_grad()
        gebm = self.gebm
        fake, real_energy = gebm.energy(gebm.base.generator(self.latents())), gebm.energy(real)
        c = torch.logsumexp(-fake.reshape(-1), 0) - torch.tensor(float(BATCH)).log()
        loss = -(real_energy + c).mean() - (-(fake + c)).exp().mean() + 1
        loss.backward()
        self.base.step()
        self.losses.append(loss.item())
