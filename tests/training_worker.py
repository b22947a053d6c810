"""Small trainings, and one of two processes that share them: ``training_worker.py FOLDER RANK``."""

import math
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader, ImageLoader, scale_pixels
from pyro_gebm.nets import DCGANEnergy, MLPEnergy
from pyro_gebm.training import ChainsConfig, ReplayConfig
from pyro_gebm.training.processes import Processes

WORLD = 2
SECONDS = 60
"""After which a process that waits for another gives up."""


def bits(value):
    """Plain data and tensors as pairs (place, leaf), equal only if equal bit by bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return [("", (str(value.dtype), tuple(value.shape), value.numpy().tobytes()))]
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    else:
        return [("", value.hex() if isinstance(value, float) else value)]
    return [(f"{key}/{place}", leaf) for key, part in entries for place, leaf in bits(part)]


def figures(info):
    """All of a ``StepInfo`` but the seconds."""
    return info._replace(seconds=None)._asdict()


# --- models ------------------------------------------


DATA = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5


def network(fan_in, fan_out, norm=False, bias=True):
    middle = [nn.BatchNorm1d(6)] if norm else []
    layers = [nn.Linear(fan_in, 6), *middle, nn.Softplus(), nn.Linear(6, fan_out, bias=bias)]
    return nn.Sequential(*layers)


def model(generator=lambda: network(2, 3), energy=lambda: network(3, 1), dtype=torch.float64):
    torch.manual_seed(0)
    return pg.GEBM(pg.Base(generator(), pg.StandardNormal(2)), energy()).to(dtype)


class Unused(nn.Module):
    """A network with a layer that it never asks."""

    def __init__(self, *sizes):
        super().__init__()
        self.net, self.spare = network(*sizes), nn.Linear(2, 2)

    def forward(self, x):
        return self.net(x)


def spectral():
    return model(energy=lambda: MLPEnergy((3,), (6, 6), spectral_norm=True))


def batch_norm():
    return model(generator=lambda: network(2, 3, norm=True))


def without_constant():
    """An energy without a free constant, which log Z takes away: its gradient is but rounding."""
    return model(energy=lambda: network(3, 1, bias=False))


# --- two processes that share each step ------------------------------------------


PIXELS = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(4)).byte()


def images():
    """Convolutions on 8 x 8 pixels, without batch statistics, of which each process has its own."""
    shape = (1, 8, 8)
    return model(
        generator=lambda: nn.Sequential(*network(2, 64), nn.Tanh(), nn.Unflatten(1, shape)),
        energy=lambda: DCGANEnergy(data_shape=shape, width=2),
    )


class Scenario(NamedTuple):
    settings: dict
    build: object = model
    spoilt: tuple = ()
    """Batches with a NaN in the last datum, which the last process has."""
    freeze: tuple = ()
    """First layers frozen before the trainer is made, and before it trains; if not empty."""
    uneven: bool = False
    """The last process has fewer data."""
    images: bool = False
    """The data are images, half of them mirrored."""


SMALL = {
    "base_steps": 4,
    "refit_steps": 3,
    "num_latents": 12,
    "energy_lr": 0.01,
    "base_lr": 0.01,
    "refit_lr": 0.01,
    "evaluate_every": 2,
    "evaluation_samples": 32,
}
CLOSED = {"log_partition_update": "closed_form", "log_partition_memory": 0.5}
DV = {"objective": "donsker_varadhan"}

SCENARIOS = {
    "kale": Scenario({"penalty_every": 1}),
    "float32": Scenario({}, lambda: model(dtype=torch.float32)),
    "amortized": Scenario({"base_loss": "amortized", "energy_l2": 0.3}),
    "penalty on both": Scenario({"penalty_points": "both"}),
    "donsker_varadhan": Scenario(DV, without_constant),
    "closed form": Scenario(CLOSED),
    "gan": Scenario({"objective": "gan"}),
    "wgan": Scenario({"objective": "wgan"}),
    "contrastive": Scenario(
        {"objective": "contrastive", "mode": "energy", "replay": ReplayConfig(size=40, steps=2)}
    ),
    "chains": Scenario({"chains": ChainsConfig(steps=2, use_for="base")}),
    "persistent": Scenario({"chains": ChainsConfig(steps=2, use_for="both", persistent=True)}),
    "latents": Scenario({"latents_per_datum": 3}),
    "parts": Scenario({"accumulate": 2, "latents_per_datum": 2}),
    "parts, donsker_varadhan": Scenario(DV | {"accumulate": 3}, without_constant),
    "parts, closed form": Scenario(CLOSED | {"accumulate": 2}),
    "more parts than data": Scenario(DV | {"accumulate": 9}, without_constant),
    "base alone": Scenario({"mode": "base"}),
    "energy alone": Scenario({"mode": "energy", "refit_patience": 1}),
    "frozen layers": Scenario({"accumulate": 2}, freeze=(True, True)),
    "frozen later": Scenario({}, freeze=(False, True)),
    "thawed later": Scenario({}, freeze=(True, False)),
    "spectral norm": Scenario({}, spectral),
    "not a number": Scenario({}, spoilt=(3, 9)),
    "images": Scenario({"penalty_every": 1}, images, images=True),
}


def run(scenario, procs):
    """The trainer after its training, and the figures of its steps."""
    gebm = scenario.build()
    config = pg.TrainConfig(**SMALL | scenario.settings)
    order = torch.Generator().manual_seed(2)
    share = {"rank": procs.rank, "world_size": procs.world_size}
    loader, held_out = BatchLoader(DATA, 8, generator=order, **share), DATA[:20]
    if scenario.images:
        double = {"flip": True, "dtype": torch.float64}
        loader = ImageLoader(PIXELS, 8, generator=order, **double, **share)
        held_out = scale_pixels(PIXELS[:20]).double()
    if scenario.spoilt:
        loader = spoilt_batches(scenario.spoilt, procs)
    if scenario.uneven:
        loader = [DATA[: 4 - procs.rank]]
    before, after = scenario.freeze or (False, False)
    freeze(gebm, before)
    trainer = pg.Trainer(gebm, config, held_out=held_out)
    freeze(gebm, after)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "energy: the loss")
        return trainer, list(trainer.fit(loader))


def freeze(gebm, frozen):
    for network in (gebm.base.generator, gebm.energy):
        next(network.children()).requires_grad_(not frozen)


def spoilt_batches(which, procs):
    batches = [batch.clone() for batch in 4 * DATA.split(8)]
    for i in which:
        batches[i][-1] = math.nan
    return [procs.own(batch) for batch in batches]


def outcome(scenario, procs):
    try:
        trainer, infos = run(scenario, procs)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    state = trainer.state_dict()
    return {"state": state, "infos": [figures(info) for info in infos]}


# The two mistakes that data parallel training invites; and what does not work in it.


def naive_constant(procs):
    """Each process with the log Z of its own part."""
    honest = Processes.joint
    Processes.joint = lambda self, own: own.detach()
    try:
        return outcome(SCENARIOS["donsker_varadhan"], procs)["state"]["gebm"]
    finally:
        Processes.joint = honest


def penalty_gradient(procs, *, second_backward):
    """The gradient of a loss and penalty, each of its own forward pass of torch's wrapper or not.

    ``procs`` may be one process on the joint batch.
    """
    energy = model().energy
    x = procs.own(DATA[:8])

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = energy

        def forward(self, x):
            points = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
            return energy(x).mean(), slope.square().sum(1).mean()

    both = DistributedDataParallel(Both()) if procs.world_size > 1 else Both()
    loss, penalty = both(x)
    if second_backward:
        # The first makes the average, to which the second adds what is its own.
        loss.backward(retain_graph=True)
        penalty.backward()
    else:
        (loss + penalty).backward()
    return [parameter.grad for parameter in energy.parameters()]


REFUSED = {
    "num_latents": Scenario({"num_latents": 7}),
    "joint": Scenario({"update": "joint"}),
    "uneven": Scenario({}, uneven=True),
    "unused energy": Scenario({}, lambda: model(energy=lambda: Unused(3, 1))),
    "unused generator": Scenario({}, lambda: model(generator=lambda: Unused(2, 3))),
}


def share(folder, rank):
    """All scenarios as one of the processes; what came of them goes to a file."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=SECONDS),
    )
    procs = Processes(rank, WORLD)
    found = {name: outcome(scenario, procs) for name, scenario in SCENARIOS.items()}
    found["batch norm"] = outcome(Scenario({}, batch_norm), procs)
    found["naive constant"] = naive_constant(procs)
    for second in (False, True):
        found[f"penalty, {second}"] = penalty_gradient(procs, second_backward=second)
    found |= {name: outcome(scenario, procs) for name, scenario in REFUSED.items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    share(Path(sys.argv[1]), int(sys.argv[2]))
