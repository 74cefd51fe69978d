"""The layers of a benchmark's network, as far as its size is concerned."""

import math

import torch

from lipbench.bound import Refused
from lipbench.network import walk
from lipbench.settings import Benchmark
from lipbench.steps import Linear

_NUMBERS_AT_ONCE = {"cpu": 2**22, "cuda": 2**28}
_FEWEST_SAMPLES = 500
_MOST_SAMPLES = {"cpu": 10_000, "cuda": 100_000}


def layers(benchmark: Benchmark) -> tuple[Linear, ...]:
    """Return the linear layers of the network, none if it cannot be read or built."""
    shape = benchmark.dataset.input_shape
    try:
        module = benchmark.model.build(shape, benchmark.dataset.outputs, torch.Generator())
        graph = walk(module.eval(), shape)
    except (ValueError, Refused):
        return ()
    return graph.bind(dict(module.named_parameters()), dict(module.named_buffers())).layers


def numbers_per_sample(benchmark: Benchmark) -> int:
    """Return how many numbers one sample is on its way: the input and what the layers give."""
    outputs = sum(math.prod(layer.output_shape) for layer in layers(benchmark))
    return math.prod(benchmark.dataset.input_shape) + outputs


def samples_at_once(benchmark: Benchmark, device: torch.device) -> int:
    """Return how many samples a network is asked about at a time, if the settings do not say.

    As many as let no tensor be very large: attacks pack what is left of a batch, and are slow
    where that is little.
    """
    fitting = _NUMBERS_AT_ONCE[device.type] // numbers_per_sample(benchmark)
    return max(_FEWEST_SAMPLES, min(_MOST_SAMPLES[device.type], fitting))
