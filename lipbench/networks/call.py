"""A call inside a forward pass, as the steps that it stands for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from lipbench.networks.primitives import Reader, Site
from lipbench.networks.steps import Shape

Argument = Any
"""A value of the network, as a node of its trace, a `Constant`, or what is written in the code."""


class NoRule(Exception):
    """A call is not understood; the message, if there is one, says why."""


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the input: a parameter, a buffer, or made of these."""

    name: str
    """Under which the network's tensors hold it."""
    shape: Shape
    is_stored: bool
    """Whether it is a parameter or a buffer."""
    is_parameter: bool


@dataclass(frozen=True)
class Call:
    """A call as steps, which have no site in the network yet."""

    sources: tuple[fx.Node, ...]
    """The values that the first step reads; each other step reads the one before."""
    readers_at: Callable[[Site], Reader | list[Reader]]
    """Returns the readers of the steps at a site; raises `NoRule` if its shapes have no rule."""


CallRule = Callable[..., Call]
"""Takes the arguments of a call under the names that torch gives them."""


def source(value: Argument) -> fx.Node:
    """Return an argument that is a value of the network.

    Raises:
        NoRule: If it is none.
    """
    if not isinstance(value, fx.Node):
        raise NoRule(f"{told(value)} is no value of the network")
    return value


def refuse_values(*settings: Argument) -> None:
    """Check that settings are written in the code, or computed from sizes.

    Raises:
        NoRule: If one is a value of the network, or a tensor.
    """
    nodes: list[fx.Node] = []
    fx.node.map_arg(settings, nodes.append)
    if nodes:
        raise NoRule(f"its setting {nodes[0].name!r} is computed, and no constant")
    for setting in _leaves(settings):
        if isinstance(setting, Constant):
            raise NoRule(f"its setting {told(setting)} is a tensor")


def told(value: Argument) -> str:
    """Return an argument as a message names it."""
    return f"the tensor {value.name!r}" if isinstance(value, Constant) else repr(value)


def _leaves(settings: Argument) -> Iterator[Argument]:
    if isinstance(settings, dict):
        settings = settings.values()
    elif isinstance(settings, slice):
        settings = (settings.start, settings.stop, settings.step)
    elif not isinstance(settings, tuple | list):
        yield settings
        return
    for setting in settings:
        yield from _leaves(setting)
