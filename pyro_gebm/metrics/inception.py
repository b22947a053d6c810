"""Inception features by pytorch-fid's network and weights, and what may be called FID."""

import hashlib
import importlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from pyro_gebm.metrics.features import FeatureExtractor, FeatureProtocol

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"
)
_SLACK = 1e-4  # rounding beyond [-1, 1]: far below half of one of 255 levels
_ONE_AT_A_TIME = Lock()


def inception_features(
    weights: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str = "cpu",
    grey: bool = False,
    eight_bits: bool = True,
    sha256: str | None = INCEPTION_SHA256,
) -> FeatureExtractor:
    """Final average pooling (2048) of pytorch-fid's InceptionV3: the feature space of FID.

    Images are rounded to 8 bits, as files are; scaled to [0, 1]; and resized to 299 x 299 by
    pytorch-fid itself, bilinear without antialiasing (Heusel et al., 2017; Seitzer's port of the
    TensorFlow network). About 0.4 s an image on one CPU core. The global RNG is not touched.

    Args:
        weights: the file of weights; by default ``pt_inception-2015-12-05-6726825d.pth`` in
            ``torch.hub.get_dir()``/checkpoints, where pytorch-fid puts it. Nothing is downloaded.
        device: where the network works.
        grey: images have one channel, which is repeated to three, as pytorch-fid does with files.
        eight_bits: round to the 256 levels of a file. Without it the score is not called FID.
        sha256: hash that the file must have, in hexadecimal; None: do not check. Weights other
            than the published ones do not give FID.

    Returns:
        A ``FeatureExtractor`` for images (N, 3, H, W) in [-1, 1] ((N, 1, H, W) if ``grey``), of
        any floating-point dtype; features (N, 2048), float32. It raises ``ValueError`` for images
        of another shape, dtype or range.

    Raises:
        FileNotFoundError: if the file is absent; the message names it, its folder and where to
            get it.
        ImportError: if pytorch-fid is not installed or cannot be imported.
        ValueError: if the file has another hash, or does not hold this network's weights.

    Example:
        >>> real = inception_features("weights.pth")
        Traceback (most recent call last):
        FileNotFoundError: ...weights.pth...
    """
    path = _default_weights() if weights is None else Path(weights)
    data, digest = _read(path, sha256)
    network = _network(path, _state_dict(path, data)).to(device)
    protocol = _protocol(digest, eight_bits)

    def features(x: Tensor) -> Tensor:
        unit = (_checked_images(x, 1 if grey else 3).float() + 1) / 2
        if eight_bits:
            unit = (unit * 255).round() / 255
        pooled: Tensor = network(unit.expand(-1, 3, -1, -1))[0]
        return pooled.flatten(1)

    return FeatureExtractor("Inception", protocol, features, torch.device(device))


def score_name(extractor: FeatureExtractor) -> str:
    """What a Fréchet distance in these features is called.

    Args:
        extractor: the feature space.

    Returns:
        "FID" for Inception features with the published weights at the standard protocol, else
        "Fréchet distance (<name>)".

    Example:
        >>> from pyro_gebm.metrics.features import identity_features
        >>> score_name(identity_features())
        'Fréchet distance (identity)'
    """
    if extractor.protocol == _protocol(INCEPTION_SHA256, eight_bits=True):
        return "FID"
    return f"Fréchet distance ({extractor.name})"


def _protocol(digest: str, eight_bits: bool) -> FeatureProtocol:
    return {
        "network": "pytorch-fid InceptionV3",
        "weights_sha256": digest,
        "layer": "pool3 (2048)",
        "resize": "299 x 299, bilinear, align_corners=False, no antialiasing",
        "input": "[-1, 1], rounded to 8 bits" if eight_bits else "[-1, 1], not rounded",
    }


def _default_weights() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def _read(path: Path, sha256: str | None) -> tuple[bytes, str]:
    """Bytes of the file and their hash, which is that of ``sha256`` if given."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"inception_features: expected the weights {path.name} in the folder {path.parent}; "
            f"got no such file; fetch {INCEPTION_URL} and put it there, or name another place "
            f"with weights="
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(
            f"{path}: expected a file of sha256 {sha256}; got {digest}; it is damaged or another "
            f"file: fetch {INCEPTION_URL} anew"
        )
    return data, digest


def _state_dict(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        loaded: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: expected a state dict of tensors; got {error}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path}: expected a state dict of tensors; got {type(loaded).__name__}")
    return loaded


def _network(path: Path, state: Mapping[str, Any]) -> nn.Module:
    """pytorch-fid's network with these weights, frozen and in eval mode."""
    room: Any  # pytorch-fid has no types
    try:
        room = importlib.import_module("pytorch_fid.inception")
    except (ImportError, RuntimeError) as error:  # torchvision of another torch: RuntimeError
        raise ImportError(
            f"inception_features: expected pytorch-fid; got {error!r}; pip install "
            f"'pyro-gebm[images]'"
        ) from error
    # The constructor fetches its weights through this name and no argument tells it otherwise.
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        fetch = room.load_state_dict_from_url
        room.load_state_dict_from_url = lambda *_, **__: state
        try:
            network: nn.Module = room.InceptionV3()
        except RuntimeError as error:
            raise ValueError(f"{path}: expected weights of InceptionV3; got {error}") from error
        finally:
            room.load_state_dict_from_url = fetch
    return network.eval().requires_grad_(False)


def _checked_images(x: Tensor, channels: int) -> Tensor:
    if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
        raise ValueError(
            f"inception_features: expected floating-point images (N, {channels}, H, W); got "
            f"{x.dtype} of shape {tuple(x.shape)}; grey=True takes images of one channel"
        )
    low, high = (float(bound) for bound in x.aminmax())
    if not (low >= -1 - _SLACK and high <= 1 + _SLACK):  # refuses NaN too
        raise ValueError(
            f"inception_features: expected images in [-1, 1]; got {low:.6g}..{high:.6g}; rescale "
            f"or clamp them"
        )
    return x
