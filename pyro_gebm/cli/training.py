"""Training from the command line: bars, a log, checkpoints, and a way to go on."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, final

import torch
from tqdm import tqdm

from pyro_gebm import GEBM, StepInfo, TrainConfig, Trainer, __version__, save
from pyro_gebm.cli.flow_training import FLOW_FIT, fit_base
from pyro_gebm.cli.models import build_model
from pyro_gebm.cli.problems import FLOWS, Problem, write_problem
from pyro_gebm.data import BatchLoader, ImageLoader
from pyro_gebm.report import MetricsLog, RunFolder, StepWriter, TensorBoardLog, write_json
from pyro_gebm.training import Checkpoints, FlowConfig, Processes, deferred_interrupt
from pyro_gebm.training.checkpoints import Checkpoint

BATCH_SIZE = 128
BAR_EVERY = 25
BAR_NAMES = {"alternate": "train base and energy", "refit": "refit the energy"}


class Habits(NamedTuple):
    """What a training leaves on disk, and where it begins."""

    checkpoint_every: int = 500
    """Steps from one checkpoint to the next."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best of the refit."""
    tensorboard: bool = False
    resume: bool = False
    """Go on from the newest checkpoint in the folder."""
    flow: FlowConfig = FLOW_FIT
    """How a base with a density is fitted before the energy."""


def train(
    problem: Problem,
    config: TrainConfig,
    *,
    seed: int,
    device: torch.device,
    folder: RunFolder,
    procs: Processes,
    habits: Habits,
) -> GEBM:
    """Train a model of ``problem`` into a run folder; the model comes back in eval mode.

    A flow is fitted by maximum likelihood first. Of that phase there are no checkpoints: a
    training that was stopped in it begins again, from its seed, and comes to the same model.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint was written before.
        ValueError: there is nothing to resume, or several processes are to train a flow.
    """
    torch.manual_seed(seed)
    trainer = Trainer(build_model(problem).to(device), config, held_out=problem.held_out)
    loader = open_loader(problem, seed + 1, procs, device)
    on_flow = problem.base in FLOWS
    if on_flow and procs.world_size > 1:
        raise ValueError(
            f"--base: expected mlp with several processes, which a flow is not shared among; got "
            f"{problem.base}"
        )
    anew = not habits.resume or (on_flow and newest_checkpoint(folder) is None)
    if anew and procs.rank == 0:
        folder.clear()
        write_json(folder.config, settings_json(problem, config, habits.flow, seed, device))
    if anew and on_flow:
        if habits.resume:
            print("No checkpoint yet: the maximum likelihood begins again, from its seed.")
        fit_base(trainer.gebm.base, problem, habits.flow, seed, folder)
    done = 0 if anew else resume(trainer, folder)
    stopped = False
    with deferred_interrupt() as interrupted, _Diary(trainer, folder, procs, habits, done) as diary:
        for info in diary.kept(trainer.fit(loader)):
            # All processes stop after the same step, whichever of them the signal reached.
            flag = torch.tensor(float(interrupted()), device=device)
            stopped = bool(procs.mean(flag) > 0)
            if stopped:
                diary.checkpoint(info)
                break
    if procs.rank == 0:
        save(trainer.averaged(), folder.checkpoint)
    if stopped:
        if procs.rank == 0:
            print(
                f"\nStopped after {info.phase} step {info.step}; {folder.checkpoint} is the model"
            )
            print(f"so far. Go on with: pyro-gebm train --resume --out {folder.path}")
        raise KeyboardInterrupt
    return trainer.gebm.eval()


