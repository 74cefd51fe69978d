"""Tensors that a forward pass makes of parameters and buffers alone, such as a weight."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lipbench.steps import Tensors
from lipbench.symbolic import attribute


@dataclass(frozen=True, kw_only=True)
class Computed:
    """Some of the calls of a forward pass, none of which depends on the input."""

    path: str
    """Of the module whose forward pass it is, in the network."""
    module: nn.Module
    calls: tuple[fx.Node, ...]
    """In their order, with all that they depend on."""
    wanted: tuple[fx.Node, ...]

    def tensors(self, known: Tensors) -> dict[str, Tensor]:
        """Return the tensors by name, given all parameters and buffers by name."""
        values: dict[fx.Node, Any] = {}
        for node in self.calls:
            values[node] = self._value(node, values, known)
        return {name_of(self.path, node): values[node] for node in self.wanted}

    def _value(self, node: fx.Node, values: dict[fx.Node, Any], known: Tensors) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        target: Any = node.target
        if node.op == "get_attr":
            key = name_of(self.path, node)
            return known[key] if key in known else attribute(self.module, target)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


def name_of(path: str, node: fx.Node) -> str:
    """Return the name among the tensors of a network of what a node holds or computes."""
    own = str(node.target) if node.op == "get_attr" else f"{node.name}()"
    return f"{path}.{own}" if path else own


def what_it_takes(wanted: Iterable[fx.Node], order: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the nodes that others depend on, and these, in order."""
    found: set[fx.Node] = set()
    open_ = list(wanted)
    while open_:
        node = open_.pop()
        if node not in found:
            found.add(node)
            open_ += node.all_input_nodes
    return tuple(node for node in order if node in found)
