"""Data sets that need no download, and endless batches of them."""

from pyro_gebm.data.digits import ImageData, load_digits
from pyro_gebm.data.loader import BatchLoader
from pyro_gebm.data.toys import sample_toy, toy_mode_std, toy_modes

__all__ = ["BatchLoader", "ImageData", "load_digits", "sample_toy", "toy_mode_std", "toy_modes"]
