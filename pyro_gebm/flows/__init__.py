"""Bases with a density: normalizing flows as generators, and what their density allows."""

from pyro_gebm.flows.adapters import PyroFlow, ZukoFlow
from pyro_gebm.flows.coupling import NSF, NVP
from pyro_gebm.flows.density import FreeEnergy, flow_base, log_prob
from pyro_gebm.flows.flow import Flow, Inverted

__all__ = [
    "NSF",
    "NVP",
    "Flow",
    "FreeEnergy",
    "Inverted",
    "PyroFlow",
    "ZukoFlow",
    "flow_base",
    "log_prob",
]
