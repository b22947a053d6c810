"""Several processes as one: who we are, and what all of us hold together.

Random numbers are drawn for all processes alike and each takes its slice, so that equally seeded
processes together do what one does on the joint batch.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


class Processes(NamedTuple):
    """Number of this process, and how many there are."""

    rank: int
    world_size: int

    def own(self, joint: Tensor) -> Tensor:
        """The slice (B, ...) of what all processes drew alike, (world_size B, ...)."""
        if self.world_size == 1:
            return joint
        share = len(joint) // self.world_size
        return joint[self.rank * share : (self.rank + 1) * share]

    def joint(self, own: Tensor) -> Tensor:
        """The slices (B,) of all processes, in the order of their ranks, without gradient."""
        if self.world_size == 1:
            return own.detach()
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(parts, own.detach().contiguous())
        return torch.cat(parts)

    def mean(self, own: Tensor) -> Tensor:
        """The mean of a tensor over the processes, without gradient."""
        if self.world_size == 1:
            return own.detach()
        total = own.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def means(self, own: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The means of scalars over the processes, in one exchange, without gradient."""
        if self.world_size == 1:
            return tuple(value.detach() for value in own)
        return self.mean(torch.stack(list(own))).unbind()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the processes by torch's own wrapper."""
        trainable = any(parameter.requires_grad for parameter in module.parameters())
        if self.world_size == 1 or not trainable:
            return module
        return DistributedDataParallel(module)

    def sync(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Within, gradients are exchanged after the last part of a batch only."""
        if last or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        waiting: AbstractContextManager[Any] = module.no_sync()
        return waiting

    def check_parts(self, x: Tensor) -> None:
        """Refuse parts of a batch (B, ...) of unequal sizes, of which no mean is that of the whole.

        Raises:
            ValueError: another process has more data or fewer.
        """
        if self.world_size == 1:
            return
        sizes = self.joint(torch.tensor([len(x)], device=x.device)).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(
                f"loader: expected as many data in each process; got {sizes}; leave out a last "
                "short batch, as BatchLoader(..., rank=, world_size=) does"
            )

    def check_used(self, name: str, module: nn.Module) -> None:
        """Refuse parameters without a gradient, for which the processes would wait for ever.

        Raises:
            ValueError: a parameter that wants one has none.
        """
        if not isinstance(module, DistributedDataParallel):
            return
        named = module.module.named_parameters()
        left = [part for part, p in named if p.requires_grad and p.grad is None]
        if left:
            raise ValueError(
                f"{name}: expected a loss that depends on every parameter, with several "
                f"processes; got none for {', '.join(left)}; remove or freeze them with "
                "requires_grad_(False)"
            )

    @torch.no_grad()
    def agree(self, module: nn.Module) -> None:
        """Give all processes the buffers of the first, such as BatchNorm's running figures."""
        buffers = list(module.buffers()) if self.world_size > 1 else []
        for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
            alike = [buffer for buffer in buffers if buffer.dtype == dtype]
            joined = torch.cat([buffer.flatten() for buffer in alike])
            dist.broadcast(joined, 0)
            parts = torch.split(joined, [buffer.numel() for buffer in alike])
            for buffer, part in zip(alike, parts, strict=True):
                buffer.copy_(part.view_as(buffer))


def processes() -> Processes:
    """This process among those of torch.distributed; alone where that is not initialised."""
    if not dist.is_available() or not dist.is_initialized():
        return Processes(0, 1)
    return Processes(dist.get_rank(), dist.get_world_size())
