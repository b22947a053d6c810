"""One of our kernels as a kernel of ``pyro.infer.MCMC``, which runs one chain."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer.mcmc import api
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_gebm._types import PotentialFn
from pyro_gebm.mcmc import Kernel, Moves, draw, warm_up
from pyro_gebm.model import GEBM
from pyro_gebm.sampling.build import build_target
from pyro_gebm.sampling.start import find_start
from pyro_gebm.sampling.target import quiet_model

Params = dict[str, Tensor]


def as_pyro_kernel(
    kernel: Kernel,
    model: GEBM | Callable[..., Any] | None = None,
    *,
    potential_fn: PotentialFn | None = None,
    beta: float = 1.0,
    target_accept_prob: float | None = None,
) -> "SingleChainKernel":
    """A kernel of ours for Pyro's own ``pyro.infer.MCMC``, with ``num_chains=1``.

    Pyro's MCMC asks for one draw of one chain at a time and cannot see a batch of chains, which
    is what our kernels are fast at: prefer ``pyro_gebm.MCMC``, which has the same methods.

    Args:
        kernel: such as ``NUTS()``.
        model: a ``GEBM``, or a Pyro model, called with the arguments of ``mcmc.run``.
        potential_fn: in place of ``model``: U, (C, D) -> (C,); ``MCMC`` then wants
            ``initial_params={"z": (D,)}``.
        beta: inverse temperature, as in ``sample``.
        target_accept_prob: as in ``sample``.

    Raises:
        ValueError: ``kernel`` is not one of ours, or has several levels; not exactly one of
            ``model`` and ``potential_fn``.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_gebm.mcmc import NUTS
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("y", dist.Normal(0.0, scale).expand([3]).to_event(1), obs=y)
        >>> mcmc = pyro.infer.MCMC(as_pyro_kernel(NUTS(), model), num_samples=20,
        ...                        warmup_steps=50, disable_progbar=True)
        >>> mcmc.run(torch.ones(3))
        >>> mcmc.get_samples()["scale"].shape
        torch.Size([20])
    """
    if not isinstance(kernel, Kernel):
        raise ValueError(f"kernel: expected a kernel of ours such as NUTS(); got {kernel!r}")
    if kernel.num_levels > 1:
        raise ValueError(f"kernel: {kernel.name} runs several chains at once; use pyro_gebm.MCMC")
    given = potential_fn if model is None else model
    if given is None or (model is not None and potential_fn is not None):
        raise ValueError(
            "model: expected one of model and potential_fn; got "
            f"model={model!r}, potential_fn={potential_fn!r}"
        )
    return SingleChainKernel(kernel, given, beta, target_accept_prob)


class SingleChainKernel(MCMCKernel):  # type: ignore[misc]  # Pyro is untyped
    """What ``as_pyro_kernel`` returns.

    Warm-up happens at once in ``setup``, before Pyro's bar moves; its warm-up draws then stand
    still. Parameters are values of the sites, not unconstrained ones. Seeded by torch's global
    generator, like Pyro's kernels.
    """

    def __init__(
        self,
        kernel: Kernel,
        model: GEBM | Callable[..., Any],
        beta: float,
        target_accept_prob: float | None,
    ) -> None:
        self.kernel = kernel
        self.model = None if isinstance(model, GEBM) else model
        self.transforms: dict[str, Any] = {}
        self._model = model
        self._beta = beta
        self._target_accept_prob = target_accept_prob
        self._params: Params | None = None
        self._diverging: list[bool] = []
        self._accept_prob: list[float] = []

    @property
    def initial_params(self) -> Params | None:
        """Values by site, where the chain starts; ``None``: drawn by ``setup``."""
        return self._params

    @initial_params.setter
    def initial_params(self, params: Params) -> None:
        self._params = params

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Find a start and warm up.

        Raises:
            ValueError: more than one chain; or as ``sample`` does of models and starts.
        """
        _refuse_many_chains()
        given = self._params and {name: value[None] for name, value in self._params.items()}
        with quiet_model(self._model):
            # Within a Gibbs sampler the model may change from one draw to the next.
            self._target = build_target(self._model, args, kwargs, beta=self._beta, recorded=False)
            start = find_start(self._target, given, 1)
        self._seed = int(torch.randint(2**31, ()))
        self._waiting = warmup_steps
        kernel = self.kernel.bind(self._target.reference)
        self._moves = Moves(kernel, self._target.potential_fn, self._target.reference)
        with self._quiet(start.device):
            self._warmed = warm_up(
                self._moves,
                start,
                warmup_steps,
                target_accept_prob=self._target_accept_prob,
                seed=self._seed,
            )
        self._params = self._sites()

    def sample(self, params: Params) -> Params:
        """The next draw; during warm-up, which is over, the one before."""
        if self._waiting:
            self._waiting -= 1
            return params
        position = self._warmed.position
        if params is not self._params:  # moved by someone else, as in a Gibbs sampler
            u = self._target.from_sites({name: value[None] for name, value in params.items()})
            position = position._replace(state=self.kernel.init(self._moves.potential_fn, u))
        with self._quiet(position.state.z.device):
            draws = draw(self._moves, self._warmed._replace(position=position), 1, seed=self._seed)
        self._warmed = self._warmed._replace(position=draws.last)
        self._diverging.append(bool(draws.info.diverging))
        self._accept_prob.append(float(draws.info.accept_prob))
        self._params = self._sites()
        return self._params

    def diagnostics(self) -> dict[str, Any]:
        """The draws that diverged, and the mean acceptance probability."""
        return {
            "divergences": [draw for draw, did in enumerate(self._diverging) if did],
            "acceptance rate": sum(self._accept_prob) / max(1, len(self._accept_prob)),
        }

    def logging(self) -> "OrderedDict[str, str]":
        """What Pyro's progress bar shows."""
        shown = OrderedDict([("step size", f"{float(self._warmed.tuning.step_size):.2e}")])
        if self._accept_prob:
            mean = sum(self._accept_prob) / len(self._accept_prob)
            shown["acc. prob"] = f"{mean:.3f}"
        return shown

    def cleanup(self) -> None:
        """Forget the run."""
        self._params = None
        self._diverging = []
        self._accept_prob = []

    @contextmanager
    def _quiet(self, device: torch.device) -> Iterator[None]:
        # Draws from a reference reseed the global generators.
        devices = [device] if device.type == "cuda" else []
        with quiet_model(self._model), torch.random.fork_rng(devices):
            yield

    def _sites(self) -> Params:
        with torch.no_grad():
            sites = self._target.to_sites(self._warmed.position.state.z)
        return {name: value[0] for name, value in sites.items()}


def _refuse_many_chains() -> None:
    """Raise ``ValueError`` within a run of Pyro's MCMC that has more than one chain.

    Pyro does not tell a kernel of the other chains; the callers know.
    """
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        caller = frame.f_locals.get("self")
        many = isinstance(caller, api.AbstractMCMC) and caller.num_chains > 1
        if many or isinstance(caller, api._Worker):
            raise ValueError(
                "num_chains: expected 1 in pyro.infer.MCMC, which cannot run our chains in a "
                "batch; use pyro_gebm.MCMC for more"
            )
