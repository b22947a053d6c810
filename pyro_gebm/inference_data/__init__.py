"""From draws to ArviZ and back: the only room that imports it, for 0.23 and 1.x alike.

ArviZ 0.x calls its container ``InferenceData``; in 1.x it is xarray's ``DataTree``. Both
have the same groups here.
"""

from pyro_gebm.inference_data._arviz import InferenceData
from pyro_gebm.inference_data.abridge import abridged, every, stride
from pyro_gebm.inference_data.build import (
    SCHEMA_NAMES,
    Attribute,
    build,
    latent_names,
    names,
    sampling_state,
    subset,
    values,
)
from pyro_gebm.inference_data.diagnostics import (
    MOST_SUSPECTS,
    bfmi,
    ess,
    least_ess,
    nested_rhat,
    rhat,
    suspects,
    worst_rhat,
)
from pyro_gebm.inference_data.files import load, open_lazily, save
from pyro_gebm.inference_data.missing_mass import check_missing_mass
from pyro_gebm.inference_data.pictures import plot_autocorr, plot_energy, plot_rank, plot_trace
from pyro_gebm.inference_data.problems import RHAT_LIMIT, problems
from pyro_gebm.inference_data.store import Store, count_steps, finish, join, last_draw

__all__ = [
    "MOST_SUSPECTS",
    "RHAT_LIMIT",
    "SCHEMA_NAMES",
    "Attribute",
    "InferenceData",
    "Store",
    "abridged",
    "bfmi",
    "build",
    "check_missing_mass",
    "count_steps",
    "ess",
    "every",
    "finish",
    "join",
    "last_draw",
    "latent_names",
    "least_ess",
    "load",
    "names",
    "nested_rhat",
    "open_lazily",
    "plot_autocorr",
    "plot_energy",
    "plot_rank",
    "plot_trace",
    "problems",
    "rhat",
    "sampling_state",
    "save",
    "stride",
    "subset",
    "suspects",
    "values",
    "worst_rhat",
]
