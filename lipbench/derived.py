"""Tensors that a layer computes from its parameters and that its steps read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lipbench.steps import Shape, Tensors


@dataclass(frozen=True, kw_only=True)
class Derived:
    """The tensors of a layer's explanation, or the weights that a parametrisation makes."""

    path: str
    layer: nn.Module
    input_shape: Shape
    is_explanation: bool

    def tensors(self, known: Tensors) -> dict[str, Tensor]:
        """Return the derived tensors by name, given all parameters and buffers by name."""
        start = f"{self.path}." if self.path else ""
        own = {f"layer.{name}": known[start + name] for name in _tensors(self.layer)}
        compute = _explanation_tensors if self.is_explanation else _effective_tensors
        found = torch.func.functional_call(_Computation(self.layer, compute), own, ())
        prefix = f"{start}explain()." if self.is_explanation else start
        return {prefix + name: tensor for name, tensor in found.items()}


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
