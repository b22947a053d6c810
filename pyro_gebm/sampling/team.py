"""Processes that share the chains of a run."""

from collections.abc import Callable
from typing import Any, TypeVar, final

from torch import distributed

from pyro_gebm.mcmc import HMC, NUTS, ChEES, Kernel
from pyro_gebm.mcmc.random import BLOCK

T = TypeVar("T")


def check_team(kernel: Kernel, num_chains: int, tempered: bool, chunk_size: int) -> None:
    """Raise ``ValueError`` unless processes can share a run, and draw what one would."""
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "distributed: expected torch.distributed to be initialised; start with torchrun, and "
            "call torch.distributed.init_process_group first"
        )
    processes = distributed.get_world_size()
    if num_chains <= BLOCK * (processes - 1):
        raise ValueError(
            f"num_chains: expected more than {BLOCK * (processes - 1)}, a block of {BLOCK} for "
            f"each of {processes} processes; got {num_chains}; start fewer processes"
        )
    if BLOCK % chunk_size:
        raise ValueError(
            f"chunk_size: expected a divisor of {BLOCK} with distributed, or None; got {chunk_size}"
        )
    if tempered and num_chains % BLOCK:
        raise ValueError(
            f"num_chains: expected a multiple of {BLOCK} with distributed and tempering; got "
            f"{num_chains}"
        )
    if tempered and isinstance(kernel, NUTS):
        raise ValueError(
            "kernel: expected another than NUTS with distributed and tempering, where its noise "
            'is one stream for all chains; take "HMC"'
        )
    if kernel.step_size_per_chain and isinstance(kernel, HMC | ChEES):
        raise ValueError(
            "kernel: expected step_size_per_chain=False with distributed, since the median step "
            "of all chains decides their number of steps; take NUTS"
        )


@final
class Team:
    """This process among all of torch.distributed, or by itself.

    What they do together they end together: every process waits until all have done their part,
    and if one fails, all raise. One that dies without a word is noticed by its closed connection
    or, at the latest, after the timeout that ``init_process_group`` was given.

    Args:
        together: share the chains among the processes of torch's default group.
    """

    def __init__(self, together: bool) -> None:
        self.rank = distributed.get_rank() if together else 0
        self.size = distributed.get_world_size() if together else 1

    @property
    def leads(self) -> bool:
        """Whether this process warms up, joins and speaks for all."""
        return self.rank == 0

    def chains(self, num_chains: int) -> slice:
        """This process's share: whole blocks of 64, but for the last of all."""
        blocks = -(-num_chains // BLOCK)
        first, end = (blocks * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(first * BLOCK, min(end * BLOCK, num_chains))

    def blocks(self, num_chains: int, levels: int) -> list[int]:
        """The numbers of their blocks, at all levels of a batch."""
        share, each = self.chains(num_chains), -(-num_chains // BLOCK)
        own = range(share.start // BLOCK, -(-share.stop // BLOCK))
        return [level * each + block for level in range(levels) for block in own]

    def all(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` gives in every process, by rank.

        Raises:
            RuntimeError: it failed in another process; in this one its own error comes through.
        """
        if self.size == 1:
            return [work()]
        value, error = None, None
        try:
            value = work()
        except (Exception, KeyboardInterrupt) as failure:
            error = failure
        told = (value, None if error is None else f"{type(error).__name__}: {error}")
        outcomes: list[Any] = [None] * self.size
        distributed.all_gather_object(outcomes, told)
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(outcomes):
            if message is not None:
                raise RuntimeError(f"process {rank} of {self.size} failed: {message}")
        return [outcome for outcome, _ in outcomes]

    def first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the first process, in all.

        Raises:
            RuntimeError: it failed there; in the first process its own error comes through.
        """
        return self.all(lambda: work() if self.leads else None)[0]  # type: ignore[return-value]
