"""Functional networks (torch.func): pure functions of their parameters, as methods see them."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from lipbench.networks.precision import Precision, products
from lipbench.networks.steps import Linear
from lipbench.refused import Refused

if TYPE_CHECKING:
    from lipbench.networks.network import Graph, Network
    from lipbench.networks.stem import Stem


@dataclass
class Meter:
    """Counts samples that one trial has sent through its network in training."""

    forwards: int = 0
    gradients: int = 0


class Skeleton:
    """The code of a network without its numbers; shared by all trials of a stack."""

    def __init__(
        self, module: nn.Module, input_shape: tuple[int, ...], precision: Precision = "full"
    ) -> None:
        """Copy the code of `module`.

        Args:
            module: A network.
            input_shape: Shape of one input.
            precision: That of the products when the network is called. Outputs, parameters and
                gradients keep their type.

        Raises:
            Refused: If two layers share a parameter: each name is trained for itself.
        """
        _refuse_shared(module)
        self.input_shape, self.precision = input_shape, precision
        self.exact = self if precision == "full" else Skeleton(module, input_shape)
        self.module = copy.deepcopy(module).to("meta").eval()
        self._training = _with_pure_batch_norm(self.module)
        self._dropout = _active_dropout(self.module)

    @cached_property
    def graph(self) -> "Graph":
        """Return the network as primitive steps.

        Raises:
            Refused: If a layer is neither primitive nor explained; the message names it.
        """
        from lipbench.networks.network import walk

        return walk(self.module, self.input_shape)

    @cached_property
    def has_stem(self) -> bool:
        """Return whether the network begins with a dense layer, and all its weights are parameters.

        A layer that is parametrised, explained or without a rule is a no, wherever it stands.
        """
        from lipbench.networks.stem import cut

        tensors = dict(self.module.named_parameters()), dict(self.module.named_buffers())
        try:
            graph = self.graph
        except Refused:
            return False
        return not graph.trace.derived and cut(graph.bind(*tensors)) is not None

    def call(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Any:
        """Return the outputs in evaluation mode."""
        return self._run(self.module, params, buffers, x)

    def train(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the outputs in training mode, and the buffers after it.

        Raises:
            Refused: If the network has active dropout, whose masks nobody draws.
        """
        if self._dropout is not None:
            raise Refused(
                f"layer {self._dropout!r} is dropout, which would be inactive in training: the "
                "masks of hidden layers cannot be drawn. Set its p to 0, or leave it out."
            )
        if self._training is None:
            return self.call(params, buffers, x), dict(buffers)
        outputs = self._run(self._training, params, buffers, x)
        fresh = dict(buffers)
        for name, layer in self._training.named_modules():
            if isinstance(layer, _PureBatchNorm):
                fresh |= {f"{name}.{key}": value for key, value in layer.fresh.items()}
                layer.fresh = {}
        return outputs, fresh

    def _run(
        self, module: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Any
    ) -> Any:
        tensors = dict(params), dict(buffers)
        # Tied weights would be put into a module in two places twice, and taken out once: no two
        # layers share a parameter here, and one module needs it once.
        run = partial(functional_call, module, tensors, (x,), tie_weights=False)
        if self.precision != "bf16":
            with products(self.precision):
                return run()
        # Without the cache, which would hand weights of one call to the next.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            outputs = run()
        return outputs.to(x.dtype)


