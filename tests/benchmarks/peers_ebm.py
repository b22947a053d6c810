"""The libraries of energy-based models, by what they have for sampling a potential."""

from typing import Any

import torch
from jobs import Job, Prepared, Run, watch
from targets import Counted, Target

TRANSITIONS = 16  # of MALA, a draw


def prepare_torchebm(target: Target, job: Job) -> Prepared:
    """TorchEBM's HMC (10 leapfrog steps) or uncorrected Langevin, with a step searched for.

    It adapts nothing; the step is halved from 1 until HMC accepts 0.8, which is warm-up here.
    """
    from torchebm.core import BaseModel
    from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics

    potential = target.torch_potential()
    calls = 0

    class Energy(BaseModel):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return potential(x)

    def sampler(step_size: float) -> Any:
        if job.kernel == "HMC":
            return HamiltonianMonteCarlo(Energy(), step_size=step_size, n_leapfrog_steps=10)
        return LangevinDynamics(Energy(), step_size=step_size**2)

    def tune(start: torch.Tensor) -> float:
        step_size = 1.0
        for _ in range(12):
            hmc = HamiltonianMonteCarlo(Energy(), step_size=step_size, n_leapfrog_steps=10)
            _, told = hmc.sample(start, n_steps=20, return_diagnostics=True)
            if told["acceptance_rate"].mean() >= 0.8:
                break
            step_size /= 2
        return step_size

    def run(seed: int) -> Run:
        nonlocal calls
        calls = 0
        torch.manual_seed(seed)
        start = torch.from_numpy(target.start(job.chains, seed, job.starts))
        with watch() as spent:
            chosen = sampler(tune(start))
            start = chosen.sample(start, n_steps=job.warmup)
            before = calls
            z = chosen.sample(start, n_steps=job.draws, return_trajectory=True).numpy()
        sampling = (calls - before) * job.chains
        return Run(z, spent.wall, spent.cpu, calls * job.chains, sampling, 0)

    return Prepared(run, 0.0)


def prepare_ebmkit(target: Target, job: Job) -> Prepared:
    """ebmkit's NUTS (lock-step, one step size, no mass matrix), or its MALA with a diagonal one.

    Both warm up by themselves. MALA's transition is small: 16 make a draw, and a step of warm-up.
    """
    from ebm.samplers import NUTS, AdaptiveMALA

    counted = Counted(target.torch_potential())

    def nuts(start: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        sampler = NUTS(warmup=job.warmup)
        start = sampler.sample(counted, start, steps=0)  # warm-up alone
        before, sampler.warmup = counted.positions, 0
        z = sampler.sample(counted, start, steps=job.draws, return_trajectory=True)
        return z[1:], counted.positions - before, sampler.divergences

    def mala(start: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        # ``warmup`` is the length of each of two windows.
        sampler = AdaptiveMALA(0.01, warmup=job.warmup * TRANSITIONS // 2, precondition=True)
        z = sampler.sample(counted, start, steps=job.draws * TRANSITIONS, return_trajectory=True)
        return z[TRANSITIONS::TRANSITIONS], 2 * len(start) * job.draws * TRANSITIONS, 0

    def run(seed: int) -> Run:
        counted.positions = 0
        torch.manual_seed(seed)
        start = torch.from_numpy(target.start(job.chains, seed, job.starts))
        with watch() as spent:
            z, sampling, divergences = {"NUTS": nuts, "MALA": mala}[job.kernel](start)
            draws = z.transpose(0, 1).numpy()
        return Run(draws, spent.wall, spent.cpu, counted.positions, sampling, divergences)

    return Prepared(run, 0.0)
