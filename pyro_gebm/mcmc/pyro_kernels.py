"""Pyro's own kernels on a potential of ours, chain by chain, with the same result."""

import copy
from typing import Any, TypeAlias, TypeGuard

import pyro.infer
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc.kernel import Info, Tuning, evaluate
from pyro_gebm.mcmc.run import Draws

PyroKernel: TypeAlias = type[pyro.infer.HMC] | pyro.infer.HMC
"""``pyro.infer.HMC`` or ``NUTS`` (which derives from it), the class or an object."""

SITE = "z"


def is_pyro_kernel(kernel: object) -> TypeGuard[PyroKernel]:
    """Whether ``run_pyro`` takes it."""
    owner = kernel if isinstance(kernel, type) else type(kernel)
    return issubclass(owner, pyro.infer.HMC)


class _Recorder:
    """Counts gradient evaluations and notes what Pyro's kernel knows after each draw."""

    def __init__(self, potential_fn: PotentialFn) -> None:
        self._potential_fn = potential_fn
        self.evaluations = 0
        self.evaluations_after: list[int] = []
        self.warmup_evaluations = 0
        self.accept_prob: list[float] = []
        self.step_size: float = 0.0
        self.variance: Tensor = torch.empty(0)
        self.divergences: list[int] = []

    def potential(self, params: dict[str, Tensor]) -> Tensor:
        """What Pyro calls: {site: (D,)} -> scalar."""
        self.evaluations += 1
        return self._potential_fn(params[SITE][None])[0]

    def hook(self, kernel: Any, params: object, stage: str, index: int) -> None:
        """Called by Pyro's MCMC after every transition."""
        if stage.startswith("Warmup"):
            self.warmup_evaluations = self.evaluations
            return
        self.evaluations_after.append(self.evaluations)
        # Pyro keeps only the running mean m_n of the acceptance: a_n = n m_n - (n-1) m_(n-1).
        count = len(self.evaluations_after)
        total = count * float(kernel._mean_accept_prob)
        self.accept_prob.append(total - sum(self.accept_prob))
        self.step_size = float(kernel.step_size)
        matrix = kernel.inverse_mass_matrix[(SITE,)].detach()
        self.variance = matrix.diagonal() if matrix.ndim == 2 else matrix  # full_mass=True
        self.divergences = list(kernel.diagnostics()["divergences"])

    def num_steps(self) -> list[int]:
        """Gradient evaluations of each draw."""
        before = [self.warmup_evaluations, *self.evaluations_after[:-1]]
        return [now - then for now, then in zip(self.evaluations_after, before, strict=True)]


def run_pyro(
    kernel: PyroKernel,
    potential_fn: PotentialFn,
    z: Tensor,
    *,
    num_samples: int,
    warmup_steps: int,
    thinning: int = 1,
    target_accept_prob: float = 0.8,
    progress: bool = False,
) -> Draws:
    """Run ``pyro.infer.MCMC`` once per chain on ``potential_fn``.

    Args:
        kernel: ``pyro.infer.NUTS`` or ``HMC``, the class, or an object whose settings are
            taken while its model or potential is replaced.
        potential_fn: U, (C, D) -> (C,).
        z: where the chains start, (C, D).
        num_samples: draws kept per chain.
        warmup_steps: transitions of warm-up before them.
        thinning: transitions per draw.
        target_accept_prob: used where ``kernel`` is a class; an object has its own.
        progress: show a bar over chains on standard error.

    Returns:
        The draws, chains first. Randomness comes from torch's global generator, as always in
        Pyro.
    """
    chains = tqdm(z, desc="Pyro, chain by chain", disable=not progress, leave=False)
    parts = [
        _run_chain(
            _bind(kernel, target_accept_prob),
            potential_fn,
            start,
            num_samples,
            warmup_steps,
            thinning,
        )
        for start in chains
    ]
    info = Info(
        torch.stack([part.info.accept_prob for part in parts]),
        torch.stack([part.info.diverging for part in parts]),
        torch.stack([part.info.num_steps for part in parts]),
    )
    draws = torch.stack([part.z for part in parts])
    last = evaluate(potential_fn, draws[:, -1])
    steps = torch.stack([part.tuning.step_size for part in parts])
    masses = torch.stack([part.tuning.inverse_mass_matrix for part in parts])
    return Draws(
        z=draws,
        potential_energy=torch.stack([part.potential_energy for part in parts]),
        info=info,
        tuning=Tuning(steps, masses),
        last=last,
        num_warmup_steps=torch.stack([part.num_warmup_steps for part in parts]),
        interrupted=False,
    )


def _bind(kernel: PyroKernel, target_accept_prob: float) -> Any:
    """A factory of fresh kernels of the same settings on a given potential."""

    def fresh(potential: Any) -> pyro.infer.HMC:
        if isinstance(kernel, type):
            return kernel(potential_fn=potential, target_accept_prob=target_accept_prob)
        clone = copy.copy(kernel)
        # Pyro's adapter and list of divergences hold state: each chain needs its own.
        clone._adapter = copy.deepcopy(kernel._adapter)
        clone._reset()
        clone.model, clone.transforms, clone.potential_fn = None, {}, potential
        return clone

    return fresh


def _run_chain(
    fresh: Any,
    potential_fn: PotentialFn,
    start: Tensor,
    num_samples: int,
    warmup_steps: int,
    thinning: int,
) -> Draws:
    recorder = _Recorder(potential_fn)
    mcmc = pyro.infer.MCMC(
        fresh(recorder.potential),
        num_samples=num_samples * thinning,
        warmup_steps=warmup_steps,
        initial_params={SITE: start.clone()},
        disable_progbar=True,
        hook_fn=recorder.hook,
    )
    mcmc.run()
    every = mcmc.get_samples()[SITE]
    diverging = torch.zeros(len(every), dtype=torch.bool, device=every.device)
    diverging[recorder.divergences] = True
    steps = torch.tensor(recorder.num_steps(), device=every.device)
    accept = torch.tensor(recorder.accept_prob, device=every.device, dtype=every.dtype)
    kept = every[thinning - 1 :: thinning]
    state = evaluate(potential_fn, kept)
    return Draws(
        z=kept,
        potential_energy=state.potential_energy,
        info=Info(
            accept.view(-1, thinning).mean(-1),
            diverging.view(-1, thinning).any(-1),
            steps.view(-1, thinning).sum(-1),
        ),
        tuning=Tuning(accept.new_tensor(recorder.step_size), recorder.variance),
        last=state,
        num_warmup_steps=torch.tensor(recorder.warmup_evaluations, device=every.device),
        interrupted=False,
    )
