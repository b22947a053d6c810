"""A training in which chosen batches go wrong, and what is seen of it."""

import copy
import itertools
import math
import warnings

import torch
from torch import nn
from training_worker import DATA, SMALL, bits, model, network

import pyro_gebm as pg
from pyro_gebm.training import GuardConfig

GAP = 50.0
BATCHES = DATA.split(8)


class Spoilt(nn.Module):
    """A network that goes wrong when told to."""

    def __init__(self, *sizes, norm=False):
        super().__init__()
        self.inner, self.how = network(*sizes, norm=norm), None

    def forward(self, x):
        y = self.inner(x)
        if self.how == "value":  # of a finite gradient
            return y - math.inf
        if self.how == "gradient":  # infinite, of a finite value
            return y + (y - y.detach()).sqrt()
        return y * 1e6 if self.how == "gap" else y


class Planned:
    """A training in which chosen batches, counted from 0, go wrong; one batch a round."""

    def __init__(self, plan, *, norm=False, dtype=torch.float64, lr_schedule=None, **settings):
        self.plan = plan
        self.gebm = model(lambda: Spoilt(2, 3, norm=norm), lambda: Spoilt(3, 1), dtype)
        guard = {"snapshot_every": 2, "max_energy_gap": GAP} | settings.pop("guard", {})
        usual = {"base_steps": 12, "energy_steps": 1, "refit_steps": 0, "penalty_every": 1}
        config = pg.TrainConfig(**SMALL | usual | settings, guard=GuardConfig(**guard))
        self.trainer = pg.Trainer(self.gebm, config, lr_schedule=lr_schedule)
        self.kept, self.warned = {0: self.weights()}, []

    def batches(self):
        for number in itertools.count():
            how = self.plan.get(number)
            part, _, kind = (how or "").partition(" ")
            self.gebm.energy.how = kind if part == "energy" else None
            self.gebm.base.generator.how = kind if part == "generator" else None
            x = BATCHES[number % len(BATCHES)].clone()
            if how == "data":
                x[3] = math.nan
            yield x

    def weights(self):
        """Weights, buffers, Adam's averages and the running average, as they are now."""
        state = self.trainer.state_dict()
        steps = state["steps"]
        adam = [steps[half]["optimizer"]["state"] for half in ("energy", "base")]
        return copy.deepcopy([state["gebm"], adam, state["average"]])

    def rates(self):
        steps = self.trainer.state_dict()["steps"]
        return [steps[half]["optimizer"]["param_groups"][0]["lr"] for half in ("energy", "base")]

    def fit(self):
        """Infos; beside them, the weights after each number of good steps and at each warning."""

        def warn(message, *_, **__):
            if "diverged" in str(message) or "rolled back" in str(message):
                self.warned.append((str(message), bits(self.weights())))

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = warn
            for info in self.trainer.fit(self.batches()):
                self.kept[len(self.kept)] = self.weights()
                yield info

    def good(self, steps):
        return bits(self.kept[steps])
