"""Images from files: folders of pictures, and NumPy arrays."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pyro_gebm._checks import check_choice, check_count

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LAYOUTS = ("NHWC", "NCHW", "NHW")
_MODES = {1: "L", 3: "RGB"}
_GREY = frozenset({"1", "L"})
_DEEP = ("I", "F")  # and I;16 and its kin: more than 8 bits a channel
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, zlib.error, zipfile.BadZipFile, KeyError)


class ImageSet(NamedTuple):
    """Images as bytes, and their classes where they have some."""

    pixels: Tensor
    """(N, 1 or 3, H, W), uint8, 0 black to 255 white."""
    labels: Tensor | None
    """(N,), int64, or ``None``."""


def read_images(
    path: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    key: str | None = None,
    labels_key: str | None = None,
    layout: str | None = None,
    progress: bool = False,
) -> ImageSet:
    """Read images of one size into memory as bytes: a folder of pictures, ``.npy`` or ``.npz``.

    A folder is searched through all its subfolders, in alphabetical order; hidden files and those
    without a picture's suffix are passed over. If all lie in subfolders, two at least, these are
    the classes. Photographs are turned as their EXIF says. A file that cannot be read, or has
    transparent pixels or more than 8 bits a channel, is refused by name.

    Args:
        path: folder or file.
        size: side of square images in pixels: a picture's shorter side is resized to it, and the
            middle of the longer one is kept. ``None`` takes images as they are.
        channels: 1 (grey) or 3 (RGB), to which pictures are converted; ``None`` takes those of
            the first, and refuses colour behind grey. Arrays are as they are.
        key: name of the array in an ``.npz``; ``None`` for the one that can be images, or
            ``images``, ``train_images`` or ``x_train`` of several.
        labels_key: name of the array of labels (N,); ``None`` for ``labels``, ``train_labels``
            or ``y_train`` beside the images of that name, if it is there.
        layout: "NHWC", "NCHW" or "NHW" (grey); ``None`` finds it by the 1 or 3 channels.
        progress: show a progress bar.

    Returns:
        ``ImageSet``.

    Raises:
        ValueError: there are no images, or one is corrupt or does not fit the others; the message
            is a line with the file's name.
        OSError: the path cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder) / "grey.npz", images=np.zeros((5, 8, 8), np.uint8))
        ...     read_images(Path(folder) / "grey.npz").pixels.shape
        torch.Size([5, 1, 8, 8])
    """
    source = Path(path)
    if size is not None:
        check_count("size", size)
    if channels is not None:
        check_choice("channels", channels, (1, 3))
    if layout is not None:
        check_choice("layout", layout, LAYOUTS)
    if source.is_dir():
        return _read_folder(source, size, channels, progress)
    if source.suffix.lower() not in {".npy", ".npz"}:
        raise ValueError(
            f"{source}: expected a folder of pictures, .npy or .npz; got "
            + ("a file of another kind" if source.exists() else "nothing of this name")
        )
    array, labels = _read_arrays(source, key, labels_key)
    pixels = _channels_first(source, array, layout)
    pixels = resized(pixels, size, progress)
    return ImageSet(pixels, _check_labels(source, labels, len(pixels)))


def resized(pixels: Tensor, size: int | None, progress: bool = False) -> Tensor:
    """Square images (N, C, size, size) from bytes (N, 1 or 3, H, W), as ``fit_picture`` does it.

    What has that size already, or is to have none, stays as it is.
    """
    if size is None or pixels.shape[2:] == (size, size):
        return pixels
    from PIL import Image

    out = torch.empty(len(pixels), pixels.shape[1], size, size, dtype=torch.uint8)
    for place, image in enumerate(tqdm(pixels, desc="resize", disable=not progress)):
        array = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array if array.shape[2] == 3 else array[..., 0])
        out[place] = as_pixels(fit_picture(picture, size))
    return out


def fit_picture(picture: "Image", size: int) -> "Image":
    """A square of ``size`` pixels: the shorter side resized to it, the middle of the longer one."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)


def as_pixels(picture: "Image") -> Tensor:
    """Bytes (C, H, W) of a picture of mode L or RGB."""
    array = np.array(picture, dtype=np.uint8)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def _read_folder(folder: Path, size: int | None, channels: int | None, progress: bool) -> ImageSet:
    files = sorted(
        file.relative_to(folder)
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise ValueError(f"{folder}: expected pictures (.png, .jpg, .webp, ...) in it; got none")
    pixels: Tensor | None = None
    for place, file in enumerate(tqdm(files, desc="images", disable=not progress)):
        image = _read_picture(folder / file, size, channels)
        if pixels is None:
            pixels, channels = image.new_empty(len(files), *image.shape), len(image)
        if image.shape != pixels.shape[1:]:
            raise ValueError(
                f"{folder / file}: expected {_told(pixels[0])} as {files[0]}; got {_told(image)}; "
                "give size= to resize all of them"
            )
        pixels[place] = image
    assert pixels is not None
    return ImageSet(pixels, _classes(files))


def _told(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]} pixels"


