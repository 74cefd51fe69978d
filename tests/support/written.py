"""Modules whose forward pass is written in the test."""

from torch import nn

from lipbench.networks.network import as_network


class Written(nn.Module):
    """A forward pass that is given as a function of the module and its input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.written = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.written(self, x)


def read(forward, *shape, **layers):
    """Return such a module as steps."""
    return as_network(Written(forward, **layers).eval(), shape)
