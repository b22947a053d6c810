"""torchrun's processes, from the environment that it sets."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

from pyro_gebm.training import Processes, processes


@contextmanager
def process_group(device: str) -> Iterator[tuple[Processes, str]]:
    """Join the processes that torchrun has started, for as long as the block runs.

    Args:
        device: as asked for; "cuda" becomes the GPU of this process.

    Yields:
        This process among the others, alone without torchrun, and its device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield processes(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield processes(), device
    finally:
        dist.destroy_process_group()
