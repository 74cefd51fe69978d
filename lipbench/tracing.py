"""Read the forward pass of a module as a list of steps."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from lipbench.bound import Refused
from lipbench.derived import Derived, has_state
from lipbench.explain import TESTED, Slopes
from lipbench.primitives import (
    Reader,
    Site,
    curve_step,
    is_primitive,
    layer_type,
    reader,
    refuse,
)
from lipbench.slopes import FUNCTIONS
from lipbench.steps import Rearrange, Shape, Step

_BATCH = 3
_RESHAPES = {torch.flatten, torch.reshape, "flatten", "reshape", "view", "contiguous"}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A step whose parameters are not known yet."""

    read: Reader
    inputs: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What was read of a module."""

    nodes: tuple[Node, ...]
    output: int
    """Which value is the output: 0 is the input, i + 1 the result of node i."""
    derived: tuple[Derived, ...] = ()
    flags: tuple[str, ...] = ()


def trace(module: nn.Module, input_shape: Shape, name: str = "") -> Trace:
    """Return the steps of a module, whose path in the whole network is `name`.

    What has no rule is `Refused`: the message names the layer by path and class.
    """
    _refuse_changing_layers(module, name)
    with torch.no_grad():
        example = _example(module, input_shape)
        if not _is_leaf(module):
            return _Reading(module, example, name).result()
        site = Site(name=name, input_shapes=(input_shape,), output_shape=_shape_of(module, example))
        return _read_layer(module, site)


def _refuse_changing_layers(module: nn.Module, name: str) -> None:
    # Before anything is evaluated: an evaluation would change their buffers.
    for path, layer in module.named_modules():
        if layer.training and (has_state(layer) or isinstance(layer, _BATCH_NORMS)):
            full = ".".join(part for part in (name, path) if part)
            raise refuse(
                layer, full, "in train mode it is no fixed function; call model.eval() first."
            )


def _explains(layer: nn.Module) -> bool:
    return callable(getattr(layer, "explain", None))


def _is_leaf(layer: nn.Module) -> bool:
    if is_primitive(layer) or _explains(layer):
        return True
    # torch's own layers are rules or refused; other modules are read through their forward.
    return layer_type(layer).__module__.startswith("torch.nn") and not isinstance(
        layer, nn.Sequential
    )


def _example(module: nn.Module, input_shape: Shape) -> Tensor:
    tensors = [*module.parameters(), *module.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
    return torch.zeros(_BATCH, *input_shape, dtype=like.dtype, device=like.device)


def _shape_of(module: nn.Module, example: Tensor) -> Shape:
    try:
        return tuple(module(example).shape[1:])
    except (RuntimeError, ValueError) as error:
        shape = tuple(example.shape[1:])
        raise Refused(f"the network does not take inputs of shape {shape}: {error}") from error


def _read_layer(layer: nn.Module, site: Site) -> Trace:
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise refuse(layer, site.name, "its forward hooks may change the function.")
    if is_primitive(layer):
        flags = (TESTED,) if isinstance(layer, Slopes) else ()
        derived = (_derived(layer, site, is_explanation=False),) if is_parametrized(layer) else ()
        return Trace(
            nodes=(Node(read=reader(layer, site)),), output=1, derived=derived, flags=flags
        )
    if _explains(layer):
        explanation = layer.explain()  # type: ignore[operator]
        inner = trace(explanation, site.input_shapes[0], site.key("explain()"))
        own = _derived(layer, site, is_explanation=True)
        return replace(inner, derived=(own, *inner.derived), flags=(TESTED, *inner.flags))
    raise refuse(
        layer, site.name, "no rule for this class; give it explain() or replace the layer."
    )


def _derived(layer: nn.Module, site: Site, *, is_explanation: bool) -> Derived:
    return Derived(
        path=site.name,
        layer=layer,
        input_shape=site.input_shapes[0],
        is_explanation=is_explanation,
    )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m)


class _ShapeReader(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def _shapes(module: nn.Module, graph: fx.Graph, example: Tensor) -> dict[fx.Node, Shape]:
    shape_reader = _ShapeReader(fx.GraphModule(module, graph))
    try:
        shape_reader.run(example, enable_io_processing=False)
    except (RuntimeError, ValueError) as error:
        shape = tuple(example.shape[1:])
        raise Refused(f"the network does not take inputs of shape {shape}: {error}") from error
    return shape_reader.shapes


class _Reading:
    """One pass over the traced forward of a module that is no leaf."""

    def __init__(self, module: nn.Module, example: Tensor, name: str) -> None:
        self.module, self.name = module, name
        try:
            self.graph = _Tracer().trace(module)
        except Exception as error:  # Anything may go wrong when strange code meets a symbol.
            raise refuse(module, name, f"its forward cannot be traced: {error}") from error
        self.shapes = _shapes(module, self.graph, example)
        self.values: dict[fx.Node, int] = {}
        self.nodes: list[Node] = []
        self.derived: list[Derived] = []
        self.flags: list[str] = []

    def result(self) -> Trace:
        output = None
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self._read_input(node)
            elif node.op == "output":
                output = node.args[0]
            elif node.op == "get_attr":
                raise self._refusal(node, f"its forward uses the tensor {node.target!r} directly")
            elif node in self.shapes:  # All else is numbers, such as sizes for a reshape.
                self._read_tensor(node)
        if not isinstance(output, fx.Node) or output not in self.values:
            raise refuse(self.module, self.name, "its forward does not return one tensor.")
        return Trace(
            nodes=tuple(self.nodes),
            output=self.values[output],
            derived=tuple(self.derived),
            flags=tuple(self.flags),
        )

    def _read_input(self, node: fx.Node) -> None:
        if not self.values:
            self.values[node] = 0
        elif node.users:
            raise self._refusal(node, f"its forward takes a second input {node.target!r}")

    def _read_tensor(self, node: fx.Node) -> None:
        if node.op == "call_module":
            path = str(node.target)
            name = f"{self.name}.{path}" if self.name else path
            self._append(node, _read_layer(self.module.get_submodule(path), self._site(node, name)))
        elif node.target in FUNCTIONS and set(node.kwargs) <= {"inplace"}:
            step = curve_step(FUNCTIONS[node.target], self._site(node, self._path(node)))
            self._append(node, _one(step))
        elif node.target in _RESHAPES:
            self._append(node, _one(Rearrange(**self._site(node, self._path(node)).place)))
        else:
            called = getattr(node.target, "__name__", node.target)
            raise self._refusal(node, f"its forward calls {called!r}, which has no rule")

    def _append(self, node: fx.Node, part: Trace) -> None:
        source = _source(node)
        assert source is not None  # _site has seen it
        start, origin = len(self.nodes), self.values[source]
        for inner in part.nodes:
            inputs = tuple(origin if i == 0 else start + i for i in inner.inputs)
            self.nodes.append(replace(inner, inputs=inputs))
        self.values[node] = start + part.output if part.output else origin
        self.derived += part.derived
        self.flags += part.flags

    def _site(self, node: fx.Node, name: str) -> Site:
        source = _source(node)
        if source not in self.values or (
            node.op == "call_module" and (len(node.args) != 1 or node.kwargs)
        ):
            raise self._refusal(node, f"{node.target!r} is not called with one tensor")
        batch, *output_shape = self.shapes[node]
        if batch != _BATCH:
            raise self._refusal(node, f"{node.target!r} mixes samples of a batch")
        return Site(
            name=name,
            input_shapes=(self.shapes[source][1:],),
            output_shape=tuple(output_shape),
        )

    def _path(self, node: fx.Node) -> str:
        """Return the path of the module whose forward makes a call, and the call."""
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        parts = [self.name, *stack[-1:], node.name]
        return ".".join(part for part in parts if part)

    def _refusal(self, node: fx.Node, reason: str) -> Refused:
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        path = stack[-1] if stack else ""
        name = ".".join(part for part in (self.name, path) if part)
        return refuse(self.module.get_submodule(path), name, f"{reason}.")


def _source(node: fx.Node) -> fx.Node | None:
    found = node.args[0] if node.args else None
    return found if isinstance(found, fx.Node) else None


def _one(step: Step) -> Trace:
    return Trace(nodes=(Node(read=lambda tensors: step),), output=1)
