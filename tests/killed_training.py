"""A training killed time and again, and gone on with: ``killed_training.py FOLDER``."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset
from training_worker import DATA, SMALL, batch_norm

import pyro_gebm as pg
from pyro_gebm.data import BatchLoader
from pyro_gebm.training import ChainsConfig, Checkpoints

KILLS = 50
STEPS = {"base_steps": 30, "refit_steps": 20, "evaluate_every": 4, "refit_patience": 4}


def enduring(shuffled):
    """A trainer with all that must be restored, and its loader."""
    chains = ChainsConfig(steps=1, persistent=True)
    config = pg.TrainConfig(**SMALL | STEPS, chains=chains, boost_steps=3, boost_every=7)
    order = torch.Generator().manual_seed(2)
    loader = BatchLoader(DATA, 8, generator=order)
    if shuffled:
        loader = DataLoader(TensorDataset(DATA), batch_size=8, shuffle=True)
    return pg.Trainer(batch_norm(), config, held_out=DATA[:20]), loader


def endure(folder, shuffled, tell):
    """Train, or go on with what is in ``folder``, and write down the end."""
    trainer, loader = enduring(shuffled)
    checkpoints = Checkpoints(folder, keep=2)
    found = checkpoints.latest()
    torch.manual_seed(3 if found is None else os.getpid())
    if found is not None:
        trainer.load_state_dict(found.state)
    tell(found.step if found else 0)
    for info in trainer.fit(loader):
        step = info.step + (STEPS["base_steps"] if info.phase == "refit" else 0)
        tell(step)
        if step % 3 == 0:
            checkpoints.save(trainer.state_dict(), step, {})
    torch.save(trainer.state_dict(), folder / "part")
    (folder / "part").rename(folder / "end.pt")


def forked(folder, shuffled):
    """A child that trains, and the pipe by which it tells its steps."""
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            endure(folder, shuffled, lambda step: os.write(telling, bytes([step])))
            code = 0
        finally:
            os._exit(code)
    os.close(telling)
    return child, told


def import_all():
    """The first step of Adam imports for seconds: not once in every child.

    Without autograd, which does not outlive a fork everywhere.
    """
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    torch.optim.Adam([parameter], fused=True).step()


def kill(folder):
    """Trainings of children that are killed after some steps, until that was so ``KILLS`` times."""
    import_all()
    choose, kills, started = random.Random(0), 0, []
    while kills < KILLS:
        run = folder / str(len(started))
        run.mkdir()
        started.append([])
        while not (run / "end.pt").exists():
            child, told = forked(run, shuffled=len(started) % 2 == 0)
            started[-1].append(int.from_bytes(os.read(told, 1)))
            if kills < KILLS:
                for _ in range(choose.randint(0, 8)):
                    os.read(told, 1)
                time.sleep(choose.uniform(0.0, 0.01))
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.close(told)
            if code not in (0, -signal.SIGKILL):
                sys.exit("a child failed by itself")
            kills += code != 0
    torch.save({"kills": kills, "started": started}, folder / "told.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill(Path(sys.argv[1]))
