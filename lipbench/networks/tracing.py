"""Read the forward pass of a module as a list of steps."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from lipbench.layers.explanations import Slopes
from lipbench.networks.call import Call, Constant, NoRule
from lipbench.networks.effective_weights import (
    ForwardWeights,
    LayerWeights,
    dependencies,
    has_state,
    name_of,
)
from lipbench.networks.explain import TESTED
from lipbench.networks.forward_pass import ForwardPass, run_forward, unfit
from lipbench.networks.functions import read_call
from lipbench.networks.primitives import Reader, Site, is_primitive, layer_type, reader, refuse
from lipbench.networks.steps import Shape
from lipbench.refused import Refused

_BATCH = 3
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
    derived: tuple[LayerWeights | ForwardWeights, ...] = ()
    flags: tuple[str, ...] = ()


def trace(module: nn.Module, input_shape: Shape, name: str = "") -> Trace:
    """Return the steps of a module, whose path in the whole network is `name`.

    What has no rule is `Refused`: the message names the layer by path and class.
    """
    _refuse_changing_layers(module, name)
    with torch.no_grad():
        example = _example(module, input_shape)
        if not _is_leaf(module):
            return _Reading(run_forward(module, example, name, _is_leaf)).result()
        _refuse_without_rule(module, name)
        output_shape = _output_shape(module, example, name)
        site = Site(name=name, input_shapes=(input_shape,), output_shape=output_shape)
        return _read_layer(module, site)


def _refuse_changing_layers(module: nn.Module, name: str) -> None:
    # Before anything is evaluated: an evaluation would change their buffers.
    for path, layer in module.named_modules():
        if layer.training and (has_state(layer) or isinstance(layer, _BATCH_NORMS)):
            full = ".".join(segment for segment in (name, path) if segment)
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


def _output_shape(layer: nn.Module, example: Tensor, name: str) -> Shape:
    try:
        shape = tuple(layer(example).shape)
    except (RuntimeError, ValueError) as error:
        raise unfit(example, error) from error
    if shape[:1] != (_BATCH,):
        raise refuse(layer, name, "it mixes samples of a batch.")
    return shape[1:]


def _refuse_without_rule(layer: nn.Module, name: str) -> None:
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise refuse(layer, name, "its forward hooks may change the function.")
    if not is_primitive(layer) and not _explains(layer):
        raise refuse(layer, name, "no rule for this class; give it explain() or replace the layer.")


def _read_layer(layer: nn.Module, site: Site) -> Trace:
    if is_primitive(layer):
        flags = (TESTED,) if isinstance(layer, Slopes) else ()
        derived = (_derived(layer, site, is_explanation=False),) if is_parametrized(layer) else ()
        return Trace(
            nodes=(Node(read=reader(layer, site)),), output=1, derived=derived, flags=flags
        )
    explanation = layer.explain()  # type: ignore[operator]
    inner = trace(explanation, site.input_shapes[0], site.key("explain()"))
    weights = _derived(layer, site, is_explanation=True)
    return replace(inner, derived=(weights, *inner.derived), flags=(TESTED, *inner.flags))


def _derived(layer: nn.Module, site: Site, *, is_explanation: bool) -> LayerWeights:
    return LayerWeights(
        path=site.name,
        layer=layer,
        input_shape=site.input_shapes[0],
        is_explanation=is_explanation,
    )


class _Reading:
    """A forward pass that becomes a list of steps, from the input to the output."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward = forward
        self.constants: dict[fx.Node, Constant] = {}
        """Tensors that do not depend on the input."""
        self.values: dict[fx.Node, int] = {}
        """Which value of the trace a node is, of the nodes that are read already."""
        self.nodes: list[Node] = []
        self.derived: list[LayerWeights | ForwardWeights] = []
        self.flags: list[str] = []

    def result(self) -> Trace:
        output = self._output()
        self._refuse_stale()
        self._name_constants()
        calls, taken = self._calls(output)
        for node in self.forward.graph.nodes:
            if node.op == "placeholder" and (not self.values or node in taken):
                self._read_input(node)
            elif node in calls:
                self._read_call(node, calls[node])
            elif node in taken:
                self._read_module(node)
        return Trace(
            nodes=tuple(self.nodes),
            output=self.values[output],
            derived=tuple(self.derived),
            flags=tuple(self.flags),
        )

    def _output(self) -> fx.Node:
        forward = self.forward
        (output,) = list(forward.graph.nodes)[-1].args
        if isinstance(output, fx.Node) and output.op == "call_module":
            _refuse_without_rule(*forward.layer(output))
        if not isinstance(output, fx.Node) or output not in forward.moving & forward.shapes.keys():
            raise refuse(forward.module, forward.name, "its forward does not return one tensor.")
        return output

    def _refuse_stale(self) -> None:
        order = list(self.forward.graph.nodes)
        for node in dependencies(order[-1:], order):
            if node in self.forward.stale:
                name = self.forward.stale[node].name
                reason = f"its forward reads {name!r} after it changed in place"
                raise self.forward.refusal(node, reason)

    def _name_constants(self) -> None:
        """Name the tensors that do not depend on the input, and note those to be computed."""
        forward = self.forward
        fixed = [node for node in forward.graph.nodes if node not in forward.moving]
        self.constants = {node: self._constant(node) for node in fixed if node in forward.shapes}
        wanted = [
            node
            for node, constant in self.constants.items()
            if not constant.is_stored and any(user in forward.moving for user in node.users)
        ]
        if wanted:
            self.derived.append(self._computed(wanted, fixed))

    def _constant(self, node: fx.Node) -> Constant:
        held = self.forward.stored.get(str(node.target)) if node.op == "get_attr" else None
        return Constant(
            name=name_of(self.forward.name, node),
            shape=self.forward.shapes[node],
            is_stored=held is not None,
            is_parameter=isinstance(held, nn.Parameter),
        )

    def _computed(self, wanted: list[fx.Node], fixed: list[fx.Node]) -> ForwardWeights:
        forward = self.forward
        calls = dependencies(wanted, fixed)
        for node in calls:
            if node.op in ("call_module", "placeholder"):
                raise forward.refusal(node, f"its forward makes a weight by {node.target!r}")
        return ForwardWeights(
            path=forward.name, module=forward.module, calls=calls, wanted=tuple(wanted)
        )

    def _calls(self, output: fx.Node) -> tuple[dict[fx.Node, Call], set[fx.Node]]:
        """Return the calls that the output takes, and all values that it takes."""
        moving = self.forward.moving
        calls: dict[fx.Node, Call] = {}
        taken: set[fx.Node] = set()
        open_ = [output]
        while open_:
            node = open_.pop()
            if node in taken:
                continue
            taken.add(node)
            if node not in moving:
                reason = f"its forward takes the tensor {node.name!r} for a value of the network"
                raise self.forward.refusal(node, reason)
            if node.op == "call_module":
                open_ += [source for source in node.all_input_nodes if source in moving]
            elif node.op != "placeholder":
                calls[node] = self._understood(node)
                open_ += calls[node].sources
        return calls, taken

    def _understood(self, node: fx.Node) -> Call:
        try:
            return read_call(node, self.constants)
        except NoRule as error:
            for source in node.all_input_nodes:  # what they give may have none, and be the reason
                if source.op == "call_module":
                    _refuse_without_rule(*self.forward.layer(source))
            raise self._without_rule(node, error) from error

    def _without_rule(self, node: fx.Node, error: NoRule) -> Refused:
        called = getattr(node.target, "__name__", node.target)
        reason = f", which has no rule: {error}" if str(error) else ", which has no rule"
        return self.forward.refusal(node, f"its forward calls {called!r}{reason}")

    def _read_input(self, node: fx.Node) -> None:
        if self.values:
            reason = f"its forward takes a second input {node.target!r}"
            raise self.forward.refusal(node, reason)
        self.values[node] = 0

    def _read_call(self, node: fx.Node, call: Call) -> None:
        try:
            readers = call.readers_at(self._site(node, self.forward.path(node), call.sources))
        except NoRule as error:
            raise self._without_rule(node, error) from error
        inputs = tuple(self.values[source] for source in call.sources)
        for read in readers if isinstance(readers, list) else [readers]:
            self.nodes.append(Node(read=read, inputs=inputs))
            inputs = (len(self.nodes),)
        self.values[node] = len(self.nodes)

    def _read_module(self, node: fx.Node) -> None:
        layer, name = self.forward.layer(node)
        _refuse_without_rule(layer, name)
        if len(node.args) != 1 or node.kwargs or node.all_input_nodes != list(node.args):
            raise refuse(layer, name, "it is not called with one tensor.")
        (source,) = node.all_input_nodes
        layer_trace = _read_layer(layer, self._site(node, name, (source,)))
        start, origin = len(self.nodes), self.values[source]
        for inner in layer_trace.nodes:
            inputs = tuple(origin if i == 0 else start + i for i in inner.inputs)
            self.nodes.append(replace(inner, inputs=inputs))
        self.values[node] = start + layer_trace.output if layer_trace.output else origin
        self.derived += layer_trace.derived
        self.flags += layer_trace.flags

    def _site(self, node: fx.Node, name: str, sources: tuple[fx.Node, ...]) -> Site:
        shapes, refusal = self.forward.shapes, self.forward.refusal
        for source in sources:
            if source not in self.values:
                reason = f"{node.name!r} reads {source.name!r}, which is no value of the network"
                raise refusal(node, reason)
        if shapes[node][:1] != (_BATCH,):
            raise refusal(node, f"{node.name!r} mixes samples of a batch")
        if len(shapes[node]) == 1:
            reason = "leaves a sample no axis; keep one, as with keepdim or unsqueeze(1)"
            raise refusal(node, f"{node.name!r} {reason}")
        return Site(
            name=name,
            input_shapes=tuple(shapes[source][1:] for source in sources),
            output_shape=shapes[node][1:],
        )
