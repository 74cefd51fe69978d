"""Untrained networks, as a model builds them and a method prepares them."""

from torch import nn

from lipbench.dataset import Dataset
from lipbench.guards.guard import guarded
from lipbench.model import Model
from lipbench.refused import Refused
from lipbench.seeds import stream
from lipbench.training.settings import MethodEntry


def untrained(model: Model, dataset: Dataset, seed: int) -> nn.Module:
    """Return the network that a model builds for a seed, the same for every method.

    Its layers may draw from global generators: these are seeded likewise.

    Raises:
        Refused: If it builds no module.
    """
    rng, shape = stream(seed, "init"), dataset.input_shape
    common = stream(seed, "global", "init").initial_seed()
    with guarded(f"model {type(model).__name__}", "build", common):
        module: object = model.build(shape, dataset.outputs, rng)
    return _module(module, f"model {type(model).__name__}")


def prepared(
    entry: MethodEntry, module: nn.Module, input_shape: tuple[int, ...], seed: int
) -> nn.Module:
    """Return the network that a method trains, made of the one that the model built.

    Raises:
        Refused: If it builds no module.
    """
    rng = stream(seed, "method", entry.name, "build")
    own = stream(seed, "global", entry.name, "build").initial_seed()
    with guarded(f"method {entry.name!r}", "build", own):
        built: object = entry.method.build(module, input_shape, rng)
    return _module(built, f"method {entry.name!r}")


def _module(built: object, what: str) -> nn.Module:
    """Return what a plugin built.

    Raises:
        Refused: If it is no module.
    """
    if not isinstance(built, nn.Module):
        raise Refused(f"the build() of {what} returned {built!r}, expected a torch.nn.Module.")
    return built
