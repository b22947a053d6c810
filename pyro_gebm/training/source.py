"""Where a training's data and random numbers come from, and how they go on."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor

from pyro_gebm.model import GEBM
from pyro_gebm.training.batches import Batch, Batches
from pyro_gebm.training.config import TrainConfig


@final
class Source:
    """Batches for a model, without end, and torch's global random streams beside them.

    Args:
        gebm: the model.
        config: settings.
    """

    def __init__(self, gebm: GEBM, config: TrainConfig) -> None:
        self._gebm, self._config = gebm, config
        self._batches: Batches | None = None
        self._loader: Iterable[Batch] | None = None
        self._pending: Mapping[str, Any] | None = None

    def open(self, loader: Iterable[Batch]) -> Iterator[Tensor]:
        """Batches from where they were left; of another loader, from its start.

        Raises:
            ValueError: the first of them does not fit the model, before anything has changed.
        """
        fresh = self._batches is None or loader is not self._loader
        batches = Batches(loader) if self._batches is None or fresh else self._batches
        self._batches, self._loader = batches, loader
        data = prepared(batches, self._gebm, self._config)
        if self._pending is not None:
            if self._pending["loader"] is not None:
                batches.load_state_dict(self._pending["loader"])
            set_random_state(self._pending["random"], self._gebm.log_partition)
            self._pending = None
        elif fresh:
            # Not where the loop was left: there may be something to be drawn first.
            return itertools.chain([next(data)], data)
        return data

    def state_dict(self) -> dict[str, Any]:
        """The place between two batches, and the random streams."""
        if self._pending is not None:
            return dict(self._pending)
        loader = None if self._batches is None else self._batches.state_dict()
        return {"loader": loader, "random": random_state(self._gebm.log_partition)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there when the loader, built as then, is opened."""
        self._batches, self._loader, self._pending = None, None, state


def random_state(like: Tensor) -> dict[str, Any]:
    """The states of the streams that a model like the tensor draws from."""
    cuda = torch.cuda.get_rng_state(like.device) if like.is_cuda else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any], like: Tensor) -> None:
    """Go on from there; a stream that the saved model did not have stays as it is."""
    # A checkpoint may have been loaded to another device; states live on the CPU.
    torch.set_rng_state(state["cpu"].cpu())
    if like.is_cuda and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), like.device)


@torch.no_grad()
def data_shape(gebm: GEBM) -> torch.Size:
    """The shape of a datum, as the generator makes it."""
    with gebm.frozen():  # a BatchNorm in train mode refuses a single datum
        # No draw: what is only looked at must not move the random streams.
        x: Tensor = gebm.base(gebm.log_partition.new_zeros(1, gebm.latent_dim))
    return x.shape[1:]


def prepared(batches: Iterator[Tensor], gebm: GEBM, config: TrainConfig) -> Iterator[Tensor]:
    """Batches on the model's device and in its dtype.

    Raises:
        ValueError: one does not have the generator's shape.
    """
    like, shape = gebm.log_partition, data_shape(gebm)
    for batch in batches:
        if batch.shape[1:] != shape:
            raise ValueError(
                f"loader: expected data of the generator's shape {tuple(shape)}; got "
                f"{tuple(batch.shape[1:])}"
            )
        x = batch.to(like)
        if config.channels_last and x.ndim == 4:
            x = x.to(memory_format=torch.channels_last)
        yield x
