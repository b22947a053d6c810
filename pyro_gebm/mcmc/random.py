"""Random streams: noise that depends on the seed, the chain's block and the step, and on no more.

Chains come in blocks of 64 (on a GPU, 4,096), each with a generator of its own that is seeded
afresh at every step. What a chain does then depends neither on how many other blocks run beside
its own nor on how long anyone takes, and a run can be taken up at any step without replaying
what came before.
(In a block that is not full, the noise does depend on how many chains it holds.)
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor

BLOCK = 64
"""Chains that share a generator."""

GPU_BLOCK = 4096
"""The same on a GPU, which starts a block's draw no faster than it fills one of this size."""

_WORD = 2**32
_SALT = 0x9E3779B9


def mix(number: int, key: int = 0) -> int:
    """A bijection of 32-bit words (MurmurHash3's finaliser), before and after ``key``.

    torch's CPU generator reads 32 bits of a seed: distinct words give distinct streams.

    Example:
        >>> len({mix(i, key=7) for i in range(1000)})
        1000
    """
    for word in (0, key):
        number = (number ^ word) % _WORD
        number = (number ^ (number >> 16)) * 0x85EBCA6B % _WORD
        number = (number ^ (number >> 13)) * 0xC2B2AE35 % _WORD
        number ^= number >> 16
    return number


@final
class Streams:
    """A generator for every block of chains, and one that all chains share.

    Args:
        seed: of the run.
        num_chains: C.
        device: where the noise is drawn.
        phase: tells streams of one seed apart, such as those of warm-up and of the draws.
        blocks: the numbers of the chains' blocks of 64, where they are part of a larger batch.

    Example:
        >>> streams = Streams(0, 100, torch.device("cpu"))
        >>> one, other = (normal(torch.zeros(100, 2), streams.at(3)) for _ in range(2))
        >>> bool((one == other).all()), one.shape
        (True, torch.Size([100, 2]))
    """

    def __init__(
        self,
        seed: int,
        num_chains: int,
        device: torch.device,
        phase: int = 0,
        blocks: Sequence[int] | None = None,
    ) -> None:
        whole = BLOCK if device.type == "cpu" else GPU_BLOCK
        self.size = whole if blocks is None else BLOCK
        """Chains of a block."""
        numbers = range(-(-num_chains // self.size)) if blocks is None else blocks
        # Not plain mix(0, 0) = 0, which would be torch's own stream of seed 0.
        self._key = mix(mix(phase, seed % _WORD ^ _SALT), seed // _WORD ^ _SALT)
        self.blocks = [torch.Generator(device) for _ in numbers]
        self._numbers = list(numbers)
        self._keys = [mix(block + 1, self._key) for block in numbers]
        self._shared, self._shared_waits = torch.Generator(), True
        self.shift = mix(self._key) / _WORD
        self.at(0)

    def at(self, step: int) -> "Streams":
        """These streams, at the start of the noise of ``step`` >= -1."""
        self.step = step
        for key, generator in zip(self._keys, self.blocks, strict=True):
            generator.manual_seed(mix(step + 1, key))
        self._shared_waits = True
        return self

    @property
    def shared(self) -> torch.Generator:
        """What all chains share; seeded when it is asked for, which is not at every step."""
        if self._shared_waits:
            self._shared.manual_seed(mix(self.step + 1, self._key ^ (_WORD - 1)))
            self._shared_waits = False
        return self._shared

    def chain_seed(self, chain: int, number: int) -> int:
        """A seed for the ``number``-th of something that a chain draws by itself, at any step."""
        block, row = divmod(chain, self.size)
        # One key for all chains: those of one number are then distinct.
        own = mix(self._numbers[block] * self.size + row + 1, self._key ^ _SALT)
        return mix(own, mix(number + 1, self._key))


Generator: TypeAlias = torch.Generator | Streams
"""What kernels draw from: torch's own, or streams by block."""


def normal(like: Tensor, generator: Generator) -> Tensor:
    """Standard normals of the shape (C, ...), dtype and device of ``like``."""
    return _filled(Tensor.normal_, like, generator)


def uniform(like: Tensor, generator: Generator) -> Tensor:
    """U(0, 1) noise of the shape (C, ...), dtype and device of ``like``."""
    return _filled(Tensor.uniform_, like, generator)


def _filled(fill_: Callable[..., Tensor], like: Tensor, generator: Generator) -> Tensor:
    noise = like.new_empty(like.shape)
    if isinstance(generator, torch.Generator):
        return fill_(noise, generator=generator)
    if len(generator.blocks) == 1:
        return fill_(noise, generator=generator.blocks[0])
    # Fewer rows than streams were made for take fewer of the blocks.
    for part, block in zip(torch.split(noise, generator.size), generator.blocks, strict=False):
        fill_(part, generator=block)
    return noise


def shared_uniform(generator: Generator) -> float:
    """One number of U(0, 1) for all chains."""
    source = generator if isinstance(generator, torch.Generator) else generator.shared
    return float(torch.rand((), generator=source, device=source.device, dtype=torch.float64))


def shared_jitter(generator: Generator) -> float:
    """One number of U(0, 1) for all chains, evenly spread over the steps of ``Streams``.

    The step's number with its bits reversed (van der Corput's sequence, base 2), shifted by a
    random offset; torch's own generator knows no steps and gives a uniform.
    """
    if isinstance(generator, torch.Generator):
        return shared_uniform(generator)
    reversed_bits = int(f"{generator.step + 1:032b}"[::-1], 2) / _WORD
    return (reversed_bits + generator.shift) % 1.0


def shared_parity(generator: Generator) -> int:
    """0 and 1 in turn over the steps of ``Streams``; of torch's own generator at random."""
    if isinstance(generator, torch.Generator):
        return int(shared_uniform(generator) < 0.5)
    return generator.step % 2


def draw_seed(generator: Generator) -> int:
    """A seed for another generator, which then draws without moving this one any further."""
    source = generator if isinstance(generator, torch.Generator) else generator.shared
    return int(torch.randint(2**63 - 1, (), generator=source, device=source.device))


def generator_on(device: torch.device, generator: Generator) -> torch.Generator:
    """A generator on a device, seeded from the one given."""
    return torch.Generator(device).manual_seed(draw_seed(generator))


def sample_seeded(
    sample: Callable[[int], Tensor], counts: Sequence[int], seeds: Sequence[int], like: Tensor
) -> Tensor:
    """``sample(count)``, which draws from torch's global generators, under each seed in turn."""
    parts = []
    for count, seed in zip(counts, seeds, strict=True):
        seed_global(seed, like.device)
        parts.append(sample(count))
    return torch.cat(parts)


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of ``device``.

    Not torch.manual_seed, which reseeds devices that the caller does not restore.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
