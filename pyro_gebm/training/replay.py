"""Persistent Langevin chains in data space: the negative samples of an ordinary EBM."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._checks import check_batch, check_count, check_finite, check_in_range

Energy = Callable[[Tensor], Tensor]
"""Data (B, ...) -> energies (B,) or (B, 1), without coupling between the data."""


class ReplayDraw(NamedTuple):
    """What ``ReplayBuffer.draw`` returns."""

    x: Tensor
    """Positions after the steps (B, ...), detached."""
    grad_evaluations: int
    """Energy gradients of single data that were computed: steps times B."""
    num_restarted: int
    """Chains that started from a fresh sample by chance."""
    num_lost: int
    """Chains that met a non-finite energy or position, replaced by fresh samples at the end."""


@final
class ReplayBuffer:
    """Positions of N chains at exp(-E), moved a little at each use while E is trained.

    Each use moves some of the chains by unadjusted Langevin steps x' = x - γ ∇E(x) + s ξ,
    ξ ~ N(0, I), and puts them back: persistent contrastive divergence (Tieleman, 2008) with the
    replay buffer and the restarts of Du and Mordatch (2019, arXiv 1903.08689). Randomness comes
    from torch's global generators, that of the positions' device for the noise.

    Args:
        positions: where the chains start (N, ...); copied.

    Raises:
        ValueError: if there is no position, or one is not finite.

    Example:
        >>> import torch
        >>> buffer = ReplayBuffer(torch.zeros(100, 2))
        >>> drawn = buffer.draw(
        ...     lambda x: 0.5 * x.square().sum(dim=1),
        ...     10,
        ...     steps=5,
        ...     step_size=0.1,
        ...     noise=0.2**0.5,
        ...     restart_probability=0.05,
        ...     fresh=lambda n: torch.randn(n, 2),
        ... )
        >>> drawn.x.shape, drawn.grad_evaluations, drawn.num_lost
        (torch.Size([10, 2]), 50, 0)
    """

    def __init__(self, positions: Tensor) -> None:
        if positions.ndim == 0 or positions.shape[0] == 0 or not positions.is_floating_point():
            raise ValueError(
                f"positions: expected floats of shape (N, ...), N >= 1; got "
                f"{tuple(positions.shape)} of {positions.dtype}"
            )
        self._positions = check_finite("positions", positions).detach().clone()

    @property
    def positions(self) -> Tensor:
        """A copy of the positions of all chains (N, ...)."""
        return self._positions.clone()

    def draw(
        self,
        energy_fn: Energy,
        num_samples: int,
        *,
        steps: int,
        step_size: float,
        noise: float,
        restart_probability: float,
        fresh: Callable[[int], Tensor],
    ) -> ReplayDraw:
        """Move ``num_samples`` chains, picked without replacement, and return where they are.

        A chain that meets a non-finite energy or position ends as a fresh sample, without
        steps, and is counted; the others are as they would have been without it. The buffer is
        written at the end, so an error leaves it as it was.

        Args:
            energy_fn: the energy; its parameters get no gradient.
            num_samples: B, at most N.
            steps: Langevin steps.
            step_size: γ. √(2γ) as ``noise`` is unadjusted Langevin at temperature 1, whose law
                is exp(-E) up to O(γ); less noise than that samples a colder law.
            noise: s, the standard deviation of a step's noise.
            restart_probability: chance of each chain to start from a fresh sample.
            fresh: number n -> finite samples (n, ...), on the buffer's device; n >= 1.

        Raises:
            ValueError: if a number is out of its range, or ``energy_fn`` or ``fresh`` returns
                another shape or fresh samples that are not finite.
        """
        self._check_count_of(num_samples)
        check_count("steps", steps)
        check_in_range("step_size", step_size, 0.0, open_low=True)
        check_in_range("noise", noise, 0.0)
        check_in_range("restart_probability", restart_probability, 0.0, 1.0)
        # Chosen on the CPU: no wait for a device, and one stream of choices on all of them.
        rows = torch.randperm(len(self._positions))[:num_samples].to(self._positions.device)
        restarted = torch.rand(num_samples) < restart_probability
        start, num_restarted = self._replace(self._positions[rows], restarted, fresh)
        x, lost = _langevin(energy_fn, start, steps, step_size, noise)
        x, num_lost = self._replace(x, lost, fresh)
        self._positions[rows] = x
        return ReplayDraw(x, steps * num_samples, num_restarted, num_lost)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of what ``load_state_dict`` takes."""
        return {"positions": self.positions}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the positions of another buffer of this shape and dtype.

        With torch's generators restored too, the draws go on bit by bit as those of the other.

        Raises:
            ValueError: if they have another shape or dtype.
        """
        saved, mine = state["positions"], self._positions
        if saved.shape != mine.shape or saved.dtype != mine.dtype:
            raise ValueError(
                f"positions: expected shape {tuple(mine.shape)} and {mine.dtype}; got "
                f"{tuple(saved.shape)} and {saved.dtype}; build the buffer as the saved one was"
            )
        mine.copy_(saved)

    def _check_count_of(self, num_samples: int) -> None:
        check_count("num_samples", num_samples)
        if num_samples > len(self._positions):
            raise ValueError(
                f"num_samples: expected at most {len(self._positions)}, the chains of the buffer; "
                f"got {num_samples}; make the buffer larger"
            )

    def _replace(
        self, x: Tensor, which: Tensor, fresh: Callable[[int], Tensor]
    ) -> tuple[Tensor, int]:
        """``x`` with fresh samples in the rows ``which`` (B,), and how many those are."""
        count = int(which.sum())
        if count:
            new = check_batch("fresh", fresh(count), tuple(x.shape[1:]))
            if len(new) != count:
                raise ValueError(f"fresh: expected {count} samples; got {len(new)}")
            x[which.to(x.device)] = check_finite("fresh", new).detach().to(x)
        return x, count


def _langevin(
    energy_fn: Energy, x: Tensor, steps: int, step_size: float, noise: float
) -> tuple[Tensor, Tensor]:
    """Positions after the steps, detached, and which chains (B,) met a non-finite number."""
    lost = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        energy, gradient = _energy_and_gradient(energy_fn, x)
        lost |= ~energy.isfinite()
        x = x - step_size * gradient + noise * torch.randn_like(x)
    return x, lost | ~x.reshape(len(x), -1).isfinite().all(dim=1)


def _energy_and_gradient(energy_fn: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = energy_fn(x)
        if energy.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(
                f"energy_fn: expected shape ({len(x)},) or ({len(x)}, 1) for a batch of {len(x)}; "
                f"got {tuple(energy.shape)}"
            )
        (gradient,) = torch.autograd.grad(energy.sum(), x, materialize_grads=True)
    return energy.detach().reshape(len(x)), gradient
