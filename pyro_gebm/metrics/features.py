"""Feature spaces for scores, what makes two of them comparable, and statistics kept in files."""

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from pyro_gebm._checks import check_count
from pyro_gebm._files import write_whole
from pyro_gebm.metrics.classifier import Classifier
from pyro_gebm.metrics.moments import FeatureStatistics, StatisticsStream

FeatureProtocol: TypeAlias = dict[str, str | int | float]
"""What two statistics must share to be comparable: network, weights, layer, resizing, input."""


@final
@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A feature space: maps data to vectors, and says how.

    Args:
        name: for titles, such as "classifier".
        protocol: all that two statistics must share to be comparable; kept beside saved ones.
        feature_fn: data (B, ...) -> features (B, K), row by row: no row may depend on the others
            of its batch, so a network must be in eval mode.
        device: where ``feature_fn`` computes; None: where the data lie.

    Raises:
        ValueError: if the name or protocol is empty, or a value in it is not a str, int or finite
            float.

    Example:
        >>> import torch
        >>> mean = FeatureExtractor("mean", {"network": "mean"}, lambda x: x.mean(1, keepdim=True))
        >>> mean.embed(torch.tensor([[0.0, 2.0], [4.0, 4.0]]))
        tensor([[1.],
                [4.]])
    """

    name: str
    protocol: FeatureProtocol
    feature_fn: Callable[[Tensor], Tensor]
    device: torch.device | None = None

    def __post_init__(self) -> None:
        _check_protocol(self.name, self.protocol)

    def embed(self, x: Tensor, *, batch_size: int = 128, progress: bool = False) -> Tensor:
        """Features of data (N, ...), batch by batch and without gradient.

        Args:
            x: data (N, ...), N >= 1; may lie on another device than the network.
            batch_size: data at a time.
            progress: show a progress bar.

        Returns:
            Features (N, K), on the device that computes them.

        Raises:
            ValueError: if there are no data, or ``feature_fn`` does not give (B, K).
        """
        return torch.cat(list(self._batches(x, batch_size, progress)))

    def statistics(
        self, x: Tensor, *, batch_size: int = 128, progress: bool = False
    ) -> FeatureStatistics:
        """Statistics of the features of data (N, ...), N >= 2, without holding the features.

        The same as ``feature_statistics(self.embed(x))`` up to rounding. For data that arrive in
        batches, ``update`` a ``StatisticsStream`` with ``embed`` of each.

        Raises:
            ValueError: if ``embed`` refuses, a feature is not finite, or there are fewer than two.
        """
        stream = StatisticsStream()
        for features in self._batches(x, batch_size, progress):
            stream.update(features)
        return stream.statistics()

    def _batches(self, x: Tensor, batch_size: int, progress: bool) -> Iterator[Tensor]:
        check_count("batch_size", batch_size)
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"x: expected data (N, ...), N >= 1; got shape {tuple(x.shape)}")
        for batch in tqdm(torch.split(x, batch_size), desc=self.name, disable=not progress):
            with torch.no_grad():  # here, not around the yield, where it would leak to the caller
                features = self.feature_fn(batch.to(self.device or batch.device))
            if features.ndim != 2 or len(features) != len(batch):
                raise ValueError(
                    f"feature_fn of {self.name}: expected features ({len(batch)}, K) of a batch "
                    f"{tuple(batch.shape)}; got {tuple(features.shape)}; flatten them"
                )
            yield features


def identity_features() -> FeatureExtractor:
    """The data themselves, flattened to (N, d): for vectors and small images.

    Example:
        >>> import torch
        >>> identity_features().embed(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 64])
    """
    protocol: FeatureProtocol = {"network": "identity", "layer": "input, flattened"}
    return FeatureExtractor("identity", protocol, lambda x: x.flatten(1) if x.ndim > 1 else x)


def classifier_features(classifier: Classifier) -> FeatureExtractor:
    """The penultimate layer of a ``Classifier``, known by the hash of its weights.

    Args:
        classifier: from ``train_classifier``, on the device it is to work on.

    Returns:
        A ``FeatureExtractor`` named "classifier", whose protocol holds ``weights_sha256``.

    Example:
        >>> import torch
        >>> from pyro_gebm.metrics import train_classifier
        >>> images, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> extractor = classifier_features(train_classifier(images, labels, steps=1))
        >>> extractor.embed(images).shape
        torch.Size([2, 32])
    """
    protocol: FeatureProtocol = {
        "network": "pyro_gebm.metrics.Classifier",
        "weights_sha256": weights_sha256(classifier),
        "layer": "penultimate",
    }
    device = next(classifier.parameters()).device
    return FeatureExtractor("classifier", protocol, classifier.features, device)


def weights_sha256(network: nn.Module) -> str:
    """Hash of a network's parameters and buffers with their names, dtypes and shapes.

    It does not depend on the device. For the protocol of a ``FeatureExtractor`` of your own.

    Args:
        network: any module.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class StoredStatistics(NamedTuple):
    """What a statistics file holds.

    Attributes:
        statistics: mean and covariance; their count is None if the file does not say it.
        name: name of the feature extractor; None if the file does not say it.
        protocol: its protocol; None if the file does not say it, as published files do not.
    """

    statistics: FeatureStatistics
    name: str | None
    protocol: FeatureProtocol | None


