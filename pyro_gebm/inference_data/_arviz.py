"""ArviZ, imported once: 0.23 and 1.x differ in little more than their container."""

import warnings
from typing import Any, TypeAlias

with warnings.catch_warnings():
    # 0.23 announces the refactoring of 1.0 on the first import of a day.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

__all__ = ["IS_ARVIZ_1", "InferenceData", "az"]

IS_ARVIZ_1 = int(az.__version__.split(".")[0]) >= 1

InferenceData: TypeAlias = Any
"""``arviz.InferenceData`` on ArviZ 0.23, ``xarray.DataTree`` on 1.x."""
