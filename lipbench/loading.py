"""The data a run computes with, and how it uses the machine."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch

from lipbench.data import Data, split
from lipbench.datafolder import folder as data_folder
from lipbench.dataset import Dataset
from lipbench.joint import Networks
from lipbench.judge import BATCH_SIZE, judge_networks
from lipbench.seeds import stream
from lipbench.settings import Benchmark
from lipbench.survey import Score

_PRODUCTS_PER_THREAD = 20_000
"""Multiplications of one forward pass of one sample above which torch keeps its threads."""


@contextmanager
def few_threads(benchmark: Benchmark) -> Iterator[None]:
    """Let torch use one thread meanwhile if the network is too small for more.

    Two threads train three networks of 8,832 products no faster than one, and networks of 54,912
    products 1.2 times as fast; on a machine that is busy with other work, waiting for a second
    thread costs more than it brings. The variable OMP_NUM_THREADS has the last word.
    """
    before = torch.get_num_threads()
    products = benchmark.anatomy.forward_products
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


def selection_score(benchmark: Benchmark, data: Data) -> Score | None:
    """Return the function that measures validation accuracy under the selection attack.

    None if the last network is taken, as always in regression.
    """
    selection, part = benchmark.selection, data.validation
    if selection == "last" or data.task == "regression":
        return None
    inputs, targets = part.inputs[: selection.size], part.targets[: selection.size]
    batch_size = benchmark.anatomy.samples_at_once(inputs.device)

    def score(networks: Networks, seeds: Sequence[int]) -> list[float]:
        results = judge_networks(
            selection.attack,
            networks,
            inputs,
            targets,
            selection.norm,
            [selection.epsilon],
            data.box,
            [stream(seed, "attack", "selection") for seed in seeds],
            batch_size=batch_size if selection.attack.samplewise else BATCH_SIZE,
        )
        return [float((~result.success).double().mean()) for (result,) in results]

    return score