def save_statistics(
    path: str | os.PathLike[str], statistics: FeatureStatistics, extractor: FeatureExtractor
) -> None:
    """Write statistics to an npz file with the protocol of their features inside.

    Arrays ``mu`` and ``sigma`` as pytorch-fid reads them, ``count`` where known, ``name``, and
    ``protocol`` as JSON; no pickle. An existing file is replaced in one step.

    Args:
        path: the file.
        statistics: of features of ``extractor``.
        extractor: whose name and protocol are stored.
    """
    arrays: dict[str, NDArray[np.generic]] = {
        "mu": statistics.mean.cpu().numpy(),
        "sigma": statistics.covariance.cpu().numpy(),
        "name": np.array(extractor.name),
        "protocol": np.array(json.dumps(extractor.protocol)),
    }
    if statistics.count is not None:
        arrays["count"] = np.array(statistics.count)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_whole(Path(path), buffer.getbuffer())


def load_statistics(
    path: str | os.PathLike[str], expected: FeatureExtractor | None = None
) -> StoredStatistics:
    """Read statistics from an npz file: ours, or a published one with only ``mu`` and ``sigma``.

    Args:
        path: the file.
        expected: refuse statistics of any other protocol than this extractor's. A published file
            states none and is refused too: if you know that it fits, read it without.

    Returns:
        ``StoredStatistics``, on the CPU in float64.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not such a file or is damaged, or its protocol is not the expected
            one; the message names both.

    Example:
        >>> import tempfile, torch
        >>> from pyro_gebm.metrics import feature_statistics
        >>> statistics = feature_statistics(torch.tensor([[0.0], [2.0]]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_statistics(f"{folder}/real.npz", statistics, identity_features())
        ...     load_statistics(f"{folder}/real.npz", identity_features()).statistics.count
        2
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        stored = _stored(arrays)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: expected an npz file with mu (K,) and sigma (K, K); got {error}"
        ) from error
    if expected is not None and stored.protocol != expected.protocol:
        theirs = "none" if stored.protocol is None else f"{stored.name} {stored.protocol}"
        raise ValueError(
            f"{path}: expected statistics of the protocol {expected.name} {expected.protocol}; "
            f"got {theirs}; compute them anew with this extractor"
        )
    return stored


def _stored(arrays: dict[str, NDArray[np.generic]]) -> StoredStatistics:
    mean, covariance = (torch.as_tensor(arrays[key].astype(np.float64)) for key in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"shapes {tuple(mean.shape)} and {tuple(covariance.shape)}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("numbers that are not finite")
    count = check_count("count", int(arrays["count"]), 2) if "count" in arrays else None
    statistics = FeatureStatistics(count, mean, covariance)
    if "protocol" not in arrays:
        return StoredStatistics(statistics, None, None)
    name, protocol = str(arrays["name"]), json.loads(str(arrays["protocol"]))
    _check_protocol(name, protocol)
    return StoredStatistics(statistics, name, protocol)


def _check_protocol(name: object, protocol: Any) -> None:
    """Refuse what JSON would not bring back as it was."""
    named = isinstance(name, str) and name != ""
    filled = isinstance(protocol, dict) and protocol != {}
    if not (named and filled and all(_is_plain(*item) for item in protocol.items())):
        raise ValueError(
            f"FeatureExtractor: expected a name and a protocol of str, int and finite float, not "
            f"empty; got {name!r} and {protocol!r}"
        )


def _is_plain(key: object, value: object) -> bool:
    plain = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(key, str) and plain and not isinstance(value, bool)
