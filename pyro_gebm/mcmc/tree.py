"""What NUTS grows: the parts of a trajectory while it doubles, for all chains of a batch."""

from typing import NamedTuple

from torch import Tensor

from pyro_gebm.mcmc.kernel import KernelState


class Phase(NamedTuple):
    """A point of phase space, with what the next leapfrog step needs."""

    state: KernelState
    momentum: Tensor
    """(C, D)."""


class Leaf(NamedTuple):
    """A candidate for the draw."""

    state: KernelState
    error: Tensor
    """H - H₀, (C,)."""


class Span(NamedTuple):
    """A stretch of trajectory and the draw chosen from it."""

    draw: Leaf
    log_weight: Tensor
    """log Σ exp(H₀ - H) over the leaves, (C,)."""
    momentum_sum: Tensor
    """Σ r over the leaves, (C, D)."""


class Growth(NamedTuple):
    """The subtree being grown, a leaf per leapfrog step (Phan et al. 2019, appendix A)."""

    edge: Phase
    """The newest leaf, from which the next step starts."""
    span: Span
    leaf: Tensor
    """Leaves grown so far, (C,) int64; the subtree is whole at 2^depth."""
    checkpoint_momentum: Tensor
    """r at the first leaf of each binary subtree still open, (C, K, D)."""
    checkpoint_sum: Tensor
    """momentum_sum there, (C, K, D)."""


class Tree(NamedTuple):
    """The trajectory of every chain while it doubles."""

    initial_energy: Tensor
    left: Phase
    right: Phase
    span: Span
    growth: Growth
    forward: Tensor
    """The subtree grows to the right, (C,) bool."""
    depth: Tensor
    sum_accept: Tensor
    num_steps: Tensor
    max_energy_error: Tensor
    diverging: Tensor
    done: Tensor
