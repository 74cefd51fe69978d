"""Load a data set onto a device, fetched if it is absent."""

from functools import lru_cache

import torch

from lipbench.data.contents import check_contents
from lipbench.data.folder import folder as data_folder
from lipbench.data.seal import Seal, copy_into
from lipbench.data.splits import Data, split
from lipbench.dataset import DataMissing, Dataset
from lipbench.guards.guard import guarded

_SEALS: dict[tuple[Dataset, torch.device, torch.dtype], Seal] = {}
"""Of all that was read in this process."""


@lru_cache(maxsize=2)
def load(dataset: Dataset, device: torch.device, dtype: torch.dtype) -> Data:
    """Load a data set onto a device; fetch it first if it is not there.

    Returns:
        The data set, split as it says. It is remembered, so that all share its tensors.

    Raises:
        DataMissing: If it cannot be had, is not what its class declares, or is not the same each
            time it is read.
    """
    place = (dataset, device, dtype)
    data = _read(*place)
    first = Seal.of(data)
    if place not in _SEALS:  # by a second reading, as a run that is resumed will do
        _SEALS[place] = Seal.of(_read(*place))
    if Seal.of(data) != _SEALS[place] or first != _SEALS[place]:
        raise DataMissing(
            f"{type(dataset).__name__} reads other data each time, under one digest: its read() "
            "must give the same for the same fields, so draw from a generator with a seed."
        )
    return data


def put_back(data: Data) -> list[str]:
    """Put back what was changed of a data set that was loaded.

    Returns:
        The names of the tensors that had been changed.

    Raises:
        DataMissing: If it was, and cannot be read again.
    """
    place = (data.dataset, data.train.inputs.device, data.train.inputs.dtype)
    seal = _SEALS.get(place)
    changed = [] if seal is None else Seal.of(data).differences(seal)
    if changed:
        copy_into(data, _read(*place))
    return changed


def _read(dataset: Dataset, device: torch.device, dtype: torch.dtype) -> Data:
    folder = data_folder()
    name = f"data set {type(dataset).__name__}"
    if dataset.missing(folder):
        with guarded(name, "fetch", 0):
            dataset.fetch(folder, lambda text: None)
    with guarded(name, "read", 0):
        raw = dataset.read(folder)
    check_contents(dataset, raw)
    return split(dataset, raw, device, dtype)
