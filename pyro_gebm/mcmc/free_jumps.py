"""Global moves of chains that run freely, each when its own trajectory has ended."""

from typing import NamedTuple, final

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.global_moves import GlobalMoves, log_weights
from pyro_gebm.mcmc.gradients import CapturedPotential, uncompiled
from pyro_gebm.mcmc.kernel import Info, KernelState, evaluate, put_rows, select, take_rows
from pyro_gebm.mcmc.random import BLOCK, Streams, seed_global, uniform
from pyro_gebm.mcmc.reference import Reference

HANDS = 32
"""Moves of a chain whose proposals are drawn and evaluated together, if they are few."""

ROWS = 1024
"""Proposals evaluated together, at most."""

NUMBERS = 2**14
"""Kept of a chain's hands, at most: positions, gradients and two more."""

FIRST_HANDS = 4
"""Of a chain that may not go on for long."""


class Hand(NamedTuple):
    """The proposals of a move, with one of them drawn by weight; a row for each hand."""

    z: Tensor
    """The one drawn, (H, D)."""
    potential_energy: Tensor
    z_grad: Tensor
    log_weight: Tensor
    """log Σ w of all n, (H,); -inf where the one drawn cannot be gone to."""

    def state(self) -> KernelState:
        """Where a chain would go."""
        return KernelState(self.z, self.potential_energy, self.z_grad)


