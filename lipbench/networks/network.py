"""A network as primitive steps: what every bound, and every method that measures layers, reads."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lipbench.networks.determinism import irregularity
from lipbench.networks.effective_weights import LayerWeights
from lipbench.networks.explain import check_explanation, check_slopes
from lipbench.networks.primitives import refuse
from lipbench.networks.sorted_groups import with_sorted_groups
from lipbench.networks.steps import Linear, Shape, Slope, Step
from lipbench.networks.tracing import Trace, trace

_TOLERANCE = 1e-8


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A function as steps, each reading the input or the results of earlier steps."""

    input_shape: Shape
    steps: tuple[Step, ...]
    output: int
    """Which value is returned: 0 is the input, i + 1 the result of step i."""
    flags: tuple[str, ...] = ()
    """What was tested and not proved, for the values that rest on it."""

    @property
    def layers(self) -> tuple[Linear, ...]:
        """Return the linear steps in order."""
        return tuple(step for step in self.steps if isinstance(step, Linear))

    @property
    def is_chain(self) -> bool:
        """Return whether each step reads the result of the one before, and no other."""
        in_order = all(step.inputs == (i,) for i, step in enumerate(self.steps))
        return in_order and self.output == len(self.steps)

    @property
    def output_shape(self) -> Shape:
        """Return the shape of one output."""
        return self.steps[self.output - 1].output_shape if self.output else self.input_shape

    @property
    def input_size(self) -> int:
        """Return how many numbers one input has."""
        return math.prod(self.input_shape)

    @property
    def output_size(self) -> int:
        """Return how many numbers one output has."""
        return math.prod(self.output_shape)

    @property
    def weights(self) -> int:
        """Return how many numbers the weights of all linear steps have, biases left out."""
        return sum(layer.weight.numel() for layer in self.layers)

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return the network's outputs, computed through its own steps."""
        values = [inputs]
        for step in self.steps:
            values.append(step(*[values[i] for i in step.inputs]))
        return values[self.output]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The structure of a network, without its parameters."""

    input_shape: Shape
    trace: Trace

    def bind(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Network:
        """Return the network with these parameters and buffers, named as in the module.

        This is pure tensor code: the tensors may be stacked by `torch.func.vmap`, and gradients
        flow through them.
        """
        tensors = {**params, **buffers}
        for derived in self.trace.derived:
            tensors |= derived.tensors(tensors)
        steps = tuple(replace(node.read(tensors), inputs=node.inputs) for node in self.trace.nodes)
        return Network(
            input_shape=self.input_shape,
            steps=steps,
            output=self.trace.output,
            flags=tuple(dict.fromkeys(self.trace.flags)),
        )


def walk(module: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """Return the steps of a module in its present mode, for inputs of this shape.

    A layer or function that has no rule, or is no fixed function in train mode, is `Refused`: the
    message names it by path and class.
    """
    return Graph(input_shape=tuple(input_shape), trace=trace(module, tuple(input_shape)))


def as_network(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> Network:
    """Return a copy of a module as steps on the CPU, checked against the module itself.

    Explanations, claimed slopes and the walk's own reading are tested: a weight that was read
    wrongly must never give a bound. What fails is `Refused`, as is a layer without a rule, a weight
    that is no finite real number, and a module that does not answer an input in one way.

    Args:
        module: The network, in the mode in which it is to be judged.
        input_shape: Shape of one input.
        dtype: Numbers to compute in; what is certified needs float64.
    """
    _refuse_strange_numbers(module)
    _refuse_remade_weights(module)
    module = copy.deepcopy(module).to("cpu", dtype)
    graph = walk(module, input_shape)
    # By all their names: a tensor that layers share has several.
    named = module.named_parameters(remove_duplicate=False)
    params = {name: tensor.detach() for name, tensor in named}
    buffers = dict(module.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        network = graph.bind(params, buffers)
    for derived in graph.trace.derived:
        if isinstance(derived, LayerWeights) and derived.is_explanation:
            check_explanation(derived.path, derived.layer, derived.input_shape)
    for step in network.steps:
        if isinstance(step, Slope) and step.claimed:
            check_slopes(step)
    steps, output = with_sorted_groups(network.input_shape, network.steps, network.output)
    network = replace(network, steps=steps, output=output)
    _compare(network, module, dtype)
    return network


def _refuse_strange_numbers(module: nn.Module) -> None:
    for path, layer in module.named_modules():
        tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if is_lazy(tensor):
                raise refuse(
                    layer, path, f"its {name} has no shape yet; call it on an input first."
                )
            if tensor.is_complex():
                raise refuse(layer, path, f"its {name} is complex; only real numbers have a rule.")
            if not tensor.isfinite().all():
                raise refuse(layer, path, f"its {name} has entries that are NaN or infinite.")


def _refuse_remade_weights(module: nn.Module) -> None:
    # Before the copy, which such a layer does not survive.
    for path, layer in module.named_modules():
        for hook in layer._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils"):
                raise refuse(
                    layer,
                    path,
                    f"its weight is made anew by {type(hook).__name__}, a hook; take the same from "
                    "torch.nn.utils.parametrizations, or remove the hook first.",
                )


def _compare(network: Network, module: nn.Module, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(12, *network.input_shape, generator=rng, dtype=dtype)
    scales = torch.tensor([0.1, 1.0, 10.0], dtype=dtype).repeat(4)
    inputs = noise * scales.reshape(-1, *[1] * len(network.input_shape))
    try:
        with torch.no_grad():
            expected, actual = module(inputs.clone()), network(inputs.clone())
    except RuntimeError as error:
        raise refuse(module, "", f"it cannot be evaluated in {dtype}: {error}") from error
    if not bool(expected.isfinite().all()):
        raise refuse(module, "", f"its outputs are not finite in {dtype}, for ordinary inputs.")
    reason = irregularity(module, inputs)
    if reason is not None:
        raise refuse(module, "", f"{reason}; bounds are of functions, which do not.")
    unit = max(_TOLERANCE, 1e4 * torch.finfo(dtype).eps)
    scale = 1 + float(expected.abs().max())
    if expected.shape != actual.shape or not float((actual - expected).abs().max()) <= unit * scale:
        raise refuse(module, "", "its steps, as they were read, compute another function.")
