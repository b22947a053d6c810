"""Named trainings: which data, which networks, which settings."""

from pyro_gebm.presets.named import PRESETS, load_preset
from pyro_gebm.presets.preset import Preset

__all__ = ["PRESETS", "Preset", "load_preset"]
