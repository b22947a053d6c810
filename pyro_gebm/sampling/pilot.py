"""Draws from the reference before a run: how many global moves pay, and what a run may miss."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm.mcmc import (
    IMH,
    MALA,
    NUTS,
    GlobalMoves,
    Kernel,
    Kinetic,
    Langevin,
    Warmed,
)
from pyro_gebm.mcmc.free_jumps import hands_at_once
from pyro_gebm.mcmc.random import mix, seed_global
from pyro_gebm.sampling.price import Price
from pyro_gebm.sampling.target import Target

PILOT_DRAWS = 4096
PHASE = 3
"""The pilot's draws are not those that the chains start from."""

COST_SHARE = 0.25
"""Of the cost of the local kernel, what global moves may add: a fifth of the whole."""

GOOD_SHARE, GOOD_ACCEPTANCE = 1.0, 0.3
"""Half of the whole where so many are accepted: such a move is worth a local draw itself."""

LEAST_ACCEPTANCE = 1e-3
CHOICES = (1, 2, 4, 8, 16, 32, 64, 128)
BOOKKEEPING = 1500.0
"""Microseconds that a step of a batch that runs freely spends on trees, beside its gradient."""

FREE_MOVE = 500.0
"""Microseconds of the moves of such a batch beside what they evaluate: trees are planted anew."""

NUM_STATISTICS = 8
"""Latents that the check for missed mass looks at."""


class Pilot(NamedTuple):
    """Independent draws from the reference and their weights under the target."""

    z: Tensor
    """(N, D)."""
    log_weight: Tensor
    """U_0 - U, (N,); -inf where it is not finite."""


def run_pilot(target: Target, seed: int, chunk_size: int | None) -> Pilot | None:
    """``PILOT_DRAWS`` from the reference, if there is one; forward passes only."""
    if target.reference is None:
        return None
    like = target.reference.sample(1)
    seed_global(mix(PHASE, seed), like.device)
    z = target.reference.sample(PILOT_DRAWS)
    with torch.no_grad():
        energy = torch.cat(
            [target.potential_fn(part) for part in torch.split(z, chunk_size or 1024)]
        )
        log_weight = target.reference.potential_fn(z) - energy
    return Pilot(z, torch.where(torch.isfinite(log_weight), log_weight, -torch.inf))


def leaving(pilot: Pilot, log_weight: Tensor, num_proposals: int) -> float:
    """Mean probability that chains of weights (R,) leave by a move of n proposals.

    The proposals are the pilot's draws, dealt in hands of n.
    """
    hands = len(pilot.z) // num_proposals
    dealt = pilot.log_weight[: hands * num_proposals].view(hands, num_proposals).logsumexp(1)
    return float(torch.sigmoid(dealt[:, None] - log_weight[None].double()).mean())


def stationary_weights(pilot: Pilot, count: int) -> Tensor:
    """Weights of draws from the target, as far as the pilot can tell: resampled by weight."""
    share = pilot.log_weight.double().softmax(0)
    return pilot.log_weight[torch.multinomial(share, count, replacement=True)]


def choose_moves(
    pilot: Pilot, log_weight: Tensor, num_steps: float, price: Price, kernel: Kernel
) -> GlobalMoves | None:
    """The n and k of most accepted moves per transition within the cap, or ``None``.

    Args:
        pilot: draws from the reference.
        log_weight: U_0 - U of chains at the target, (R,).
        num_steps: gradients of a transition of the local kernel.
        price: of the potential.
        kernel: the local kernel; of one that runs freely each chain proposes by itself.
    """
    best, best_rate = None, 0.0
    chains, free = len(log_weight), isinstance(kernel, NUTS)
    for n in CHOICES:
        step = price.gradient(chains) + (BOOKKEEPING if free else 0.0)
        move = price.proposals(chains * n) + step
        if free:
            move = _drawn_ahead(price, n, pilot.z.shape[1], chains)
        accept = leaving(pilot, log_weight, n)
        share = GOOD_SHARE if accept >= GOOD_ACCEPTANCE else COST_SHARE
        every = max(1, math.ceil(move / (share * num_steps * step)))
        # Beyond one half the second move in a row adds little.
        rate = min(accept, 0.5) / every
        if accept >= LEAST_ACCEPTANCE and rate > 1.05 * best_rate:
            best, best_rate = GlobalMoves(num_proposals=n, every=every), rate
    return best


def _drawn_ahead(price: Price, n: int, dim: int, chains: int) -> float:
    """Microseconds of a move of every chain, each drawing those of some moves by itself."""
    hands = hands_at_once(n, dim)
    return chains * (price.proposals(hands * n) + price.gradient(hands)) / hands + FREE_MOVE


def suits_global_moves(kernel: Kernel) -> bool:
    """Not the unadjusted kernels, whose own law users of them want to see, nor IMH."""
    return not isinstance(kernel, Langevin | Kinetic | IMH)


def first_moves(pilot: Pilot, kernel: Kernel, price: Price, chains: int) -> GlobalMoves | None:
    """What warm-up uses, when nothing is known but the pilot."""
    if not bool(torch.isfinite(pilot.log_weight).any()):
        return None
    steps = 1.0 if isinstance(kernel, MALA) else 5.0
    return choose_moves(pilot, stationary_weights(pilot, chains), steps, price, kernel)


def settled_moves(
    pilot: Pilot, warmed: Warmed, target: Target, price: Price, kernel: Kernel
) -> GlobalMoves | None:
    """What the draws use, from where warm-up has led and what a transition costs."""
    assert target.reference is not None
    state = warmed.position.state
    with torch.no_grad():
        log_weight = target.reference.potential_fn(state.z) - state.potential_energy
    return choose_moves(pilot, log_weight, warmed.num_steps, price, kernel)


def missing_mass(
    pilot: Pilot | None, z: Tensor, potential_energy: Tensor, target: Target
) -> list[str]:
    """A warning if the weighted pilot has mass that a run has not.

    Args:
        pilot: base draws; ``None`` judges nothing.
        z: unconstrained positions of the run, (C, S, D).
        potential_energy: U at each, (C, S).
        target: of both.
    """
    if pilot is None or z.shape[1] < 4:
        return []
    assert target.reference is not None
    flat = z.to(pilot.z).flatten(0, 1)
    if not bool(torch.isfinite(flat).all()):  # stored in too small a type
        return []
    run_weight = target.reference.potential_fn(flat).cpu().view_as(potential_energy)
    run_weight = run_weight - potential_energy
    run = torch.cat([run_weight[..., None], z[..., :NUM_STATISTICS].cpu()], -1).double()
    base = torch.cat([pilot.log_weight[:, None], pilot.z[:, :NUM_STATISTICS]], -1).double().cpu()
    missed = inference_data.check_missing_mass(
        pilot.log_weight.double().cpu().numpy(),
        base.numpy(),
        run.numpy(),
        run_log_weights=run_weight.double().numpy(),
        names=["the log density ratio", *(f"latent {i}" for i in range(run.shape[-1] - 1))],
    )
    return [missed] if missed else []
