"""Read the forward pass of a module as a list of steps."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from lipbench.layers.explanations import Slopes
from lipbench.networks.call import Call, Constant, NoRule
from lipbench.networks.effective_weights import Computed, Derived, has_state, name_of, what_it_takes
from lipbench.networks.explain import TESTED
from lipbench.networks.functions import read_call
from lipbench.networks.primitives import Reader, Site, is_primitive, layer_type, reader, refuse
from lipbench.networks.steps import Shape
from lipbench.networks.symbolic import Misfit, symbolic
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
    derived: tuple[Derived | Computed, ...] = ()
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
        _refuse_refuse_kind(module, name)
        output_shape = _output_shape(module, example, name)
        site = Site(name=name, input_shapes=(input_shape,), output_shape=output_shape)
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


def _output_shape(layer: nn.Module, example: Tensor, name: str) -> Shape:
    try:
        shape = tuple(layer(example).shape)
    except (RuntimeError, ValueError) as error:
        raise _unfit(example, error) from error
    if shape[:1] != (_BATCH,):
        raise refuse(layer, name, "it mixes samples of a batch.")
    return shape[1:]


def _unfit(example: Tensor, error: Exception) -> Refused:
    shape = tuple(example.shape[1:])
    said = str(error).partition("\n\nWhile executing")[0]  # what fx adds is about its own code
    return Refused(f"the network does not take inputs of shape {shape}: {said}")


def _refuse_refuse_kind(layer: nn.Module, name: str) -> None:
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
    own = _derived(layer, site, is_explanation=True)
    return replace(inner, derived=(own, *inner.derived), flags=(TESTED, *inner.flags))


def _derived(layer: nn.Module, site: Site, *, is_explanation: bool) -> Derived:
    return Derived(
        path=site.name,
        layer=layer,
        input_shape=site.input_shapes[0],
        is_explanation=is_explanation,
    )


class _Evaluation(fx.Interpreter):
    """A run of a trace that looks at shapes, and at values that are changed after they are made."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Shape] = {}
        self.stale: dict[fx.Node, fx.Node] = {}
        """Nodes that read a value which was changed in place, and the value."""
        self._versions: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        for source in n.all_input_nodes:
            # torch counts the changes of a tensor and all its views together.
            if source in self._versions and self.env[source]._version != self._versions[source]:
                self.stale[n] = source
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n], self._versions[n] = tuple(result.shape), result._version
        return result


def _evaluate(module: nn.Module, graph: fx.Graph, example: Tensor) -> _Evaluation:
    evaluation = _Evaluation(fx.GraphModule(module, graph))
    try:
        evaluation.run(example, enable_io_processing=False)
    except (RuntimeError, ValueError) as error:
        raise _unfit(example, error) from error
    return evaluation


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    # By all their names: a tensor that layers share has several.
    params = module.named_parameters(remove_duplicate=False)
    return dict(params) | dict(module.named_buffers(remove_duplicate=False))


