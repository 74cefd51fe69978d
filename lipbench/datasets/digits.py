"""The 8x8 digits that scikit-learn ships."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lipbench.dataset import DataMissing, Dataset, Raw

_SHA256 = "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"
_TEST_SIZE = 360


@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """1,797 real handwritten digits of 8x8 pixels, installed with scikit-learn: no download.

    The last 360 of a fixed shuffle are the test set; the published set has none.

    Source:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository (1998), its test part.
    """

    input_shape: ClassVar[tuple[int, ...]] = (1, 8, 8)
    published_outputs: ClassVar[int] = 10
    published_size: ClassVar[int] = 1437
    published_test_size: ClassVar[int] = _TEST_SIZE

    @property
    def digest(self) -> str:
        """Return the SHA-256 of images and labels."""
        return _SHA256

    def read(self, folder: Path) -> Raw:
        """Return the digits; `folder` is not used.

        Raises:
            DataMissing: If the installed copy is not the one known here.
        """
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
        found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
        if found != _SHA256:
            raise DataMissing(
                f"scikit-learn's digits have SHA-256 {found}, expected {_SHA256}: reinstall "
                "scikit-learn."
            )
        inputs = (images / np.float32(16)).astype(np.float32)[:, None]
        order = np.random.default_rng(0).permutation(len(inputs))
        train, test = order[:-_TEST_SIZE], order[-_TEST_SIZE:]
        return Raw(
            train_inputs=inputs[train],
            train_targets=labels[train],
            test_inputs=inputs[test],
            test_targets=labels[test],
        )
