"""What improves a GAN's samples gives, and how its work is counted and split into batches."""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_count, check_in_range
from pyro_gebm._types import PotentialFn
from pyro_gebm.metrics.partition import draw_latents
from pyro_gebm.model import GEBM


class Refined(NamedTuple):
    """Improved samples, and what they cost.

    Attributes:
        x: G(z), (num_samples, *data shape), on the model's device.
        z: their latents, (num_samples, D).
        num_gradients: evaluations of E(G(z)) with its gradient, of all samples together.
        num_energies: evaluations of E(G(z)) alone.
    """

    x: Tensor
    z: Tensor
    num_gradients: int
    num_energies: int


@final
class Counted:
    """A potential that counts the rows it is asked for, with a gradient and without."""

    def __init__(self, potential_fn: PotentialFn) -> None:
        self._potential_fn = potential_fn
        self.gradients, self.energies = 0, 0

    def __call__(self, z: Tensor) -> Tensor:
        """The potential, (C, D) -> (C,)."""
        if z.requires_grad:
            self.gradients += len(z)
        else:
            self.energies += len(z)
        return self._potential_fn(z)


def refine_in_batches(
    gebm: GEBM,
    counted: Counted,
    move: Callable[[Tensor], Tensor],
    num_samples: int,
    batch_size: int,
    *,
    generator: torch.Generator,
    progress: bool,
    name: str,
) -> Refined:
    """``move`` draws z ~ η (B, D) to better ones, a batch at a time, and push them forward."""
    check_count("num_samples", num_samples)
    check_count("batch_size", batch_size)
    latents, data = [], []
    with gebm.frozen(), tqdm(total=num_samples, desc=name, disable=not progress) as bar:
        for start in range(0, num_samples, batch_size):
            size = min(batch_size, num_samples - start)
            z = move(draw_latents(gebm, size, generator))
            with torch.no_grad():
                data.append(gebm.base(z))
            latents.append(z)
            bar.update(size)
    return Refined(torch.cat(data), torch.cat(latents), counted.gradients, counted.energies)


def check_walk(num_steps: int, step_size: float) -> None:
    """Refuse a number or a length of steps that is none."""
    check_count("num_steps", num_steps)
    check_in_range("step_size", step_size, 0.0, open_low=True)


def check_gebm(gebm: GEBM) -> GEBM:
    """Return ``gebm`` if it is one."""
    if not isinstance(gebm, GEBM):
        raise ValueError(
            f"gebm: expected a GEBM; got {type(gebm).__name__}; make one with from_gan(generator, "
            "discriminator, prior)"
        )
    return gebm
