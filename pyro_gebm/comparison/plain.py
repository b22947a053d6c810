"""The comparison as plain data, for JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_gebm.comparison.results import Comparison
from pyro_gebm.comparison.words import verdict


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """A comparison and its ``verdict`` as dicts, lists, text, numbers and ``None``.

    It is strict JSON: figures that are not finite (an interval over one seed, R-hat of a latent
    that never varies) become ``None``.

    Returns:
        ``{"verdict": ..., "protocol": ..., "base": ..., "floor": ..., "kernels": {name: ...}}``,
        with the names of the fields of ``Comparison``.
    """
    plain: dict[str, Any] = _plain(comparison)
    return {"verdict": verdict(comparison), **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
