"""Pictures: matplotlib figures from arrays, written to files; colours safe for the colour-blind.

Every function takes arrays or tensors and a ``path``, whose ending (.png, .pdf, .svg) says what
is written. Axes have their units, legends stand beside the data, and lines differ in more than
their colour, so that they can be told apart in grey.
"""

from pyro_gebm.plots.animation import animate_chains
from pyro_gebm.plots.curves import Curve, plot_curves
from pyro_gebm.plots.density import plot_manifold_density
from pyro_gebm.plots.latent import plot_latent_potential
from pyro_gebm.plots.modes import Occupancy, plot_mode_occupancy, plot_transition_matrix
from pyro_gebm.plots.samples import Shift, plot_energies, plot_image_shift, plot_scatter
from pyro_gebm.plots.style import COLOURS, DPI, GREY
from pyro_gebm.plots.training import plot_training

__all__ = [
    "COLOURS",
    "DPI",
    "GREY",
    "Curve",
    "Occupancy",
    "Shift",
    "animate_chains",
    "plot_curves",
    "plot_energies",
    "plot_image_shift",
    "plot_latent_potential",
    "plot_manifold_density",
    "plot_mode_occupancy",
    "plot_scatter",
    "plot_training",
    "plot_transition_matrix",
]
