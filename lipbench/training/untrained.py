"""Untrained networks, as a model builds them and a method prepares them."""

from torch import nn

from lipbench.dataset import Dataset
from lipbench.guards.guard import guarded
from lipbench.model import Model
from lipbench.seeds import stream
from lipbench.training.settings import MethodEntry


def untrained(model: Model, dataset: Dataset, seed: int) -> nn.Module:
    """Return the network that a model builds for a seed, the same for every method.

    Its layers may draw from global generators: these are seeded likewise.
    """
    rng, shape = stream(seed, "init"), dataset.input_shape
    common = stream(seed, "global", "init").initial_seed()
    with guarded(f"model {type(model).__name__}", "build", common):
        return model.build(shape, dataset.outputs, rng)


def prepared(
    entry: MethodEntry, module: nn.Module, input_shape: tuple[int, ...], seed: int
) -> nn.Module:
    """Return the network that a method trains, made of the one that the model built."""
    rng = stream(seed, "method", entry.name, "build")
    own = stream(seed, "global", entry.name, "build").initial_seed()
    with guarded(f"method {entry.name!r}", "build", own):
        return entry.method.build(module, input_shape, rng)
