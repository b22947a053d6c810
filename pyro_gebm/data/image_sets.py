"""Well-known sets of images from a data root, by torchvision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_choice, check_count
from pyro_gebm.data.image_files import (
    ImageSet,
    as_pixels,
    fit_picture,
    in_a_line,
    read_images,
    resized,
)

LSUN_CLASSES = (
    "bedroom", "bridge", "church_outdoor", "classroom", "conference_room", "dining_room",
    "kitchen", "living_room", "restaurant", "tower",
)  # fmt: skip
IMAGE_SETS = (
    "mnist", "fashion-mnist", "cifar10", "celeba", *(f"lsun-{name}" for name in LSUN_CLASSES)
)  # fmt: skip
_NATIVE = {"celeba": 64, **{f"lsun-{name}": 64 for name in LSUN_CLASSES}}
"""Sides to which sets of pictures of many sizes are brought, unless told otherwise."""


def load_image_set(
    name: str,
    root: str | Path,
    *,
    train: bool = True,
    size: int | None = None,
    limit: int | None = None,
    download: bool = False,
    progress: bool = False,
) -> ImageSet:
    """Load MNIST, Fashion-MNIST, CIFAR-10, CelebA or a class of LSUN as bytes.

    The files are those of torchvision under ``root`` (``MNIST/raw``, ``FashionMNIST/raw``,
    ``cifar-10-batches-py``, ``celeba``, ``<class>_train_lmdb``). For CIFAR-10 an archive
    ``cifar10.npz`` in ``root`` does as well, with ``train_images`` (50000, 32, 32, 3),
    ``train_labels`` and likewise ``test_...``.

    Args:
        name: mnist, fashion-mnist, cifar10, celeba, or lsun- with a class, such as lsun-bedroom.
        root: the data root.
        train: the training part; else the test part (of LSUN, the validation part).
        size: side in pixels, as in ``read_images``. ``None`` is 64 for CelebA and LSUN, whose
            pictures are not square, and the set's own for the others.
        limit: the first so many; LSUN has up to three million.
        download: fetch what is missing from the network (not LSUN, which torchvision does not).
        progress: show a progress bar.

    Returns:
        ``ImageSet``; labels are classes for the first three, ``None`` for the others.

    Raises:
        ValueError: the name is unknown, or the set is not there or damaged.
        ImportError: torchvision is missing or does not go with torch.
    """
    check_choice("name", name, IMAGE_SETS)
    for what, count in (("size", size), ("limit", limit)):
        if count is not None:
            check_count(what, count)
    size = _NATIVE.get(name) if size is None else size
    if name == "cifar10" and (Path(root) / "cifar10.npz").is_file():
        return _from_archive(Path(root) / "cifar10.npz", train, size, limit, progress)
    dataset = _open(name, Path(root), train, download)
    if name in _NATIVE:
        assert size is not None
        return ImageSet(_each(dataset, size, limit, name, Path(root), progress), None)
    pixels, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return _cut(ImageSet(pixels, labels.long()), size, limit, progress)


def _cut(images: ImageSet, size: int | None, limit: int | None, progress: bool) -> ImageSet:
    pixels, labels = resized(images.pixels[:limit], size, progress), images.labels
    return ImageSet(pixels, None if labels is None else labels[:limit])


def _from_archive(
    file: Path, train: bool, size: int | None, limit: int | None, progress: bool
) -> ImageSet:
    part = "train" if train else "test"
    found = read_images(file, key=f"{part}_images", labels_key=f"{part}_labels")
    return _cut(found, size, limit, progress)


def _open(name: str, root: Path, train: bool, download: bool) -> Any:
    """torchvision's data set."""
    make = _maker(name, train)
    try:
        return make(root, download)
    # torchvision raises whatever reading raised: assertions, pickles' and archives' own errors.
    except Exception as error:
        hint = "" if download or name.startswith("lsun") else "; pass download=True to fetch it"
        raise ValueError(
            f"{root}: expected {name} there, whole and as torchvision stores it; got: "
            f"{in_a_line(error)}{hint}"
        ) from error


def _maker(name: str, train: bool) -> Callable[[Path, bool], Any]:
    datasets = _torchvision()
    if name == "celeba":
        split = "train" if train else "test"
        return lambda root, download: datasets.CelebA(root, split=split, download=download)
    if name.startswith("lsun-"):
        part = f"{name.removeprefix('lsun-')}_{'train' if train else 'val'}"
        return lambda root, download: datasets.LSUN(str(root), classes=[part])
    kinds = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
    kind = getattr(datasets, kinds[name])
    return lambda root, download: kind(root, train=train, download=download)


def _torchvision() -> Any:
    try:
        from torchvision import datasets  # type: ignore[import-untyped]
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ImportError(
            "these data sets are read by torchvision, which is missing or does not go with torch "
            f"({error}); install both together: pip install 'pyro-gebm[images]'"
        ) from error
    return datasets


def _each(
    dataset: Any, size: int, limit: int | None, name: str, root: Path, progress: bool
) -> Tensor:
    """Pictures that are read one by one."""
    count = min(len(dataset), limit or len(dataset))
    pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for place in tqdm(range(count), desc=name, disable=not progress):
        try:
            picture = dataset[place][0]
            pixels[place] = as_pixels(fit_picture(picture.convert("RGB"), size))
        except Exception as error:  # as in _open
            file = f"{dataset.filename[place]}, " if name == "celeba" else ""
            raise ValueError(
                f"{root}: {name}: {file}number {place}: cannot be read: {in_a_line(error)}"
            ) from error
    return pixels
