"""Training from the command line: a bar, a log, a checkpoint."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from pyro_gebm import GEBM, StepInfo, TrainConfig, Trainer, __version__, save
from pyro_gebm.cli.problems import Problem, build_model
from pyro_gebm.data import BatchLoader
from pyro_gebm.report import RunFolder, write_json, write_json_line

BATCH_SIZE = 128
LOG_EVERY = 50


def train(
    problem: Problem, config: TrainConfig, *, seed: int, device: torch.device, folder: RunFolder
) -> GEBM:
    """Train a model of ``problem`` into a run folder; the model comes back in eval mode."""
    torch.manual_seed(seed)
    gebm = build_model(problem).to(device)
    loader = BatchLoader(
        problem.train, BATCH_SIZE, generator=torch.Generator().manual_seed(seed + 1)
    )
    folder.clear()
    write_json(
        folder.config,
        {
            "pyro_gebm": __version__,
            "torch": torch.__version__,
            "data": problem.name,
            "seed": seed,
            "device": str(device),
            "batch_size": BATCH_SIZE,
            "train": asdict(config),
        },
    )
    with folder.training_log.open("w") as log:
        for info in _with_bars(Trainer(gebm, config), loader):
            if info.step % LOG_EVERY == 0 or info.step == info.total:
                write_json_line(log, _record(info))
    save(gebm, folder.checkpoint)
    return gebm.eval()


def _with_bars(trainer: Trainer, loader: BatchLoader) -> Iterator[StepInfo]:
    """The steps of a training, each phase behind its own progress bar."""
    names = {"alternate": "train base and energy", "refit": "refit the energy"}
    bar: tqdm[Any] | None = None
    for info in trainer.fit(loader):
        if info.step == 1:
            bar = tqdm(total=info.total, desc=names[info.phase], mininterval=0.3)
        if bar is None:
            continue
        bar.update()
        if info.step % LOG_EVERY == 0:
            bar.set_postfix(bound=f"{info.bound:.2f}", ess=f"{info.importance_ess:.2f}")
        if info.step == info.total:
            bar.close()
        yield info


def _record(info: StepInfo) -> dict[str, str | int | float | None]:
    """A line of the training log; what a phase does not have is left out."""
    record: dict[str, str | int | float | None] = {
        "phase": info.phase,
        "step": info.step,
        "bound": float(info.bound),
        "importance_ess": float(info.importance_ess),
        "log_partition": float(info.log_partition),
    }
    if info.phase == "alternate":
        record["base_loss"] = float(info.base_loss)
    return record
