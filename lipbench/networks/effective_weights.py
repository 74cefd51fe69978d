"""Effective weights: tensors that steps read, computed from parameters and buffers alone."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from lipbench.networks.steps import Shape, Tensors
from lipbench.networks.symbolic import attribute


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """The tensors of a layer's explanation, or the weights that a parametrisation makes."""

    path: str
    layer: nn.Module
    input_shape: Shape
    is_explanation: bool

    def tensors(self, known: Tensors) -> dict[str, Tensor]:
        """Return the derived tensors by name, given all parameters and buffers by name."""
        start = f"{self.path}." if self.path else ""
        stored = {f"layer.{name}": known[start + name] for name in _tensors(self.layer)}
        compute = _explanation_tensors if self.is_explanation else _effective_tensors
        derived = torch.func.functional_call(_Computation(self.layer, compute), stored, ())
        prefix = f"{start}explain()." if self.is_explanation else start
        return {prefix + name: tensor for name, tensor in derived.items()}


@dataclass(frozen=True, kw_only=True)
class ForwardWeights:
    """The tensors that calls of a forward pass compute independently of the input."""

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
    """Return the name, among the tensors of a network, of what a node holds or computes."""
    name = str(node.target) if node.op == "get_attr" else f"{node.name}()"
    return f"{path}.{name}" if path else name


def dependencies(wanted: Iterable[fx.Node], order: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the transitive inputs of nodes, and these, in order."""
    reached: set[fx.Node] = set()
    open_ = list(wanted)
    while open_:
        node = open_.pop()
        if node not in reached:
            reached.add(node)
            open_ += node.all_input_nodes
    return tuple(node for node in order if node in reached)


def has_state(layer: nn.Module) -> bool:
    """Return whether a layer's effective weight depends on buffers, which train mode may move."""
    return is_parametrized(layer) and bool(dict(layer.parametrizations.named_buffers()))  # type: ignore[union-attr]


class _Computation(nn.Module):
    # functional_call reaches a layer's parameters only through a forward pass.
    def __init__(
        self, layer: nn.Module, compute: Callable[[nn.Module], Mapping[str, Tensor]]
    ) -> None:
        super().__init__()
        self.layer, self.compute = layer, compute

    def forward(self) -> Mapping[str, Tensor]:
        return self.compute(self.layer)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _explanation_tensors(layer: nn.Module) -> Mapping[str, Tensor]:
    return _tensors(layer.explain())  # type: ignore[operator]


def _effective_tensors(layer: nn.Module) -> Mapping[str, Tensor]:
    return {name: getattr(layer, name) for name in layer.parametrizations}  # type: ignore[union-attr]
