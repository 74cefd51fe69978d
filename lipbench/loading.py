"""Where a run computes, and the data it computes with."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from lipbench.adversary import Classifier
from lipbench.data import Data, split
from lipbench.datafolder import folder as data_folder
from lipbench.dataset import Dataset
from lipbench.estimate import forward_products
from lipbench.judge import judge
from lipbench.places import ConfigError
from lipbench.seeds import stream
from lipbench.settings import Benchmark, SelectionSettings
from lipbench.survey import Score
from lipbench.threat import Threat

_PRODUCTS_PER_THREAD = 20_000
"""Multiplications of one forward pass of one sample above which torch keeps its threads."""


def resolve(device: str) -> torch.device:
    """Return the device that `auto` means here, or the one named.

    Raises:
        ConfigError: If it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["device is 'cuda', and torch sees none: choose 'cpu' or 'auto'"])
    return torch.device(device)


def device_name(device: torch.device) -> str:
    """Return what the column `device` says."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def few_threads(benchmark: Benchmark) -> Iterator[None]:
    """Let torch use one thread meanwhile if the network is too small for more.

    Two threads train three networks of 8,832 products no faster than one, and networks of 54,912
    products 1.2 times as fast; on a machine that is busy with other work, waiting for a second
    thread costs more than it brings. The variable OMP_NUM_THREADS has the last word.
    """
    before = torch.get_num_threads()
    products = forward_products(benchmark)
    if "OMP_NUM_THREADS" not in os.environ and products < _PRODUCTS_PER_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=2)
def load(dataset: Dataset, device: torch.device, dtype: torch.dtype) -> Data:
    """Return a data set on a device, fetched first if it is not there.

    Raises:
        DataMissing: If it cannot be had.
    """
    folder = data_folder()
    if dataset.missing(folder):
        dataset.fetch(folder, lambda text: None)
    return split(dataset, dataset.read(folder), device, dtype)


def selection_score(selection: SelectionSettings, data: Data) -> Score:
    """Return the function that measures validation accuracy under the selection attack."""
    part = data.validation
    epsilon = torch.full((len(part),), selection.epsilon, dtype=torch.float64)
    threat = Threat(norm=selection.norm, epsilon=epsilon.to(part.inputs.device), domain=data.box)

    def score(model: Classifier, seed: int) -> float:
        rng = stream(seed, "attack", "selection")
        result = judge(selection.attack, model, part.inputs, part.targets, threat, rng)
        return float((~result.success).double().mean())

    return score
