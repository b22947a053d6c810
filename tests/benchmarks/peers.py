"""The other libraries, each by its own recommended way to sample a potential."""

from typing import Any

import numpy as np
import torch
from jobs import Job, Prepared, Run, watch
from targets import Target


def prepare_pyro(target: Target, job: Job) -> Prepared:
    """Pyro's NUTS or HMC, chain after chain in this process, without its jit."""
    import pyro
    from pyro.infer import HMC, MCMC, NUTS

    potential = target.torch_potential()
    calls = 0

    def counted(params: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return potential(params["z"])

    def chain(start: torch.Tensor) -> tuple[np.ndarray, int, int]:
        kernel = {"NUTS": NUTS, "HMC": HMC}[job.kernel](potential_fn=counted)
        marks: list[int] = []
        mcmc = MCMC(
            kernel,
            job.draws,
            warmup_steps=job.warmup,
            initial_params={"z": start},
            disable_progbar=True,
            hook_fn=lambda _kernel, _params, stage, _i: (
                marks.append(calls) if "ample" in stage and not marks else None
            ),
        )
        mcmc.run()
        divergences = mcmc.diagnostics()["divergences"]["chain 0"]
        return mcmc.get_samples()["z"].numpy(), calls - marks[0], len(divergences)

    def run(seed: int) -> Run:
        nonlocal calls
        calls = 0
        pyro.set_rng_seed(seed)
        starts = torch.from_numpy(target.start(job.chains, seed, job.starts))
        with watch() as spent:
            chains = [chain(start) for start in starts]
        z, sampling, divergences = zip(*chains, strict=True)
        return Run(np.stack(z), spent.wall, spent.cpu, calls, sum(sampling), sum(divergences))

    return Prepared(run, 0.0)


def prepare_numpyro(target: Target, job: Job) -> Prepared:
    """NumPyro's NUTS with ``chain_method="vectorized"``.

    The whole run stands under one ``jax.jit``: called plainly, MCMC compiles anew at each run.
    """
    from numpyro.infer import MCMC, NUTS

    potential = target.jax_potential()
    told = ("num_steps", "diverging")

    def program(key: Any, start: Any) -> Any:
        mcmc = MCMC(
            NUTS(potential_fn=potential),
            num_warmup=job.warmup,
            num_samples=job.draws,
            num_chains=job.chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        # One chain is not batched by NumPyro, and starts from (D,).
        start = start if job.chains > 1 else start[0]
        mcmc.warmup(key, init_params=start, extra_fields=told, collect_warmup=True)
        warmup = mcmc.get_extra_fields()["num_steps"]
        mcmc.run(mcmc.post_warmup_state.rng_key, extra_fields=told)
        stats = mcmc.get_extra_fields()
        z = mcmc.get_samples(group_by_chain=True)
        return z, warmup.sum(), stats["num_steps"].sum(), stats["diverging"].sum()

    return _compile(program, target, job)


def prepare_blackjax(target: Target, job: Job) -> Prepared:
    """BlackJAX: NUTS with window adaptation under ``vmap``, or ChEES."""
    makers = {"NUTS": _blackjax_nuts, "ChEES": _blackjax_chees}
    return _compile(makers[job.kernel.split("+")[0]](target, job), target, job)


def _compile(program: Any, target: Target, job: Job) -> Prepared:
    """A runner of ``program``: key, starts -> draws, steps of warm-up and of sampling, divergences.

    It is compiled once, and apart, for the shapes of the job.
    """
    import jax

    def arguments(seed: int) -> tuple[Any, Any]:
        start = target.start(job.chains, seed, job.starts)
        return jax.random.PRNGKey(seed), jax.numpy.asarray(start)

    with watch() as compiling:
        compiled = jax.jit(program).lower(*arguments(0)).compile()

    def run(seed: int) -> Run:
        given = arguments(seed)
        with watch() as spent:
            z, warmup, steps, divergences = jax.block_until_ready(compiled(*given))
            z = np.asarray(z)
        total = int(warmup) + int(steps)
        return Run(z, spent.wall, spent.cpu, total, int(steps), int(divergences))

    return Prepared(run, compiling.wall)


def _blackjax_nuts(target: Target, job: Job) -> Any:
    import blackjax
    import jax

    potential = target.jax_potential()

    def log_density(z: Any) -> Any:
        return -potential(z)

    def chain(key: Any, start: Any) -> Any:
        warmup_key, key = jax.random.split(key)
        adaptation = blackjax.window_adaptation(
            blackjax.nuts, log_density, adaptation_info_fn=lambda _s, info, _a: _counts(info)
        )
        (state, parameters), (warmup, _) = adaptation.run(warmup_key, start, job.warmup)
        kernel = blackjax.nuts(log_density, **parameters)
        return warmup.sum(), _draw(kernel.step, state, jax.random.split(key, job.draws))

    def program(key: Any, start: Any) -> Any:
        keys = jax.random.split(key, job.chains)
        warmup, (z, (steps, divergences)) = jax.vmap(chain)(keys, start)
        return z, warmup.sum(), steps.sum(), divergences.sum()

    return program


def _blackjax_chees(target: Target, job: Job) -> Any:
    import blackjax
    import jax
    import optax

    potential = target.jax_potential()

    def log_density(z: Any) -> Any:
        return -potential(z)

    def program(key: Any, start: Any) -> Any:
        warmup_key, key = jax.random.split(key)
        adaptation = blackjax.chees_adaptation(
            log_density,
            job.chains,
            adaptation_info_fn=lambda _s, info, _a: _counts(info),
            mass_matrix_estimation="diagonal",  # as all the others adapt one
        )
        (states, parameters), info = adaptation.run(
            warmup_key, start, 0.1, optax.adam(0.05), job.warmup, max_sampling_steps=job.draws
        )
        warmup, _ = info._wrapped_info
        kernel = blackjax.dynamic_hmc(log_density, **parameters)
        keys = jax.random.split(key, (job.chains, job.draws))
        z, (steps, divergences) = jax.vmap(lambda s, k: _draw(kernel.step, s, k))(states, keys)
        return z, warmup.sum(), steps.sum(), divergences.sum()

    return program


def _counts(info: Any) -> tuple[Any, Any]:
    return info.num_integration_steps, info.is_divergent


def _draw(step: Any, state: Any, keys: Any) -> Any:
    import jax

    def one(state: Any, key: Any) -> Any:
        state, info = step(key, state)
        return state, (state.position, _counts(info))

    return jax.lax.scan(one, state, keys)[1]
