"""What a loader may yield, and how it is read: without end, and on from where a run stopped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, TypeAlias, final, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

Batch: TypeAlias = Tensor | Sequence[Any]
"""Data (B, ...), or a sequence whose first item they are, as a torch ``DataLoader`` yields."""


def data_of(batch: Batch) -> Tensor:
    """The data of a batch, without labels or what else comes behind them.

    Raises:
        ValueError: they are not a tensor.
    """
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        raise ValueError(
            f"loader: expected tensors, or tuples or lists that start with one; got "
            f"{type(x).__name__}"
        )
    return x


@runtime_checkable
class Stateful(Protocol):
    """A loader that saves its own place: torch's protocol of this name.

    Stated again, since ``torch.distributed.checkpoint.stateful`` takes seconds to import.
    """

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the batches to come."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Continue from there."""
        ...


@final
class Batches:
    """Batches of a loader without end, started again whenever it ends; they can be resumed.

    After ``load_state_dict`` in a new process, over a fresh and equally built loader, the
    batches go on bit for bit:

    * A loader that saves its own place (``BatchLoader``, torchdata's ``StatefulDataLoader``)
      is asked for it.
    * A torch ``DataLoader`` starts the interrupted epoch again, from the random states that it
      had then, of torch's global generator and of those given to it and to torch's samplers.
      The batches that were taken are read again and dropped. A ``DistributedSampler`` is told
      the number of every epoch. Not resumed: an order that comes from elsewhere (NumPy, a
      sampler's own generator), and what persistent workers draw.
    * Anything else is started again, and the batches that were taken are dropped.

    A state belongs to the moment between two batches. Save it together with torch's global
    random state. ``load_state_dict`` reads all that is to be dropped and leaves the global
    random state as it found it, so that the two can be restored in either order, but both
    before the next batch.

    Args:
        loader: yields tensors (B, ...), or sequences that start with one.

    Example:
        >>> batches = Batches([torch.zeros(2), torch.ones(2)])
        >>> for _ in range(3):
        ...     print(next(batches))
        tensor([0., 0.])
        tensor([1., 1.])
        tensor([0., 0.])
        >>> resumed = Batches([torch.zeros(2), torch.ones(2)])
        >>> resumed.load_state_dict(batches.state_dict())
        >>> next(resumed)
        tensor([1., 1.])
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader
        self._iterator: Iterator[Batch] | None = loader if isinstance(loader, Iterator) else None
        self._epoch = 0
        self._taken = 0  # of this epoch
        self._start = _states(self._sources())  # of this epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tensor:
        """The data of the next batch, (B, ...).

        Raises:
            ValueError: the loader has no batch, or not of tensors.
        """
        while True:
            if self._iterator is None:
                self._start_epoch()
            assert self._iterator is not None
            try:
                batch = next(self._iterator)
            except StopIteration:
                if not self._taken:
                    raise ValueError(
                        "loader: expected at least one batch; got none, or a used-up iterator"
                    ) from None
                # First let go of the old iterator: its workers end before others begin.
                self._iterator, self._epoch, self._taken = None, self._epoch + 1, 0
            else:
                self._taken += 1
                return data_of(batch)

    def state_dict(self) -> dict[str, Any]:
        """The place between two batches: plain numbers and tensors."""
        start = self._start if self._taken else _states(self._sources())
        own = None
        # Asked before its first epoch, torchdata's would draw random numbers.
        if isinstance(self._loader, Stateful) and self._iterator is not None:
            own = self._loader.state_dict()
        return {
            "epoch": self._epoch,
            "taken": self._taken,
            "random": start,
            "loader": own,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the batches that gave ``state`` stood.

        Raises:
            ValueError: the state is that of another kind of loader or of one with more
                batches, or the loader is an iterator that has been read and cannot go back.
        """
        stateful = isinstance(self._loader, Stateful)
        if len(state["random"]) != len(self._sources()):
            raise ValueError(
                "state: expected that of an equal loader; got one with "
                f"{len(state['random'])} random generators instead of {len(self._sources())}; "
                "build the loader as the saved run did"
            )
        if isinstance(self._loader, Iterator) and not stateful and self._epoch + self._taken:
            raise ValueError(
                "loader: expected a fresh iterator; got one that has been read and cannot go "
                "back; use a list, a DataLoader or a BatchLoader"
            )
        self._epoch, self._taken = state["epoch"], state["taken"]
        # A checkpoint may have been loaded to another device.
        self._start = [random.cpu() for random in state["random"]]
        # One that is not in use stays so: to ask for its random state would start it.
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        with torch.random.fork_rng([torch.cuda.current_device()] if in_use else []):
            if isinstance(self._loader, Stateful) and state["loader"] is not None:
                self._loader.load_state_dict(state["loader"])
                self._restart()
            elif self._taken:
                self._replay()
            else:
                self._restore_random()
                self._iterator = self._loader if isinstance(self._loader, Iterator) else None

    def _start_epoch(self) -> None:
        if self._epoch == 0:
            self._start_workers()
        self._start = _states(self._sources())
        self._restart()

    def _replay(self) -> None:
        """This epoch again, up to where it was left."""
        self._start_workers()
        self._restore_random()
        self._restart()
        assert self._iterator is not None
        for count in range(self._taken):
            try:
                next(self._iterator)
            except StopIteration:
                raise ValueError(
                    f"loader: expected {self._taken} batches or more, which the saved run has "
                    f"taken from an epoch; got {count}; load the data that it was started with"
                ) from None

    def _restart(self) -> None:
        if isinstance(self._loader, DataLoader):
            for sampler in _samplers(self._loader):
                if isinstance(sampler, DistributedSampler):
                    sampler.set_epoch(self._epoch)
        self._iterator = iter(self._loader)

    def _start_workers(self) -> None:
        """Start persistent workers, for which a loader draws a seed in its first epoch only.

        What follows then takes the same random numbers in every epoch.
        """
        loader = self._loader
        if isinstance(loader, DataLoader) and loader.persistent_workers and self._sources():
            iter(loader)

    def _restore_random(self) -> None:
        for generator, state in zip(self._sources(), self._start, strict=True):
            generator.set_state(state)

    def _sources(self) -> list[torch.Generator]:
        """What decides the order of an epoch, unless the loader knows it."""
        if isinstance(self._loader, Stateful):
            return []
        found: list[torch.Generator | None] = [torch.default_generator]
        if isinstance(self._loader, DataLoader):
            found.append(self._loader.generator)
            found += [s.generator for s in _samplers(self._loader) if isinstance(s, _RANDOM)]
        return [generator for generator in dict.fromkeys(found) if generator is not None]


_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def _samplers(loader: DataLoader[Any]) -> list[object]:
    inner = loader.batch_sampler
    return [loader.sampler, inner, inner.sampler if isinstance(inner, BatchSampler) else None]


def _states(generators: Iterable[torch.Generator]) -> list[Tensor]:
    return [generator.get_state() for generator in generators]
