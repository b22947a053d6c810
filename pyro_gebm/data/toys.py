"""Two-dimensional toy distributions, a few units wide, with what is known about them.

Small networks learn coarse shapes first: at unit scale the finest of these would escape them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_gebm._checks import check_choice, check_count

_MODE_STD = {"gaussians8": 0.3, "gaussians25": 0.15}
_MOONS_SCALE = 3.0
_MOONS_STD = 0.3
_ROLL_STD = 0.15
_ROLL_SCALE = 2.5  # brings the outer turn to a radius of 5.7


def sample_toy(name: str, num_samples: int, *, generator: torch.Generator) -> Tensor:
    """Draw independent samples of a toy distribution, in the default dtype.

    * ``gaussians8``: equal mixture of N(m_k, 0.3² I), m_k = 4 (cos kπ/4, sin kπ/4), k = 0..7.
    * ``gaussians25``: equal mixture of N(m_k, 0.15² I), m_k = 2 (i, j) with i, j = -2..2.
    * ``moons``: t ~ U(0, π); with probability 1/2 each 3 (cos t - 1/2, sin t - 1/4) or
      its negative; plus N(0, 0.3² I). Mean zero.
    * ``swissroll``: t ~ U(3π/2, 9π/2); t (cos t, sin t)/2.5 plus N(0, 0.15² I).

    Args:
        name: one of the four names.
        num_samples: N >= 1.
        generator: source of all randomness; the samples are on its device.

    Returns:
        Samples (N, 2).

    Raises:
        ValueError: if the name is unknown or ``num_samples`` is not a whole number >= 1.

    Example:
        >>> import torch
        >>> sample_toy("moons", 5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2])
    """
    check_choice("name", name, _TOYS)
    check_count("num_samples", num_samples)
    return _TOYS[name](num_samples, generator)


def toy_modes(name: str) -> Tensor:
    """Means m_k of a Gaussian mixture of ``sample_toy``, in the default dtype.

    Args:
        name: ``gaussians8`` or ``gaussians25``.

    Returns:
        Means (K, 2), each with mass 1/K.

    Raises:
        ValueError: for any other name.

    Example:
        >>> toy_modes("gaussians25").shape
        torch.Size([25, 2])
    """
    check_choice("name", name, _MODE_STD)
    if name == "gaussians8":
        angle = torch.arange(8) * (math.pi / 4)
        return 4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    line = 2.0 * torch.arange(-2, 3)
    return torch.cartesian_prod(line, line)


def toy_mode_std(name: str) -> float:
    """Return the standard deviation of every coordinate within one mode of a Gaussian mixture.

    Args:
        name: ``gaussians8`` or ``gaussians25``.

    Returns:
        The standard deviation.

    Raises:
        ValueError: for any other name.

    Example:
        >>> toy_mode_std("gaussians8")
        0.3
    """
    check_choice("name", name, _MODE_STD)
    return _MODE_STD[name]


def _normal(num_samples: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num_samples, 2, generator=generator, device=generator.device)


def _uniform(num_samples: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    unit = torch.rand(num_samples, generator=generator, device=generator.device)
    return low + (high - low) * unit


def _mixture(name: str) -> Callable[[int, torch.Generator], Tensor]:
    def draw(num_samples: int, generator: torch.Generator) -> Tensor:
        modes = toy_modes(name).to(generator.device)
        chosen = torch.randint(
            len(modes), (num_samples,), generator=generator, device=generator.device
        )
        return modes[chosen] + _MODE_STD[name] * _normal(num_samples, generator)

    return draw


def _moons(num_samples: int, generator: torch.Generator) -> Tensor:
    t = _uniform(num_samples, 0.0, math.pi, generator)
    lower = _uniform(num_samples, 0.0, 1.0, generator) < 0.5
    # The lower moon is the upper one turned by π about (1/2, 1/4): centred, a change of sign.
    upper = _MOONS_SCALE * torch.stack([t.cos() - 0.5, t.sin() - 0.25], dim=1)
    return torch.where(lower[:, None], -upper, upper) + _MOONS_STD * _normal(num_samples, generator)


def _swissroll(num_samples: int, generator: torch.Generator) -> Tensor:
    t = _uniform(num_samples, 1.5 * math.pi, 4.5 * math.pi, generator)
    curve = t[:, None] * torch.stack([t.cos(), t.sin()], dim=1) / _ROLL_SCALE
    return curve + _ROLL_STD * _normal(num_samples, generator)


_TOYS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "gaussians8": _mixture("gaussians8"),
    "gaussians25": _mixture("gaussians25"),
    "moons": _moons,
    "swissroll": _swissroll,
}
