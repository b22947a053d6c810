"""Global moves of chains that run freely, each when its own trajectory has ended."""

from typing import final

import torch
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.global_moves import GlobalMoves, Jump, jump, propose_rows
from pyro_gebm.mcmc.kernel import Info, KernelState, put_rows, select, take_rows, zero_rows
from pyro_gebm.mcmc.random import Streams, uniform
from pyro_gebm.mcmc.reference import Reference
from pyro_gebm.mcmc.tree import STEP, Tree, pack


@final
class FreeJumps:
    """Applies global moves to finished trees.

    A chain that has moved needs a gradient where it stands. It spends the next step of the
    batch, one of length zero, on it; until then what is told of its transition is kept here.
    """

    def __init__(
        self,
        potential_fn: PotentialFn,
        reference: Reference | None,
        global_moves: GlobalMoves | None,
    ) -> None:
        self._potential_fn, self._reference, self._moves = potential_fn, reference, global_moves
        self._untold: Info | None = None
        self._origin: KernelState | None = None

    @property
    def wanted(self) -> bool:
        """There are global moves at all."""
        return self._moves is not None and self._reference is not None

    def apply(
        self,
        tree: Tree,
        rows: Tensor,
        fresh: Tensor,
        state: KernelState,
        info: Info,
        streams: Streams,
    ) -> tuple[KernelState, Info, Tensor]:
        """Where the chains ``rows`` are after a move of those that are due, and who has moved.

        Of the ``fresh``, whose move lies a step back, it is told now.
        """
        assert self._moves is not None
        nobody = torch.zeros_like(rows, dtype=torch.bool)
        info = info._replace(global_accept_prob=torch.full_like(info.accept_prob, torch.nan))
        if bool(fresh.any()):
            info = select(fresh, self._recall(rows, info), info)
        noise = _noise(tree, streams)
        due = (noise[rows, 0] * self._moves.every < 1) & ~fresh
        if not bool(due.any()):
            return state, info, nobody
        return self._jump(tree, rows, state, info, due, noise)

    def _jump(
        self, tree: Tree, rows: Tensor, state: KernelState, info: Info, due: Tensor, noise: Tensor
    ) -> tuple[KernelState, Info, Tensor]:
        some = take_rows(state, due)
        result = self._propose(some, noise[rows[due]])
        went, place = result.moved, due.nonzero()[:, 0]
        assert info.global_accept_prob is not None
        told = info._replace(
            global_accept_prob=_put(info.global_accept_prob, place, result.accept_prob),
            num_steps=info.num_steps.index_add(0, place, went.long()),
        )
        self._origin = take_rows(some, went)
        self._remember(tree, rows[place[went]], take_rows(told, place[went]))
        moved = torch.zeros_like(due).index_put((place,), went)
        # The gradient there is not known yet: zero keeps the step of length zero where it is.
        there = KernelState(
            _put(state.z, place, result.z),
            _put(state.potential_energy, place, result.potential_energy),
            torch.where(moved[:, None], 0.0, state.z_grad),
        )
        return there, told, moved

    def _propose(self, some: KernelState, noise: Tensor) -> Jump:
        assert self._moves is not None and self._reference is not None
        like = some.z[:, None].expand(-1, self._moves.num_proposals, -1)
        proposals = propose_rows(self._reference, like, noise[:, 1])
        chosen = noise[:, 2].to(some.potential_energy)
        return jump(
            self._potential_fn,
            self._reference,
            some.z,
            some.potential_energy,
            proposals,
            chosen,
            apart=True,
        )

    def await_gradients(self, tree: Tree, rows: Tensor) -> None:
        """Mark the chains whose next step is for their gradient; they could return from there."""
        assert self._origin is not None
        tree.fresh[rows] = True
        tree.numbers[rows, STEP] = 0.0
        tree.left[rows] = pack(self._origin, torch.zeros_like(self._origin.z))

    def _remember(self, tree: Tree, rows: Tensor, told: Info) -> None:
        if self._untold is None:
            self._untold = zero_rows(told, len(tree.done))
        self._untold = put_rows(self._untold, rows, told)

    def _recall(self, rows: Tensor, like: Info) -> Info:
        return like if self._untold is None else take_rows(self._untold, rows)


def _noise(tree: Tree, streams: Streams) -> Tensor:
    """Uniforms (C, 3) in double precision: is it due, the seed of its proposals, its choice."""
    like = tree.numbers[:, :3].double()
    return uniform(like, streams)


def _put(values: Tensor, place: Tensor, chosen: Tensor) -> Tensor:
    return values.index_copy(0, place, chosen)