class _Reading:
    """One pass over the traced forward of a module that is no leaf."""

    def __init__(self, module: nn.Module, example: Tensor, name: str) -> None:
        self.module, self.name = module, name
        stored = _tensors(module)
        versions = {path: tensor._version for path, tensor in stored.items()}
        try:
            self.graph = symbolic(module, example, _is_leaf)
        except Misfit as error:
            raise _unfit(example, error) from error
        except Exception as error:  # Anything may go wrong when strange code meets a symbol.
            raise refuse(module, name, f"its forward cannot be traced: {error}") from error
        evaluation = _evaluate(module, self.graph, example)
        for path, tensor in _tensors(module).items():
            if tensor is not stored.get(path) or tensor._version != versions[path]:
                raise refuse(module, name, f"its forward changes the tensor {path!r}.")
        self.shapes, self.stale = evaluation.shapes, evaluation.stale
        for node, shape in self.shapes.items():
            node.meta["shape"] = shape
        self.stored = stored
        self.moving = _depending(self.graph)
        self.constants: dict[fx.Node, Constant] = {}
        self.values: dict[fx.Node, int] = {}
        self.nodes: list[Node] = []
        self.derived: list[Derived | Computed] = []
        self.flags: list[str] = []

    def result(self) -> Trace:
        order = list(self.graph.nodes)
        (output,) = order[-1].args
        if isinstance(output, fx.Node) and output.op == "call_module":
            _refuse_refuse_kind(*self._layer(output))
        if not isinstance(output, fx.Node) or output not in self.moving & self.shapes.keys():
            raise refuse(self.module, self.name, "its forward does not return one tensor.")
        for node in what_it_takes(order[-1:], order):
            if node in self.stale:
                name = self.stale[node].name
                raise self._refusal(node, f"its forward reads {name!r} after it changed in place")
        calls, read = self._calls(output)
        for node in order:
            if node.op == "placeholder" and (not self.values or node in read):
                self._read_input(node)
            elif node in calls:
                self._place(node, calls[node])
            elif node in read:
                self._read_module(node)
        return Trace(
            nodes=tuple(self.nodes),
            output=self.values[output],
            derived=tuple(self.derived),
            flags=tuple(self.flags),
        )

    def _calls(self, output: fx.Node) -> tuple[dict[fx.Node, Call], set[fx.Node]]:
        """Return the calls that the output takes, and all values that it takes."""
        self._name_constants()
        calls: dict[fx.Node, Call] = {}
        read: set[fx.Node] = set()
        open_ = [output]
        while open_:
            node = open_.pop()
            if node in read:
                continue
            read.add(node)
            if node not in self.moving:
                reason = f"its forward takes the tensor {node.name!r} for a value of the network"
                raise self._refusal(node, reason)
            if node.op == "call_module":
                open_ += [source for source in node.all_input_nodes if source in self.moving]
            elif node.op != "placeholder":
                calls[node] = self._understood(node)
                open_ += calls[node].sources
        return calls, read

    def _name_constants(self) -> None:
        own = [node for node in self.graph.nodes if node not in self.moving]
        for node in own:
            if node in self.shapes:
                held = self.stored.get(str(node.target)) if node.op == "get_attr" else None
                self.constants[node] = Constant(
                    name=name_of(self.name, node),
                    shape=self.shapes[node],
                    is_stored=held is not None,
                    is_parameter=isinstance(held, nn.Parameter),
                )
        wanted = [
            node
            for node, constant in self.constants.items()
            if not constant.is_stored and any(user in self.moving for user in node.users)
        ]
        if wanted:
            calls = what_it_takes(wanted, own)
            for node in calls:
                if node.op in ("call_module", "placeholder"):
                    raise self._refusal(node, f"its forward makes a weight by {node.target!r}")
            made = Computed(path=self.name, module=self.module, calls=calls, wanted=tuple(wanted))
            self.derived.append(made)

    def _understood(self, node: fx.Node) -> Call:
        try:
            return read_call(node, self.constants)
        except NoRule as error:
            for source in node.all_input_nodes:  # what they give may have none, and be the reason
                if source.op == "call_module":
                    _refuse_refuse_kind(*self._layer(source))
            raise self._refuse_kind(node, error) from error

    def _refuse_kind(self, node: fx.Node, error: NoRule) -> Refused:
        called = getattr(node.target, "__name__", node.target)
        reason = f", which has no rule: {error}" if str(error) else ", which has no rule"
        return self._refusal(node, f"its forward calls {called!r}{reason}")

    def _read_input(self, node: fx.Node) -> None:
        if self.values:
            raise self._refusal(node, f"its forward takes a second input {node.target!r}")
        self.values[node] = 0

    def _read_module(self, node: fx.Node) -> None:
        layer, name = self._layer(node)
        _refuse_refuse_kind(layer, name)
        if len(node.args) != 1 or node.kwargs or node.all_input_nodes != list(node.args):
            raise refuse(layer, name, "it is not called with one tensor.")
        (source,) = node.all_input_nodes
        part = _read_layer(layer, self._site(node, name, (source,)))
        start, origin = len(self.nodes), self.values[source]
        for inner in part.nodes:
            inputs = tuple(origin if i == 0 else start + i for i in inner.inputs)
            self.nodes.append(replace(inner, inputs=inputs))
        self.values[node] = start + part.output if part.output else origin
        self.derived += part.derived
        self.flags += part.flags

    def _layer(self, node: fx.Node) -> tuple[nn.Module, str]:
        path = str(node.target)
        return self.module.get_submodule(path), f"{self.name}.{path}".removeprefix(".")

    def _place(self, node: fx.Node, call: Call) -> None:
        try:
            placed = call.place(self._site(node, self._path(node), call.sources))
        except NoRule as error:
            raise self._refuse_kind(node, error) from error
        inputs = tuple(self.values[source] for source in call.sources)
        for read in placed if isinstance(placed, list) else [placed]:
            self.nodes.append(Node(read=read, inputs=inputs))
            inputs = (len(self.nodes),)
        self.values[node] = len(self.nodes)

    def _site(self, node: fx.Node, name: str, sources: tuple[fx.Node, ...]) -> Site:
        for source in sources:
            if source not in self.values:
                reason = f"{node.name!r} reads {source.name!r}, which is no value of the network"
                raise self._refusal(node, reason)
        if self.shapes[node][:1] != (_BATCH,):
            raise self._refusal(node, f"{node.name!r} mixes samples of a batch")
        if len(self.shapes[node]) == 1:
            reason = "leaves a sample no axis; keep one, as with keepdim or unsqueeze(1)"
            raise self._refusal(node, f"{node.name!r} {reason}")
        return Site(
            name=name,
            input_shapes=tuple(self.shapes[source][1:] for source in sources),
            output_shape=self.shapes[node][1:],
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


def _depending(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on the arguments of the forward pass."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(one in found for one in node.all_input_nodes):
            found.add(node)
    return found