def resume(trainer: Trainer, folder: RunFolder) -> int:
    """Bring a trainer to the newest checkpoint of a run; returns the steps it has done.

    Raises:
        ValueError: there is none.
        CheckpointError: all are damaged.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        raise ValueError(
            f"--resume: expected checkpoints in {folder.checkpoints}; got none; train without it"
        )
    trainer.load_state_dict(newest.state)
    return newest.step


def newest_checkpoint(folder: RunFolder) -> Checkpoint | None:
    """The newest whole checkpoint of a run."""
    return Checkpoints(folder.checkpoints).latest()


def open_loader(
    problem: Problem, seed: int, procs: Processes, device: torch.device
) -> BatchLoader | ImageLoader:
    """Batches of the training data, of which images are kept as bytes."""
    shared: dict[str, Any] = {
        "generator": torch.Generator().manual_seed(seed),
        "rank": procs.rank,
        "world_size": procs.world_size,
        "device": device,
    }
    if problem.images is not None:
        flip = problem.images.flip
        return ImageLoader(problem.train, batch_size(problem), flip=flip, **shared)
    return BatchLoader(problem.train, batch_size(problem), **shared)


def batch_size(problem: Problem) -> int:
    """Data in a batch: a small table has no more."""
    if problem.images is not None:
        return problem.images.batch_size
    return min(BATCH_SIZE, len(problem.train))


def settings_json(
    problem: Problem, config: TrainConfig, flow: FlowConfig, seed: int, device: torch.device
) -> dict[str, Any]:
    """What a run folder says of its training."""
    settings = {
        "pyro_gebm": __version__,
        "torch": torch.__version__,
        **write_problem(problem),
        "seed": seed,
        "device": str(device),
        "batch_size": batch_size(problem),
        "train": asdict(config),
    }
    return {**settings, "flow": asdict(flow)} if problem.base in FLOWS else settings


@final
class _Diary:
    """Bars, figures and checkpoints of a training; of the first process only."""

    def __init__(
        self, trainer: Trainer, folder: RunFolder, procs: Processes, habits: Habits, done: int
    ) -> None:
        self._trainer, self._habits = trainer, habits
        self._writes = procs.rank == 0
        self._bar: tqdm[Any] | None = None
        self._postfix: dict[str, str] = {}
        self._written = 0
        self._writers: list[StepWriter] = []
        if not self._writes:
            return
        self._checkpoints = Checkpoints(folder.checkpoints, keep=habits.keep)
        self._writers.append(MetricsLog(folder.training_log))
        if habits.tensorboard:
            self._writers.append(TensorBoardLog(folder.tensorboard))
        for writer in self._writers:  # what was written behind the checkpoint comes again
            writer.truncate_after(done)
        self._checkpoints.discard_after(done)

    def kept(self, infos: Iterator[StepInfo]) -> Iterator[StepInfo]:
        """The steps of a training, written down as they pass."""
        for info in infos:
            if self._writes:
                self._write(info)
                self._show(info)
            yield info

    def checkpoint(self, info: StepInfo) -> None:
        """Write the training's state after a step, unless it has been."""
        step = self._step(info)
        if not self._writes or self._written == step:
            return
        for writer in self._writers:
            writer.flush()
        judged = info.held_out if info.phase == "refit" else None
        metrics = {} if judged is None else {"held_out_bound": judged.bound}
        self._checkpoints.save(self._trainer.state_dict(), step, metrics)
        self._written = step

    def _step(self, info: StepInfo) -> int:
        before = self._trainer.config.base_steps if info.phase == "refit" else 0
        return before + info.step

    def _write(self, info: StepInfo) -> None:
        for writer in self._writers:
            writer.write(self._step(info), record(info))
        if self._step(info) % self._habits.checkpoint_every == 0:
            self.checkpoint(info)

    def _show(self, info: StepInfo) -> None:
        if self._bar is None or info.step < self._bar.n:
            self._bar = tqdm(
                total=info.total,
                initial=info.step - 1,
                desc=BAR_NAMES[info.phase],
                mininterval=0.3,
            )
        self._bar.update(info.step - self._bar.n)  # steps that were rolled back are not seen
        if info.held_out is not None:
            self._postfix["held_out"] = f"{info.held_out.bound:.2f}"
        if info.step % BAR_EVERY == 0:
            figures = {"bound": f"{info.bound:.2f}", "ess": f"{info.importance_ess:.2f}"}
            self._bar.set_postfix({**figures, **self._postfix}, refresh=False)
        if info.step == info.total:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "_Diary":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        for writer in self._writers:
            writer.close()


def record(info: StepInfo) -> Mapping[str, Any]:
    """A line of the training log; what a step does not have is left out or null."""
    flat = info._asdict()
    seconds, held_out = flat.pop("seconds"), flat.pop("held_out")
    flat["phase_step"] = flat.pop("step")
    flat |= {f"seconds_{name}": value for name, value in seconds._asdict().items()}
    if held_out is not None:
        flat |= {f"held_out_{name}": value for name, value in held_out._asdict().items()}
    return flat
