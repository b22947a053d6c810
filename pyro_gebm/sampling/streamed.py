"""Samples that go to a file while they are made, in an order that survives interruptions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pyro_gebm import inference_data
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.push import push_forward
from pyro_gebm.sampling.target import quiet_model

PIECE = 4096
"""Samples that are made between two saves, about."""
_SETTINGS, _DONE = "generate_settings", "generate_draws"
DrawFn = Callable[[int, int, InferenceData | None], InferenceData]
"""(draws, seed, the run so far) -> so many more draws of every chain."""


class Wanted(NamedTuple):
    """What is to be made; the seed is chosen at the start if it is ``None``."""

    num_samples: int
    num_chains: int
    seed: int | None
    settings: dict[str, Any]
    """All else that decides the samples, in plain values."""

    @property
    def draws(self) -> int:
        """Of each chain."""
        return -(-self.num_samples // self.num_chains)


def place_of(wanted: Wanted, seed: int) -> NDArray[np.int64]:
    """Where each draw goes, (chain, draw) -> row of the result, or -1: a random order."""
    order = np.random.default_rng(seed).permutation(wanted.num_chains * wanted.draws)
    rows = np.full(len(order), -1)
    rows[order[: wanted.num_samples]] = np.arange(wanted.num_samples)
    return rows.reshape(wanted.num_chains, wanted.draws)


def stream(
    model: GEBM, wanted: Wanted, draw: DrawFn, store: str | Path, *, progress: bool
) -> Tensor:
    """Make the samples piece by piece into ``store``, going on where an earlier call stopped.

    Returns:
        (num_samples, *data shape), mapped from the file.

    Raises:
        ValueError: the file is there already, or the unfinished one is of other settings.
        KeyboardInterrupt: Ctrl-C; the pieces that were whole are on disk.
    """
    file = _File(Path(store), wanted)
    run = file.state()
    seed = file.seed(run)
    done = 0 if run is None else int(run.attrs[_DONE])
    rows = place_of(wanted, seed)
    piece = max(1, PIECE // wanted.num_chains)
    with tqdm(
        total=wanted.num_samples,
        initial=int((rows[:, :done] >= 0).sum()),
        desc="generate",
        unit="x",
        disable=not progress,
    ) as bar:
        while done < wanted.draws:
            more = min(piece, wanted.draws - done)
            run = draw(more, seed, run)
            if run.attrs["interrupted"]:
                raise KeyboardInterrupt(file.told(int(bar.n)))
            target = rows[:, done : done + more].ravel()
            file.write(target[target >= 0], _pushed(model, run, target >= 0))
            done += more
            file.keep(run, done, seed)
            bar.update(int((target >= 0).sum()))
    return file.finish()


def _pushed(model: GEBM, run: InferenceData, wanted: NDArray[np.bool_]) -> Tensor:
    device = model.base.latent_prior.like.device
    z = torch.as_tensor(inference_data.values(run, "z"), device=device).flatten(0, 1)
    with quiet_model(model):
        return push_forward(model, z[torch.as_tensor(wanted, device=device)])


@final
class _File:
    """A ``.npy`` file that is called .unfinished until it is whole, and the state beside it."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        if path.suffix != ".npy":
            raise ValueError(f"store: expected a name that ends in .npy; got {path.name!r}")
        if path.exists():
            raise ValueError(f"store: {path} is there already; choose another name or remove it")
        self._path, self._wanted = path, wanted
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._state = path.with_name(path.name + ".state.nc")
        self._array: NDArray[Any] | None = None

    def state(self) -> InferenceData | None:
        """Where an earlier call stopped, with its settings compared."""
        if not (self._unfinished.exists() and self._state.exists()):
            return None
        run = inference_data.load(self._state)
        was, now = json.loads(str(run.attrs[_SETTINGS])), self._settings()
        if self._wanted.seed is None:
            now["seed"] = was["seed"]
        differ = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
        if differ:
            told = ", ".join(f"{name}={was.get(name)!r}" for name in differ)
            raise ValueError(
                f"store: {self._unfinished} was begun with {told}; go on with these, or remove it "
                f"and {self._state.name}"
            )
        self._array = np.lib.format.open_memmap(self._unfinished, mode="r+")
        return run

    def seed(self, run: InferenceData | None) -> int:
        """The seed of the run, which a new one may have to choose."""
        if run is not None:
            return int(json.loads(str(run.attrs[_SETTINGS]))["seed"])
        given = self._wanted.seed
        return int(torch.randint(2**31, ())) if given is None else given

    def write(self, rows: NDArray[np.int64], x: Tensor) -> None:
        """Put samples into their rows."""
        if self._array is None:
            shape = (self._wanted.num_samples, *x.shape[1:])
            self._array = np.lib.format.open_memmap(
                self._unfinished, mode="w+", dtype=x.numpy().dtype, shape=shape
            )
        self._array[rows] = x.numpy()
        assert isinstance(self._array, np.memmap)
        self._array.flush()

    def keep(self, run: InferenceData, done: int, seed: int) -> None:
        """Write down where the chains stand, after the samples: a piece is there or made again."""
        run.attrs[_SETTINGS] = json.dumps({**self._settings(), "seed": seed})
        run.attrs[_DONE] = done
        inference_data.save(run, self._state)

    def finish(self) -> Tensor:
        """Give the file its name; the tensor reads from it."""
        self._array = None
        self._unfinished.replace(self._path)
        self._state.unlink(missing_ok=True)
        return torch.from_numpy(np.load(self._path, mmap_mode="c"))

    def told(self, made: int) -> str:
        """What an interruption leaves."""
        return (
            f"generate was interrupted: {made} of {self._wanted.num_samples} samples are in "
            f"{self._unfinished}; the same call goes on"
        )

    def _settings(self) -> dict[str, Any]:
        found = {**self._wanted.settings, **self._wanted._asdict()}
        del found["settings"]
        return found
