"""Evaluation mode, for a while: dropout off, running statistics in use."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lipbench.adversary import Classifier


@contextmanager
def evaluation_mode(model: Classifier) -> Iterator[None]:
    """Put every module of `model` into evaluation mode; give each its own mode back at the end."""
    modes = {module: module.training for module in modules_of(model)}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def modules_of(model: Classifier) -> list[nn.Module]:
    """Return a network and all modules in it; none if it is a mere function."""
    return list(model.modules()) if isinstance(model, nn.Module) else []
