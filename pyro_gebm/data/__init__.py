"""Data sets that need no download, tables and images from files, and endless batches of them."""

from pyro_gebm.data.curves import Curve, Projection
from pyro_gebm.data.digits import ImageData, load_digits
from pyro_gebm.data.image_files import ImageSet, read_images
from pyro_gebm.data.image_sets import IMAGE_SETS, load_image_set
from pyro_gebm.data.images import ImageLoader, scale_pixels
from pyro_gebm.data.loader import BatchLoader
from pyro_gebm.data.preprocessing import (
    PREPROCESSINGS,
    Prepared,
    Split,
    dequantized,
    drop_correlated,
    prepare,
    rounding_steps,
    split_rows,
)
from pyro_gebm.data.scaling import AffineMap, fit_standardization, fit_whitening
from pyro_gebm.data.tables import Table, read_table
from pyro_gebm.data.toys import sample_toy, toy_mode_std, toy_modes
from pyro_gebm.data.uci import UCI_NAMES, load_uci

__all__ = [
    "IMAGE_SETS",
    "PREPROCESSINGS",
    "UCI_NAMES",
    "AffineMap",
    "BatchLoader",
    "Curve",
    "ImageData",
    "ImageLoader",
    "ImageSet",
    "Prepared",
    "Projection",
    "Split",
    "Table",
    "dequantized",
    "drop_correlated",
    "fit_standardization",
    "fit_whitening",
    "load_digits",
    "load_image_set",
    "load_uci",
    "prepare",
    "read_images",
    "read_table",
    "rounding_steps",
    "sample_toy",
    "scale_pixels",
    "split_rows",
    "toy_mode_std",
    "toy_modes",
]
