"""Network size: numbers per sample, products of a forward pass, weights."""

import math
from dataclasses import dataclass

import torch

from lipbench.dataset import Dataset
from lipbench.failure import pass_signals
from lipbench.guards.guard import TorchTampered, guarded
from lipbench.model import Model
from lipbench.networks.network import walk
from lipbench.networks.steps import Dense, Linear

_NUMBERS_AT_ONCE = {"cpu": 2**22, "cuda": 2**28}
_FEWEST_SAMPLES = 500
_MOST_SAMPLES = {"cpu": 10_000, "cuda": 100_000}


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The sizes of a network, as far as its linear layers tell."""

    numbers_per_sample: int
    """Entries of the input and of the outputs of all layers."""
    forward_products: float
    """Multiplications of one forward pass of one sample; NaN if the network cannot be read."""
    weights: int
    """Numbers in the layers, biases left out."""
    is_dense: bool
    """Whether it has layers, and each is dense."""

    def samples_that_fit(self, device: torch.device) -> int:
        """Return how many samples it answers at a time, at least 1: no tensor is very large."""
        return max(1, _NUMBERS_AT_ONCE[device.type] // self.numbers_per_sample)

    def samples_at_once(self, device: torch.device) -> int:
        """Return how many samples it is asked about at a time, if the settings do not say.

        As many as fit, but not few: attacks pack what is left of a batch, and are slow where that
        is little.
        """
        fitting = min(_MOST_SAMPLES[device.type], self.samples_that_fit(device))
        return max(_FEWEST_SAMPLES, fitting)


def anatomy(model: Model, dataset: Dataset) -> Anatomy:
    """Return the sizes of a network; one that cannot be built or read counts as without layers."""
    layers = _layers(model, dataset)
    outputs = [math.prod(layer.output_shape) for layer in layers]
    products = sum(layer.fan_in * size for layer, size in zip(layers, outputs, strict=True))
    return Anatomy(
        numbers_per_sample=math.prod(dataset.input_shape) + sum(outputs),
        forward_products=float(products) if layers else math.nan,
        weights=sum(layer.weight.numel() for layer in layers),
        is_dense=bool(layers) and all(isinstance(layer, Dense) for layer in layers),
    )


def _layers(model: Model, dataset: Dataset) -> tuple[Linear, ...]:
    shape = dataset.input_shape
    try:
        with guarded(f"model {type(model).__name__}", "build", 0):
            module = model.build(shape, dataset.outputs, torch.Generator())
        graph = walk(module.eval(), shape)
        return graph.bind(dict(module.named_parameters()), dict(module.named_buffers())).layers
    except TorchTampered:
        raise
    except BaseException as error:  # a stranger's; its cells say what is wrong with it
        pass_signals(error)
        return ()