@dataclass(frozen=True)
class Net:
    """A network with its parameters and buffers: pure functions, nothing is ever mutated."""

    skeleton: Skeleton
    params: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    is_frozen: bool = False

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch outputs"]:
        """Compute in evaluation mode (running statistics, no dropout), and count it in `meter`.

        Returns:
            The outputs.
        """
        self._count(inputs)
        return self.skeleton.call(self.params, self.buffers, inputs)

    def train(
        self, inputs: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch outputs"], dict[str, Tensor]]:
        """Compute in training mode, with batch statistics, and count it in `meter`.

        Returns:
            The outputs, and the buffers to store in the state.
        """
        self._count(inputs)
        return self.skeleton.train(self.params, self.buffers, inputs)

    @property
    def frozen(self) -> "Net":
        """Return the same network with detached parameters.

        A function that differentiates it counts its gradients in `meter` itself.
        """
        detached = {name: value.detach() for name, value in self.params.items()}
        return replace(self, params=detached, is_frozen=True)

    @property
    def exact(self) -> "Net":
        """Return the same network with all its products in full precision.

        For quotients and derivatives, which would be made of the rounding of short numbers.
        """
        return replace(self, skeleton=self.skeleton.exact)

    def with_params(self, params: Mapping[str, Tensor]) -> "Net":
        """Return the same network with some parameters replaced."""
        return replace(self, params={**self.params, **params})

    @property
    def steps(self) -> "Network":
        """Return the network as primitive steps with their current values."""
        return self.skeleton.graph.bind(self.params, self.buffers)

    @property
    def layers(self) -> tuple[Linear, ...]:
        """Return the linear steps, in order, with their current weights."""
        return self.steps.layers

    @property
    def stem(self) -> "Stem | None":
        """Return the network cut behind a first dense layer, or None if it begins otherwise.

        A call of its rest counts as one of the network.
        """
        from lipbench.networks.stem import cut

        stem = cut(self.steps) if self.skeleton.has_stem else None
        if stem is None:
            return None
        behind = stem.rest

        def rest(values: Tensor) -> Tensor:
            self._count(values)
            return behind(values)

        return replace(stem, rest=rest)

    def module(self) -> nn.Module:
        """Return an ordinary module with these numbers, in evaluation mode."""
        module = copy.deepcopy(self.skeleton.module)
        fill(module, {**self.params, **self.buffers}, assign=True)
        return module.requires_grad_(False).eval()

    def _count(self, inputs: Tensor) -> None:
        self.meter.forwards += len(inputs)
        if not self.is_frozen:
            self.meter.gradients += len(inputs)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Set the numbers of a module; of a layer in two places they have the name of the first.

    Args:
        module: The module.
        tensors: Its parameters and buffers under the names that `named_parameters` and
            `named_buffers` give them.
        assign: Whether to put these tensors in, and not copy what they hold.

    Raises:
        RuntimeError: If names or shapes do not fit.
    """
    known = dict(tensors)
    for named in (module.named_parameters, module.named_buffers):
        first = {id(value): name for name, value in named()}
        for name, value in named(remove_duplicate=False):
            if first[id(value)] in tensors:
                known[name] = tensors[first[id(value)]]
    module.load_state_dict(known, assign=assign)


class _PureBatchNorm(nn.Module):
    """Batch normalisation in training mode that leaves its new statistics in `fresh`.

    torch's own layer updates its buffers in place, which `vmap` refuses.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = layer.eps, layer.momentum
        self.weight, self.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers():
            self.register_buffer(name, buffer)
        self.fresh: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.running_mean.dtype)  # statistics of short numbers would be poor ones
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean = x.mean(axes)
        variance = (x - mean.view(shape)).square().mean(axes)
        count = x.numel() // x.shape[1]
        batches = self.num_batches_tracked + 1
        momentum = 1 / batches.to(x.dtype) if self.momentum is None else self.momentum
        unbiased = variance.detach() * count / max(count - 1, 1)
        self.fresh = {
            "running_mean": torch.lerp(self.running_mean, mean.detach(), momentum),
            "running_var": torch.lerp(self.running_var, unbiased, momentum),
            "num_batches_tracked": batches,
        }
        normal = (x - mean.view(shape)) / (variance.view(shape) + self.eps).sqrt()
        if self.weight is None:
            return normal
        return normal * self.weight.view(shape) + self.bias.view(shape)


def _refuse_shared(module: nn.Module) -> None:
    first: dict[int, str] = {}
    for path, layer in module.named_modules():
        for key, value in layer.named_parameters(recurse=False):
            name = f"{path}.{key}".lstrip(".")
            known = first.setdefault(id(value), name)
            if known != name:
                raise Refused(
                    f"parameters {known!r} and {name!r} are one tensor, and would be trained as "
                    "two: give each layer its own, or use one module in both places."
                )


def _active_dropout(module: nn.Module) -> str | None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            return name
    return None


def _with_pure_batch_norm(module: nn.Module) -> nn.Module | None:
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    ]
    if not names:
        return None
    module = copy.deepcopy(module)
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        setattr(module.get_submodule(parent), child, _PureBatchNorm(layer))
    return module
