"""``MCMC``: Pyro's interface to our batched chains."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro.infer
import torch
from pyro import poutine
from pyro.infer.mcmc.api import AbstractMCMC
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm._types import PotentialFn
from pyro_gebm.inference_data import InferenceData
from pyro_gebm.mcmc import Kernel, PyroKernel
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.sample import sample
from pyro_gebm.sampling.target import InitialParams

SETTINGS = ("beta", "thinning", "target_accept_prob", "global_moves", "tempering", "chunk_size")
"""What is handed on to ``sample`` as it comes."""


class Bound(NamedTuple):
    """What Pyro and ArviZ look up at ``mcmc.kernel``."""

    kernel: str | Kernel | PyroKernel
    model: Callable[..., Any] | None
    """``None`` for a GEBM and a potential: ArviZ would file their factors as data."""


class MCMC(pyro.infer.MCMC):  # type: ignore[misc]  # Pyro is untyped
    """``pyro.infer.MCMC`` with all chains in one batch: the same methods, our kernels.

    ``run`` calls ``pyro_gebm.sample`` and keeps its InferenceData as ``idata``; the methods
    read that. ``arviz.from_pyro`` sees every chain.

    Args:
        kernel: as in ``sample``: a name, a kernel of ours such as ``NUTS()``, or one of Pyro's.
        model: a ``GEBM``, or a Pyro model, called with the arguments of ``run``.
        num_samples: draws kept per chain.
        warmup_steps: transitions of warm-up; ``None`` lets ``sample`` choose.
        num_chains: chains C, of one batch and in this process.
        initial_params: where the chains start, as in ``sample``: values of the sites with
            chains first (not unconstrained ones, unlike ``pyro.infer.MCMC``).
        potential_fn: in place of ``model``: U, (C, D) -> (C,), together with
            ``initial_params`` (C, D); its site is called ``z``.
        seed: as in ``sample``; ``None`` takes one number from torch's global generator, so
            that ``pyro.set_rng_seed`` makes runs repeatable, too.
        disable_progbar: show no progress bar.
        **settings: ``beta``, ``thinning``, ``target_accept_prob``, ``global_moves``,
            ``tempering`` and ``chunk_size`` of ``sample``.

    Raises:
        ValueError: not exactly one of ``model`` and ``potential_fn``, a potential without
            starts, or an unknown setting.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)
        >>> mcmc = MCMC("NUTS", model, num_samples=50, num_chains=4, warmup_steps=100, seed=0,
        ...             disable_progbar=True)
        >>> mcmc.run(torch.ones(3))
        >>> mcmc.get_samples()["mean"].shape
        torch.Size([200])
        >>> mcmc.get_samples(group_by_chain=True)["mean"].shape
        torch.Size([4, 50])
    """

    def __init__(
        self,
        kernel: str | Kernel | PyroKernel = "auto",
        model: GEBM | Callable[..., Any] | None = None,
        *,
        num_samples: int = 1000,
        warmup_steps: int | None = None,
        num_chains: int = 64,
        initial_params: InitialParams = None,
        potential_fn: PotentialFn | None = None,
        seed: int | None = None,
        disable_progbar: bool = False,
        **settings: Any,
    ) -> None:
        _check(model, potential_fn, initial_params, settings)
        shown = None if isinstance(model, GEBM) else model
        # Not that of pyro.infer.MCMC, which starts processes.
        AbstractMCMC.__init__(self, Bound(kernel, shown), num_chains, transforms={})
        self.idata: InferenceData | None = None
        self.num_samples = num_samples
        self.warmup_steps = warmup_steps
        self._target: Any = potential_fn if model is None else model
        self._device = _device_of(model, initial_params)
        self._settings = {
            "kernel": kernel,
            "num_samples": num_samples,
            "warmup_steps": warmup_steps,
            "num_chains": num_chains,
            "initial_params": initial_params,
            "seed": seed,
            "progress": not disable_progbar,
            **settings,
        }
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Sample the posterior of ``model(*args, **kwargs)``.

        Raises:
            ValueError: as ``sample``.

        Warns:
            UserWarning: as ``sample``, of each problem that its diagnostics show.
        """
        # The model's own keywords may be called as settings of sample() are.
        target = partial(self._target, **kwargs) if kwargs else self._target
        with poutine.block():
            self.idata = sample(target, *args, **self._settings)
        self._args, self._kwargs = args, kwargs
        # Ctrl-C may have left fewer.
        self.num_chains, self.num_samples = self._statistic("diverging").shape
        self.warmup_steps = int(self.idata.attrs["tuning_steps"])

    @property
    def _samples(self) -> dict[str, Tensor]:
        """Draws by site, (C, S, ...): what the methods of ``pyro.infer.MCMC`` read."""
        found = self._found()
        device = self._device or _device_of(None, [*self._args, *self._kwargs.values()])
        return {
            name: torch.tensor(inference_data.values(found, name), device=device)
            for name in inference_data.latent_names(found)
        }

    @property
    def _diagnostics(self) -> list[dict[str, Any]]:
        """By chain: the draws that diverged, and the mean acceptance probability."""
        diverging, accept = self._statistic("diverging"), self._statistic("acceptance_rate")
        return [
            {"divergences": row.nonzero()[:, 0].tolist(), "acceptance rate": float(rate)}
            for row, rate in zip(diverging, accept.mean(1), strict=True)
        ]

    def diagnostics(self) -> dict[str, Any]:
        """``n_eff`` and ``r_hat`` by site; divergences and acceptance by chain.

        Numbers of chains are padded with zeros ("chain 03"), since ``arviz.from_pyro`` sorts
        their names.
        """
        found: dict[str, Any] = super().diagnostics()
        digits = len(str(self.num_chains - 1))
        for name in self._diagnostics[0]:
            rows = found[name].values()
            found[name] = {f"chain {i:0{digits}d}": row for i, row in enumerate(rows)}
        return found

    def _statistic(self, name: str) -> Tensor:
        return torch.as_tensor(inference_data.values(self._found(), name, "sample_stats"))

    def _found(self) -> InferenceData:
        if self.idata is None:
            raise RuntimeError("MCMC: there are no samples yet; call run() first")
        return self.idata


def _check(
    model: object, potential_fn: object, initial_params: object, settings: dict[str, Any]
) -> None:
    given = potential_fn if model is None else model
    if (model is None) == (potential_fn is None) or not callable(given):
        raise ValueError(
            "MCMC: expected one of model and potential_fn, something to call; got "
            f"model={model!r}, potential_fn={potential_fn!r}"
        )
    if potential_fn is not None and initial_params is None:
        raise ValueError("initial_params: expected starts (num_chains, D) with potential_fn")
    if unknown := sorted(settings.keys() - SETTINGS):
        raise ValueError(
            f"MCMC: expected further settings to be among {', '.join(SETTINGS)}; got "
            f"{', '.join(unknown)}; arguments of the model go to run()"
        )


def _device_of(model: object, values: Any) -> torch.device | None:
    """Where the samples belong: with the GEBM, or with the first tensor given."""
    if isinstance(model, GEBM):
        return model.base.latent_prior.like.device
    given = values.values() if isinstance(values, dict) else values
    tensors = [given] if isinstance(given, Tensor) else given or []
    return next((value.device for value in tensors if isinstance(value, Tensor)), None)