def hands_at_once(num_proposals: int, dim: int) -> int:
    """Moves whose proposals a chain draws together: as many for every number of chains."""
    return max(1, min(HANDS, ROWS // num_proposals, NUMBERS // (2 * dim + 2)))


def deck_of(number: int, size: int) -> tuple[int, int]:
    """Which of its decks a chain's ``number``-th hand is in, and where: the first one is small."""
    first = min(FIRST_HANDS, size)
    if number < first:
        return 0, number
    return 1 + (number - first) // size, (number - first) % size


def next_hand(every: int, transitions: Tensor) -> Tensor:
    """The number of each chain's next hand once it has made ``transitions``, (C,) each.

    A chain moves after every k-th transition. Chains do not begin together, and each begins as
    it would in a part of the batch that was cut at a multiple of 64.
    """
    return -(-(transitions + _first_turns(every, transitions)) // every)


def _first_turns(every: int, like: Tensor) -> Tensor:
    """Each chain's turn at its first transition, (C,); it moves at every multiple of k."""
    return torch.arange(len(like), device=like.device) % BLOCK * every // BLOCK


def moves_tried(moves: GlobalMoves | None, start: Tensor, end: Tensor) -> Tensor:
    """Moves of each chain between two numbers of transitions, (C,) each."""
    if moves is None:
        return torch.zeros_like(start)
    return next_hand(moves.every, end) - next_hand(moves.every, start)


def _plain(potential_fn: PotentialFn) -> PotentialFn:
    """Neither compiled nor recorded: hands have shapes of their own, and are few."""
    inner = uncompiled(potential_fn)
    return inner.potential_fn if isinstance(inner, CapturedPotential) else inner


@final
class FreeJumps:
    """Applies global moves to finished trees.

    What a chain proposes does not depend on where it stands, nor on who moves with it: a few
    moves' proposals are drawn ahead, together, with the gradient at the one of each that the
    chain would go to. When the move comes, all that is left to decide is whether it does.

    Args:
        potential_fn: U, (C, D) -> (C,).
        reference: where proposals come from.
        moves: how many, how often.
        like: of the chains' positions, (C, D).
    """

    def __init__(
        self, potential_fn: PotentialFn, reference: Reference, moves: GlobalMoves, like: Tensor
    ) -> None:
        self._potential_fn, self._reference = _plain(potential_fn), reference
        self._moves, self._like = moves, like
        self._size = hands_at_once(moves.num_proposals, like.shape[1])
        self._first_turns = _first_turns(moves.every, like)
        self._held = [-1] * len(like)
        """The deck that each chain holds."""
        self._decks: Hand | None = None
        """Of all chains, (C, H, ...)."""

    def apply(
        self, rows: Tensor, before: Tensor, state: KernelState, info: Info, streams: Streams
    ) -> tuple[KernelState, Info, Tensor]:
        """Where chains are after a move of those that are due, and who has moved.

        Args:
            rows: the chains, (R,).
            before: transitions that all chains have made before this one, (C,).
            state: where they are, R rows.
            info: of the transition, R rows.
            streams: at this step of the batch.
        """
        never = torch.full_like(info.accept_prob, torch.nan)
        info = info._replace(global_accept_prob=never)
        turn, every = (before + self._first_turns)[rows], self._moves.every
        due = turn % every == 0
        place = due.nonzero()[:, 0]
        if not len(place):
            return state, info, due
        hand = self._hands(rows[place], turn[place] // every, streams)
        here = take_rows(state, place)
        log_odds = hand.log_weight - self._weight_here(rows[place], here)
        accept_prob = torch.sigmoid(self._spread(rows[place], log_odds))[rows[place]]
        noise = uniform(self._like[:, 0], streams)[rows[place]]
        went = noise < accept_prob
        info = info._replace(
            global_accept_prob=never.index_copy(0, place, accept_prob),
            num_steps=info.num_steps + due,
        )
        state = put_rows(state, place, select(went, hand.state(), here))
        return state, info, torch.zeros_like(due).index_copy(0, place, went)

    def _weight_here(self, rows: Tensor, here: KernelState) -> Tensor:
        with torch.no_grad():
            weight: Tensor = self._reference.potential_fn(self._spread(rows, here.z))[rows]
        return weight - here.potential_energy

    def _spread(self, rows: Tensor, values: Tensor) -> Tensor:
        """For all chains: by its place among others a number may be rounded another way.

        What a chain gets must not depend on who else is due.
        """
        return values.new_zeros(len(self._like), *values.shape[1:]).index_copy(0, rows, values)

    def _hands(self, rows: Tensor, number: Tensor, streams: Streams) -> Hand:
        """Of each chain the hand with its number."""
        found = [deck_of(each, self._size) for each in number.tolist()]
        for chain, (deck, _) in zip(rows.tolist(), found, strict=True):
            if self._held[chain] != deck:
                self._put(chain, self._deal(streams.chain_seed(chain, deck), deck))
                self._held[chain] = deck
        assert self._decks is not None
        place = torch.tensor([place for _, place in found], device=rows.device)
        return Hand(*(field[rows, place] for field in self._decks))

    def _put(self, chain: int, dealt: Hand) -> None:
        if self._decks is None:
            shape = len(self._held), self._size
            self._decks = Hand(*(field.new_zeros(*shape, *field.shape[1:]) for field in dealt))
        for room, field in zip(self._decks, dealt, strict=True):
            room[chain, : len(field)] = field

    def _deal(self, seed: int, deck: int) -> Hand:
        moves = self._moves
        size = min(FIRST_HANDS, self._size) if deck == 0 else self._size
        seed_global(seed, self._like.device)
        z = self._reference.sample(size * moves.num_proposals)
        noise = torch.rand(size, 1, dtype=torch.float64, device=z.device)
        log_weight = log_weights(self._potential_fn, self._reference, z).view(size, -1)
        share = log_weight.double().softmax(1).cumsum(1)
        # Not a number where none is usable: then the first, with weight zero.
        chosen = (share < noise).sum(1).clamp(max=moves.num_proposals - 1)
        own = z.view(size, -1, z.shape[1])[torch.arange(size, device=z.device), chosen]
        state = evaluate(self._potential_fn, own)
        # A chain could never leave a point without gradient by a trajectory.
        usable = torch.isfinite(state.potential_energy + state.z_grad.sum(-1))
        return Hand(*state[:3], torch.where(usable, log_weight.logsumexp(1), -torch.inf))
