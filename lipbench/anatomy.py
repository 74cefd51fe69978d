"""The layers of a model on a data set, as far as their size is concerned."""

import math

import torch

from lipbench.bound import Refused
from lipbench.dataset import Dataset
from lipbench.model import Model
from lipbench.network import walk
from lipbench.settings import Benchmark
from lipbench.steps import Linear

_NUMBERS_AT_ONCE = {"cpu": 2**22, "cuda": 2**28}
_FEWEST_SAMPLES = 500
_MOST_SAMPLES = {"cpu": 10_000, "cuda": 100_000}


def layers(model: Model, dataset: Dataset) -> tuple[Linear, ...]:
    """Return the linear layers of the network, none if it cannot be read or built."""
    shape = dataset.input_shape
    try:
        module = model.build(shape, dataset.outputs, torch.Generator())
        graph = walk(module.eval(), shape)
    except (ValueError, Refused):
        return ()
    return graph.bind(dict(module.named_parameters()), dict(module.named_buffers())).layers


def numbers_per_sample(model: Model, dataset: Dataset) -> int:
    """Return how many numbers one sample is on its way: the input and what the layers give."""
    outputs = sum(math.prod(layer.output_shape) for layer in layers(model, dataset))
    return math.prod(dataset.input_shape) + outputs


def samples_that_fit(model: Model, dataset: Dataset, device: torch.device) -> int:
    """Return how many samples a network answers at a time, at least 1: no tensor is very large."""
    return max(1, _NUMBERS_AT_ONCE[device.type] // numbers_per_sample(model, dataset))


def samples_at_once(benchmark: Benchmark, device: torch.device) -> int:
    """Return how many samples a network is asked about at a time, if the settings do not say.

    As many as fit, but not few: attacks pack what is left of a batch, and are slow where that is
    little.
    """
    fitting = samples_that_fit(benchmark.model, benchmark.dataset, device)
    return max(_FEWEST_SAMPLES, min(_MOST_SAMPLES[device.type], fitting))
