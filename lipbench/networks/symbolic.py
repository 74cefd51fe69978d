"""Symbolic execution: a forward pass as a graph of calls, read while it runs on an example."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

_FACTS = {"ndim", "dtype", "layout"}
_PLACES = {"device", "is_cuda"}
_MEASURES = {"dim", "ndimension", "is_floating_point", "is_contiguous"}
"""What a forward pass may ask of a value, and be told as it is for the example."""

Leaf = Callable[[nn.Module], bool]


class Misfit(ValueError):
    """A module does not take an example."""


def symbolic(module: nn.Module, example: Tensor, is_leaf: Leaf) -> fx.Graph:
    """Return the calls that a forward pass makes.

    Sizes are numbers, as the example has them, and arguments beside the input have their defaults:
    the graph is that of one shape of the input, and of as many samples. It does not depend on
    values, of which nothing is known meanwhile: what has a size that depends on them cannot be
    traced.

    Raises:
        Misfit: If the module does not take the example.
        Exception: Anything that strange code does when it meets a symbol.
    """
    try:
        outputs = _leaf_outputs(module, example, is_leaf)
    except (RuntimeError, ValueError) as error:
        raise Misfit(error) from error
    return _Tracer(example, outputs, is_leaf).trace(module)


def attribute(module: nn.Module, path: str) -> Any:
    """Return a tensor that a module holds, whether it is registered there or not."""
    *parents, name = path.split(".")
    # Not by getattr, which gives a symbol while the module is traced.
    for parent in parents:
        module = module._modules[parent]  # type: ignore[assignment]
    namespaces: tuple[Mapping[str, Any], ...] = (module._parameters, module._buffers, vars(module))
    return next(namespace[name] for namespace in namespaces if name in namespace)


def _leaf_outputs(module: nn.Module, example: Tensor, is_leaf: Leaf) -> list[Any]:
    """Return what the calls of leaves return, in their order."""
    outputs: list[Any] = []
    inside = 0

    def enter(layer: nn.Module, inputs: Any) -> None:
        nonlocal inside
        inside += 1

    def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal inside
        inside -= 1
        if not inside:
            outputs.append(output)

    hooks = [
        hook
        for layer in module.modules()
        if layer is not module and is_leaf(layer)
        for hook in (
            layer.register_forward_pre_hook(enter),
            layer.register_forward_hook(leave, always_call=False),
        )
    ]
    try:
        module(example.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, example: Tensor, outputs: list[Any], is_leaf: Leaf) -> None:
        super().__init__()
        self.example, self._outputs, self._is_leaf = example, iter(outputs), is_leaf
        self.values: dict[fx.Node, Any] = {}
        """What each node gives, without numbers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, (root, first, *defaulted) = super().create_args_for_root(root_fn, is_module)
        return function, [root, first, *map(_default, defaulted)]

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind != "output":
            self.values[node] = self._value(node)
        return node

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "placeholder":
            return args[0] if args else None if self.values else _shadow(self.example)
        if node.op == "call_module":
            return tree_map_only(Tensor, _shadow, next(self._outputs))
        if node.op == "get_attr":
            return _shadow(attribute(self.root, str(node.target)))
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _shadow(value: Tensor) -> Tensor:
    return value.detach().to("meta")


def _default(argument: Any) -> Any:
    if not isinstance(argument, fx.Proxy) or not argument.node.args:
        return argument
    return argument.node.args[0]


def _in_place(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def operate(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return operate


class _Samples(int):
    """How many samples there are, which a shape may be made of, and nothing may be decided by."""

    def _refused(self, other: object) -> bool:
        raise fx.proxy.TraceError("what it does depends on the number of samples")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refused
    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        return self._refused(0)

    def __mul__(self, other: int) -> "_Samples":
        return _Samples(int(self) * int(other))

    def __add__(self, other: int) -> "_Samples":
        return _Samples(int(self) + int(other))

    def __floordiv__(self, other: int) -> "_Samples":
        return _Samples(int(self) // int(other))

    def __sub__(self, other: int) -> "_Samples":
        return _Samples(int(self) - int(other))

    __rmul__, __radd__ = __mul__, __add__


class _Proxy(fx.Proxy):
    # torch's own takes `x += y` for `x = x + y`, which leaves other names of x as they were.
    __iadd__ = _in_place(operator.iadd)
    __isub__ = _in_place(operator.isub)
    __imul__ = _in_place(operator.imul)
    __itruediv__ = _in_place(operator.itruediv)

    @property
    def _value(self) -> Any:
        return self.tracer.values.get(self.node)  # type: ignore[attr-defined]

    def __getattr__(self, k: str) -> Any:
        if isinstance(self._value, Tensor) and k in _FACTS | _MEASURES:
            return getattr(self._value, k)
        if isinstance(self._value, Tensor) and k in _PLACES:
            return getattr(self.tracer.example, k)  # type: ignore[attr-defined]
        if isinstance(self._value, Tensor) and k in ("shape", "size"):
            samples, *lengths = self._value.shape or (0,)
            sizes = (_Samples(samples), *lengths)[: self._value.ndim]
            if k == "shape":
                return sizes
            return lambda dim=None: sizes if dim is None else sizes[dim]
        return super().__getattr__(k)

    def __len__(self) -> int:
        # That of a value is its number of samples, and Python makes a plain number of it.
        return super().__len__() if isinstance(self._value, Tensor) else len(self._value)

    def __iter__(self) -> Any:
        if isinstance(self._value, tuple | list):
            return (operator.getitem(self, number) for number in range(len(self._value)))
        return super().__iter__()
