"""Device and threads: where a run computes, and with how many threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lipbench.config.problems import ConfigError
from lipbench.config.settings import Benchmark

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
    products = benchmark.anatomy.forward_products
    if "OMP_NUM_THREADS" not in os.environ and products < _PRODUCTS_PER_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
