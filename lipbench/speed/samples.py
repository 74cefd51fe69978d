"""The samples of all sides: the same ones, each in the form that a side takes."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset as Images
from torch.utils.data import Subset

from lipbench.data.folder import folder
from lipbench.data.loading import load
from lipbench.data.splits import Data
from lipbench.dataset import Dataset
from lipbench.registry import load as plugin


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples in memory, and the same ones as a DataLoader takes them."""

    data: Data
    train: Images[Any]
    pairs: Images[Any]

    def first(self, count: int) -> "Samples":
        """Return the same with no more than `count` samples for training."""
        train = self.data.train
        train = replace(
            train,
            inputs=train.inputs[:count],
            targets=train.targets[:count],
            index=train.index[:count],
        )
        return replace(
            self,
            data=replace(self.data, train=train),
            train=Subset(self.train, range(len(train))),
        )


def mnist(device: torch.device) -> Samples:
    """Load MNIST, which is fetched if it is absent.

    Returns:
        54,000 images to train on, 6,000 for pairs, 10,000 for tests.

    Raises:
        DataMissing: If it cannot be had.
    """
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    dataset = plugin("lipbench.datasets", "mnist", Dataset)(train_size=54_000, pair_size=6_000)
    data = load(dataset, device, torch.float32)
    images = MNIST(root=str(folder()), train=True, transform=ToTensor())
    return Samples(
        data=data,
        train=Subset(images, data.train.index.tolist()),
        pairs=Subset(images, data.pairs.index.tolist()),
    )
