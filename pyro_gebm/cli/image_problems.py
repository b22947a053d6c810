"""Images as problems: a preset's set from a data root, or files of the user's own."""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_gebm._checks import check_choice
from pyro_gebm.cli.networks import Networks
from pyro_gebm.data import ImageSet, load_image_set, read_images, scale_pixels, split_rows
from pyro_gebm.nets import NetworkSpec
from pyro_gebm.presets import Preset, load_preset

DATA_ROOT = "PYRO_GEBM_DATA"
"""The environment's variable that names the data root."""
READING = ("size", "flip", "labels", "key")
"""Options of images from files."""
SHARE = 0.1
"""Of images from files, held out and tested on, each."""
MOST_TEST = 10_000
"""Test images that are read of a named set: the first ones."""
USUAL = "mnist-cpu"
"""The preset whose networks and settings images from files have, at their own size."""
_TEST_KEYS = {"train_images": "test_images", "x_train": "x_test"}


class ImageSource(NamedTuple):
    """Where images came from, as config.json has it, and how they are handed out."""

    plain: dict[str, Any]
    """For ``read_images_of``."""
    flip: bool
    batch_size: int


class ImageData(NamedTuple):
    """Images in parts: bytes (N, C, H, W), but held-out ones scaled, (N, C, H, W) in [-1, 1]."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    train_labels: Tensor | None
    test_labels: Tensor | None
    source: ImageSource


def data_root(given: str | None) -> str:
    """The data root as given, or of the environment.

    Raises:
        ValueError: neither names one.
    """
    root = given or os.environ.get(DATA_ROOT)
    if not root:
        raise ValueError(
            f"--data-root: expected the folder of image sets; got none; give it or set {DATA_ROOT}"
        )
    return str(Path(root).resolve())


def load_preset_images(
    preset: Preset, root: str, *, download: bool = False, training: bool = True
) -> ImageData:
    """The image set of a preset.

    Args:
        preset: names it.
        root: the data root.
        download: fetch what is missing.
        training: the training images are wanted; else they are left out where nothing will be
            learned from them, that is, where there are no labels.

    Raises:
        ValueError: the set is not there, is damaged, or its images are not the preset's.
    """
    named = {"root": root, "size": preset.size, "download": download, "progress": True}
    test = _load(preset.data, train=False, limit=MOST_TEST, **named)
    few = None if training or test.labels is not None else preset.held_out + 1
    train = _load(preset.data, train=True, limit=few, **named)
    kept = len(train.pixels) - preset.held_out
    if kept < 1 or tuple(train.pixels.shape[1:]) != preset.data_shape:
        raise ValueError(
            f"{root}: expected more than {preset.held_out:,} training images of shape "
            f"{preset.data_shape} for {preset.name}; got {len(train.pixels):,} of "
            f"{tuple(train.pixels.shape[1:])}"
        )
    return ImageData(
        train.pixels[:kept],
        scale_pixels(train.pixels[kept:]),
        test.pixels,
        None if train.labels is None else train.labels[:kept],
        test.labels,
        ImageSource(
            {"preset": preset.to_dict(), "data_root": root}, preset.flip, preset.batch_size
        ),
    )


def load_image_files(path: str, seed: int, options: Mapping[str, Any]) -> ImageData:
    """Images of a folder or a NumPy file, a tenth held out and a tenth (or its own part) to test.

    Args:
        path: folder, ``.npy`` or ``.npz``.
        seed: of the split.
        options: among ``READING``, and the images' "sha256" of an earlier run.

    Raises:
        ValueError: images are refused, or are others than those of the earlier run.
        OSError: the path cannot be read.
    """
    size, key = options.get("size"), options.get("key")
    found = read_images(path, size=size, key=key, progress=True)
    if options.get("labels") is False:
        found = found._replace(labels=None)
    digest = _digest(found)
    if options.get("sha256", digest) != digest:
        raise ValueError(
            f"{path}: expected the images that the run was trained on; got others, by their "
            "sha256; put the old ones back or train anew"
        )
    flip = check_choice("flip", options.get("flip", False), (False, True))
    own = _own_test(path, size, key, labelled=found.labels is not None)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(found.pixels))
    parts = split_rows(rows, test=SHARE, held_out=SHARE, generator=generator)
    learned = parts.train if own is None else torch.cat([parts.train, parts.test])
    test = own or ImageSet(found.pixels[parts.test], _of(found.labels, parts.test))
    source = ImageSource(
        {"images": {**options, "sha256": digest}},
        flip,
        min(load_preset(USUAL).batch_size, len(learned)),
    )
    return ImageData(
        found.pixels[learned],
        scale_pixels(found.pixels[parts.held_out]),
        test.pixels,
        _of(found.labels, learned),
        test.labels,
        source,
    )


def usual_networks(data_shape: tuple[int, ...]) -> Networks:
    """Those for images from files: those of ``USUAL``, at another size."""
    preset = load_preset(USUAL)
    shape = list(data_shape)
    generator, energy = preset.generator, preset.energy
    return Networks(
        preset.latent_dim,
        NetworkSpec(generator.name, {**generator.options, "data_shape": shape}),
        NetworkSpec(energy.name, {**energy.options, "data_shape": shape}),
    )


def read_images_of(
    config: Mapping[str, Any], root: str | None, *, training: bool
) -> tuple[ImageData, Preset | None]:
    """The images that a run's config.json names, and the preset if there is one.

    Args:
        config: with "preset" or "images".
        root: a data root in place of the run's own, which may be elsewhere on this machine.
        training: as in ``load_preset_images``.

    Raises:
        ValueError: they are not to be had, or are others.
    """
    if "images" in config:
        return load_image_files(config["data"], int(config["seed"]), config["images"]), None
    preset = Preset.from_dict(config["preset"])
    own = config.get("data_root")
    if root is None and own is not None and Path(own).is_dir():
        root = own
    return load_preset_images(preset, data_root(root), training=training), preset


def are_images(path: str, key: str | None = None) -> bool:
    """Whether a path is of images rather than of a table.

    A folder is. An array of a NumPy file is if it has 3 or 4 dimensions of bytes; with 1 or 2 it
    is a table.

    Args:
        path: folder or file.
        key: the array of an ``.npz`` that is meant.

    Raises:
        ValueError: an array is neither.
    """
    if Path(path).is_dir():
        return True
    found = _array_kinds(path)
    meant = {name: kind for name, kind in found.items() if key is None or name == key}
    images = [kind for kind in meant.values() if _is_image(*kind)]
    if images or not meant or any(len(shape) <= 2 for shape, _ in meant.values()):
        return bool(images)
    told = ", ".join(f"{dtype} of shape {shape}" for shape, dtype in meant.values())
    raise ValueError(
        f"{path}: expected a table (N, D) or images, uint8 of shape (N, H, W), (N, H, W, C) or "
        f"(N, C, H, W); got {told}"
    )


def _is_image(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return len(shape) in (3, 4) and dtype == np.uint8


def _array_kinds(path: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array of a NumPy file, from its header; none if there are none."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".npy":
            with Path(path).open("rb") as file:
                return {Path(path).stem: _header(file)}
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                found = {}
                for name in names:
                    with archive.open(name) as member:
                        found[name.removesuffix(".npy")] = _header(member)
                return found
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: cannot be read as NumPy's arrays: {error}") from error
    except (ValueError, EOFError):
        return {}  # the reader of tables says what is wrong
    return {}


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format
    shape, _, dtype = (
        read.read_array_header_1_0(file) if version == (1, 0) else read.read_array_header_2_0(file)
    )
    return tuple(shape), dtype


def _load(name: str, **named: Any) -> ImageSet:
    try:
        return load_image_set(name, **named)
    except ImportError as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        # On the command line it is an option.
        raise ValueError(
            str(error).replace("pass download=True to fetch it", "give --download to fetch it")
        ) from error


def _own_test(path: str, size: int | None, key: str | None, *, labelled: bool) -> ImageSet | None:
    """The test part that an archive has beside its training images."""
    names = _array_kinds(path)
    usual = ("images", *_TEST_KEYS)  # in the order in which they are looked for
    beside = _TEST_KEYS.get(key or next((name for name in usual if name in names), ""))
    if beside is None or beside not in names:
        return None
    labels = beside.replace("images", "labels").replace("x_", "y_")
    found = read_images(path, size=size, key=beside, labels_key=labels if labels in names else None)
    return found if labelled else found._replace(labels=None)


def _of(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if labels is None else labels[rows]


def _digest(images: ImageSet) -> str:
    digest = hashlib.sha256(str(tuple(images.pixels.shape)).encode())
    digest.update(images.pixels.numpy().data)
    if images.labels is not None:
        digest.update(images.labels.numpy().data)
    return digest.hexdigest()
