"""Load a data set onto a device, fetched if it is absent."""

from functools import lru_cache

import torch

from lipbench.data.folder import folder as data_folder
from lipbench.data.splits import Data, split
from lipbench.dataset import Dataset


@lru_cache(maxsize=2)
def load(dataset: Dataset, device: torch.device, dtype: torch.dtype) -> Data:
    """Load a data set onto a device; fetch it first if it is not there.

    Returns:
        The data set, split as it says.

    Raises:
        DataMissing: If it cannot be had.
    """
    folder = data_folder()
    if dataset.missing(folder):
        dataset.fetch(folder, lambda text: None)
    return split(dataset, dataset.read(folder), device, dtype)