def _classes(files: Sequence[Path]) -> Tensor | None:
    """The number of each file's subfolder, where they are classes."""
    names = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    if len(names) < 2 or any(len(file.parts) == 1 for file in files):
        return None
    return torch.tensor([names.index(file.parts[0]) for file in files])


def _read_picture(file: Path, size: int | None, channels: int | None) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: cannot be read as a picture: {in_a_line(error)}") from error
    if picture.mode.startswith(_DEEP):
        raise ValueError(
            f"{file}: expected 8 bits a channel; got mode {picture.mode}; convert it first"
        )
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError(
            f"{file}: expected opaque pixels; got transparent ones; put it on a ground"
        )
    grey = picture.mode.rstrip("Aa") in _GREY
    if channels == 1 and not grey:
        raise ValueError(
            f"{file}: expected grey, as asked for or as the first picture is; got mode "
            f"{picture.mode}; give channels=3 for colour"
        )
    picture = picture.convert(_MODES[channels or (1 if grey else 3)])
    return as_pixels(picture if size is None else fit_picture(picture, size))


def _read_arrays(
    file: Path, key: str | None, labels_key: str | None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The images and, if there are, the labels of a NumPy file."""
    try:
        opened = np.load(file, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            return opened, None
        with opened as archive:
            name = _pick_key(file, archive, key)
            wanted = labels_key or name.replace("images", "labels").replace("x_", "y_")
            if labels_key is not None and labels_key not in archive:
                raise _Refusal(f"labels_key: expected one of {_names(archive)}; got {labels_key!r}")
            found = wanted != name and wanted in archive
            return archive[name], archive[wanted] if found else None
    except FileNotFoundError:
        raise
    except _Refusal as refusal:
        raise ValueError(f"{file}: {refusal}") from None
    except _UNREADABLE as error:
        raise ValueError(f"{file}: cannot be read as NumPy's arrays: {in_a_line(error)}") from error


class _Refusal(Exception):  # noqa: N818  # no error of the file's, which are caught beside it
    """What is wrong with a readable archive."""


def _names(archive: Any) -> str:
    return ", ".join(archive.files) or "no arrays"


def _pick_key(file: Path, archive: Any, key: str | None) -> str:
    names = list(archive.files)
    if key is not None:
        if key not in names:
            raise _Refusal(f"key: expected one of {_names(archive)}; got {key!r}")
        return key
    for usual in ("images", "train_images", "x_train"):
        if usual in names:
            return usual
    if len(names) != 1:
        raise _Refusal(f"expected one array, or key= to name the images of {_names(archive)}")
    return str(names[0])


def _channels_first(file: Path, array: NDArray[Any], layout: str | None) -> Tensor:
    """Images in any layout as bytes (N, C, H, W)."""
    if array.dtype != np.uint8:
        raise ValueError(
            f"{file}: expected pixels as uint8, 0 to 255; got {array.dtype}; scale, round and "
            "convert them first"
        )
    layout = layout or _find_layout(file, array)
    if array.ndim != len(layout) or 0 in array.shape:
        raise ValueError(f"{file}: expected images {layout}; got shape {array.shape}")
    if layout == "NHW":
        array = array[:, None]
    elif layout == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in _MODES:
        raise ValueError(f"{file}: expected 1 or 3 channels; got {array.shape[1]}")
    return torch.from_numpy(np.ascontiguousarray(array))


def _find_layout(file: Path, array: NDArray[Any]) -> str:
    if array.ndim == 3:
        return "NHW"
    last = array.ndim == 4 and array.shape[3] in _MODES
    first = array.ndim == 4 and array.shape[1] in _MODES
    if last == first:
        raise ValueError(
            f"{file}: expected images (N, H, W, C), (N, C, H, W) or (N, H, W) with C 1 or 3; got "
            f"shape {array.shape}; give layout= if it is ambiguous"
        )
    return "NHWC" if last else "NCHW"


def _check_labels(file: Path, labels: NDArray[Any] | None, count: int) -> Tensor | None:
    if labels is None:
        return None
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{file}: expected integer labels ({count},), one for each image; got {labels.dtype} "
            f"of shape {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def in_a_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
