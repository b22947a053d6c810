"""The state of a run, as it travels in an InferenceData, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_gebm import inference_data
from pyro_gebm.inference_data.build import saved_settings
from pyro_gebm.mcmc import (
    KERNELS,
    GlobalMoves,
    Kernel,
    KernelState,
    Position,
    PyroKernel,
    Tuning,
    Warmed,
)
from pyro_gebm.sampling.ladder import TemperingChoice
from pyro_gebm.sampling.ready import Ready
from pyro_gebm.sampling.settings import Settings, kernel_name, kernel_settings
from pyro_gebm.sampling.target import Target

Arrays = dict[str, NDArray[Any]]
DEFAULT_CHAINS = 64


def save_state(position: Position, ready: Ready) -> Arrays:
    """Position, tuning, and what was chosen on the way."""
    tuning = ready.warmed.tuning
    fields = {
        **position.state._asdict(),
        "step": position.step,
        "transitions": position.transitions,
        "step_size": tuning.step_size,
        "inverse_mass_matrix": tuning.inverse_mass_matrix,
        "trajectory_length": tuning.trajectory_length,
        "curvature": tuning.curvature,
    }
    found = {name: field.cpu().numpy() for name, field in fields.items() if field is not None}
    if ready.global_moves is not None:
        moves = ready.global_moves
        found["global_moves"] = np.array([moves.num_proposals, moves.every])
    if ready.ladder is not None:
        found["ladder"] = np.array(ready.ladder)
    return found


def load_state(resume: Any, target: Target, settings: Settings) -> Ready:
    """The state that ``sample`` left in its result.

    Raises:
        ValueError: there is none, or it is of other settings or another model.
    """
    state = read_state(resume)
    was, seed = str(resume.attrs["kernel"]), int(resume.attrs["seed"])
    kernel, chains = kernel_name(settings.kernel), int(resume.attrs["num_chains"])
    if was != kernel or chains != settings.num_chains:
        raise ValueError(
            f"resume: expected a run of {kernel} with {settings.num_chains} chains; got one of "
            f"{was} with {chains}; give the settings of that run"
        )
    resumed = restore(state, None if target.like is None else target.like.device, seed)
    if not same_potential(resumed.warmed.position.state, target, chains):
        raise ValueError(
            "resume: expected the model, data and beta of that run; got a potential that differs "
            "where its chains stand"
        )
    _check_resumed(resume, settings, resumed)
    return resumed


def read_state(resume: Any) -> dict[str, Tensor]:
    """The arrays of ``save_state``, as tensors on the CPU.

    Raises:
        ValueError: there are none.
    """
    try:
        state: Mapping[str, Any] = inference_data.sampling_state(resume)
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            "resume: expected what sample() returned, with its group sampling_state; got "
            f"{type(resume).__name__} without it"
        ) from error
    return {name: torch.as_tensor(np.array(value)) for name, value in state.items()}


def same_potential(state: KernelState, target: Target, num_chains: int) -> bool:
    """Whether U is what it was; not so of another model, other data or another β."""
    z, then = state.z[-num_chains:], state.potential_energy[-num_chains:]
    with torch.no_grad():
        now = target.potential_fn(z)
    return torch.allclose(now, then, rtol=1e-4, atol=1e-4 * float(then.abs().max()))


def resumed_choices(
    resume: Any,
    kernel: str | Kernel | PyroKernel,
    num_chains: int,
    default_kernel: str = "auto",
    default_chains: int = DEFAULT_CHAINS,
) -> tuple[str | Kernel | PyroKernel, int]:
    """Kernel and number of chains: those of the run that is resumed where defaults were left."""
    attributes = getattr(resume, "attrs", {})
    was, chains = str(attributes.get("kernel")), attributes.get("num_chains")
    named = isinstance(kernel, str) and kernel.lower() in (default_kernel.lower(), was.lower())
    if named and was in KERNELS:
        kernel = KERNELS[was](**saved_settings(resume))
    if chains is not None and num_chains == default_chains:
        num_chains = int(chains)
    return kernel, num_chains


def _check_resumed(resume: Any, settings: Settings, resumed: Ready) -> None:
    """Refuse settings that contradict those of the run that is resumed."""
    kernel, moves = settings.kernel, settings.global_moves
    assert isinstance(kernel, Kernel)
    choices = settings.seed, kernel, settings.thinning, settings.tempering, moves
    check_same_run(resume, resumed, *choices)
    if moves is None and resumed.global_moves is not None:
        raise ValueError(
            f'global_moves: expected "auto" or {resumed.global_moves} as in the run that is '
            "resumed; got None; start a new run without"
        )
    if settings.include_warmup:
        raise ValueError("include_warmup: expected False with resume, which has no warm-up")


def check_same_run(
    resume: Any,
    resumed: Ready,
    seed: int | None,
    kernel: Kernel,
    thinning: int,
    tempering: TemperingChoice,
    global_moves: str | GlobalMoves | None,
) -> None:
    """Refuse what is given, and with which the draws would not be those that come next.

    Raises:
        ValueError: seed, settings of the kernel, thinning, ladder or global moves are others.
    """
    if seed not in (None, resumed.seed):
        raise ValueError(f"seed: expected None or {resumed.seed}, that of the run that is resumed")
    _check_crossing(tempering, global_moves, resumed)
    now = kernel_settings(kernel)
    for name, value in saved_settings(resume).items():
        if now.get(name) != value:
            raise ValueError(
                f"kernel: expected {name}={value!r} as in the run that is resumed; got "
                f"{now.get(name)!r}; leave the kernel out to take that run's"
            )
    if (before := int(resume.attrs.get("thinning", thinning))) != thinning:
        raise ValueError(
            f"thinning: expected {before} as in the run that is resumed; got {thinning}"
        )


def _check_crossing(
    tempering: TemperingChoice, global_moves: str | GlobalMoves | None, resumed: Ready
) -> None:
    ladder = resumed.ladder
    if tempering is not None and ladder is None:
        raise ValueError("tempering: expected None to resume a run without; start a new one")
    if ladder is not None and tempering not in (None, "auto", len(ladder) + 1, ladder):
        raise ValueError(
            f'tempering: expected None, "auto" or {(0.0, *ladder)} as in that run; got {tempering}'
        )
    if isinstance(global_moves, GlobalMoves) and global_moves != resumed.global_moves:
        raise ValueError(f"global_moves: expected {resumed.global_moves} as in that run")


def restore(state: Mapping[str, Tensor], device: torch.device | None, seed: int) -> Ready:
    """What ``save_state`` has saved, on a device."""
    moved = {name: field.to(device) for name, field in state.items()}
    length = moved.get("trajectory_length")
    tuning = Tuning(
        moved["step_size"], moved["inverse_mass_matrix"], length, moved.get("curvature")
    )
    kernel_state = KernelState(
        moved["z"], moved["potential_energy"], moved["z_grad"], moved.get("momentum")
    )
    step = moved["step"]
    # Runs of before 2026-11-27 have none: their global moves go on with others.
    made = moved.get("transitions", step)
    moves = state.get("global_moves")
    ladder = state.get("ladder")
    return Ready(
        Warmed(Position(kernel_state, step, made), tuning, torch.zeros_like(step)),
        seed,
        None if moves is None else GlobalMoves(num_proposals=int(moves[0]), every=int(moves[1])),
        None if ladder is None else tuple(ladder.tolist()),
    )
