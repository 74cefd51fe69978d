"""A forward pass as it ran on an example: its calls, their shapes, and what it may not do."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lipbench.networks.primitives import refuse
from lipbench.networks.steps import Shape
from lipbench.networks.symbolic import Leaf, Misfit, symbolic
from lipbench.refused import Refused


@dataclass(frozen=True, kw_only=True, eq=False)
class ForwardPass:
    """The calls of a module that is no leaf, on one example."""

    module: nn.Module
    name: str
    """The path of the module in the network."""
    graph: fx.Graph
    shapes: dict[fx.Node, Shape]
    """Of all values that are tensors, with the axis of the batch."""
    stale: dict[fx.Node, fx.Node]
    """Nodes that read a value which was changed in place, and the value."""
    stored: dict[str, Tensor]
    """Parameters and buffers by all their names."""
    moving: set[fx.Node]
    """The nodes that depend on the arguments of the forward pass."""

    def layer(self, node: fx.Node) -> tuple[nn.Module, str]:
        """Return the layer that a node calls, and its path in the network."""
        path = str(node.target)
        return self.module.get_submodule(path), f"{self.name}.{path}".removeprefix(".")

    def path(self, node: fx.Node) -> str:
        """Return the path of the module whose forward makes a call, and the call."""
        return ".".join(segment for segment in (self.name, _caller(node), node.name) if segment)

    def refusal(self, node: fx.Node, reason: str) -> Refused:
        """Return the refusal of a node; it names the module whose forward makes the call."""
        path = _caller(node)
        name = ".".join(segment for segment in (self.name, path) if segment)
        return refuse(self.module.get_submodule(path), name, f"{reason}.")


def run_forward(module: nn.Module, example: Tensor, name: str, is_leaf: Leaf) -> ForwardPass:
    """Run the forward pass of a module, which must leave the module as it was.

    Args:
        module: The module.
        example: What it is called with: a batch.
        name: The path of the module in the network.
        is_leaf: Whether a layer is read as one, and not through its forward.

    Returns:
        What was seen.

    Raises:
        Refused: If it cannot be traced, does not take the example, or changes a tensor.
    """
    stored = _tensors(module)
    versions = {path: tensor._version for path, tensor in stored.items()}
    graph = _traced(module, example, name, is_leaf)
    evaluation = _evaluated(module, graph, example)
    _refuse_changes(module, name, stored, versions)
    for node, shape in evaluation.shapes.items():
        node.meta["shape"] = shape
    return ForwardPass(
        module=module,
        name=name,
        graph=graph,
        shapes=evaluation.shapes,
        stale=evaluation.stale,
        stored=stored,
        moving=_depending(graph),
    )


def unfit(example: Tensor, error: Exception) -> Refused:
    """Return the refusal of a module that raised an error when it met an example."""
    shape = tuple(example.shape[1:])
    said = str(error).partition("\n\nWhile executing")[0]  # what fx adds is about its own code
    return Refused(f"the network does not take inputs of shape {shape}: {said}")


def _caller(node: fx.Node) -> str:
    """Return the path, in the module that was traced, of the module whose forward makes a call."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return stack[-1] if stack else ""


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    # By all their names: a tensor that layers share has several.
    params = module.named_parameters(remove_duplicate=False)
    return dict(params) | dict(module.named_buffers(remove_duplicate=False))


def _traced(module: nn.Module, example: Tensor, name: str, is_leaf: Leaf) -> fx.Graph:
    try:
        return symbolic(module, example, is_leaf)
    except Misfit as error:
        raise unfit(example, error) from error
    except Exception as error:  # Anything may go wrong when strange code meets a symbol.
        raise refuse(module, name, f"its forward cannot be traced: {error}") from error


def _evaluated(module: nn.Module, graph: fx.Graph, example: Tensor) -> "_Evaluation":
    evaluation = _Evaluation(fx.GraphModule(module, graph))
    try:
        evaluation.run(example, enable_io_processing=False)
    except (RuntimeError, ValueError) as error:
        raise unfit(example, error) from error
    return evaluation


def _refuse_changes(
    module: nn.Module, name: str, stored: dict[str, Tensor], versions: dict[str, int]
) -> None:
    for path, tensor in _tensors(module).items():
        if tensor is not stored.get(path) or tensor._version != versions[path]:
            raise refuse(module, name, f"its forward changes the tensor {path!r}.")


class _Evaluation(fx.Interpreter):
    """A run of a trace that records shapes, and reads of values that were changed in place."""

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


def _depending(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on the arguments of the forward pass."""
    moving: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in moving for source in node.all_input_nodes):
            moving.add(node)
    return moving
