"""The 8 x 8 digits that ship with scikit-learn: images without a download."""

from typing import NamedTuple

import torch
from torch import Tensor


class ImageData(NamedTuple):
    """Images (N, channels, height, width) in [-1, 1] with integer labels (N,), in two parts."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> ImageData:
    """Load the 1,797 handwritten digits of scikit-learn (Alpaydin and Kaynak, UCI, 1998).

    Pixels 0..16 are mapped linearly to [-1, 1]. The split is 70/30, stratified by digit and always
    the same (seed 0).

    Returns:
        ``ImageData`` with images (1257, 1, 8, 8) and (540, 1, 8, 8) in float32, labels 0..9 in
        int64.

    Example:
        >>> load_digits().train_images.shape
        torch.Size([1257, 1, 8, 8])
    """
    from sklearn import datasets, model_selection  # slow to import; only this function needs it

    digits = datasets.load_digits()
    train, test = model_selection.train_test_split(
        range(len(digits.target)), test_size=0.3, random_state=0, stratify=digits.target
    )
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target, dtype=torch.int64)
    return ImageData(images[train], labels[train], images[test], labels[test])
