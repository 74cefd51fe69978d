"""Layers of another library as a method: it makes the weights, and the network stays plain."""

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.method import Params, Scalars, State
from lipbench.method_families.contractive import Contractive
from lipbench.networks.net import Net
from lipbench.networks.sequential import LayerSite
from lipbench.ranges import Rule

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data

_PASSES = 200
_STILL = 1e-11
"""Share of its size by which a converged weight may change in a pass."""


class Slot(nn.Module):
    """A plain layer, and beside it the parameters that a library makes its weight of."""

    def __init__(self, plain: nn.Module, raw: list[Tensor]) -> None:
        """Take the plain layer, and the parameters that are trained."""
        super().__init__()
        self.plain = plain
        self.raw = nn.ParameterList(raw)

    def forward(self, inputs: Any) -> Any:  # no tensor while the walker reads it
        """Return the result of the plain layer."""
        return self.plain(inputs)


@dataclass(frozen=True, kw_only=True)
class LibraryMethod(Contractive):
    """Train the parameters of a library's layers, and keep a plain network with their weights.

    A library's layer computes a weight from parameters of its own, and changes vectors of power
    iterations while it does. Here it does that, in its training mode, for each step, and the
    weight goes to the plain layer that is trained in its place. So a checkpoint is a network that
    every bound reads, and it takes no library to load it. The vectors belong to the state. What is
    saved is the library's weight in float64, after as many passes as it takes to stand still.

    The library's word for a constant of 1 is the claim, which bounds prove or refute. It is not
    stackable: a library's layer is no pure tensor code.
    """

    stackable: ClassVar[bool] = False
    package: ClassVar[str]
    """Module to import."""
    extra: ClassVar[str]
    """The extra of lipbench that installs it."""
    kinds: ClassVar[tuple[str, ...]]
    """What `variant` may be, the first one if nothing is said."""

    variant: str = ""
    """Which of the library's layers: the part of the name after the colon."""

    def __post_init__(self) -> None:
        if not self.variant:
            object.__setattr__(self, "variant", self.kinds[0])
        super().__post_init__()

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            (
                self.variant in self.kinds,
                f"{self.extra}:{self.variant} is not offered; there are {', '.join(self.kinds)}",
            ),
        )

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """Return the names that `variant` may take.

        Raises:
            ModuleNotFoundError: If the library is not installed.
        """
        if not is_installed(cls.package):
            raise ModuleNotFoundError(_absent(cls))
        return cls.kinds

    @abstractmethod
    def made(self, layer: nn.Module) -> nn.Module:
        """Return the library's layer, without a bias, in the place of a dense one or a convolution.

        It begins with a draw from torch's own generator, in torch's default type.
        """

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return that the library is not installed, or why a layer has no version, or None."""
        if not is_installed(self.package):
            return _absent(type(self))
        return super().refuses(model, data)

    def layer(self, site: LayerSite, rng: torch.Generator) -> nn.Module:
        """Return a plain layer with the library's parameters beside it."""
        plain = copy.deepcopy(site.layer)
        layer = self._library_layer(plain, rng, torch.get_default_dtype())
        with torch.no_grad():
            plain.get_parameter("weight").copy_(_weight(layer))
        return Slot(plain, [value.detach().clone() for value in _trained(layer)])

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return what the library's layers keep between steps."""
        library: dict[str, Tensor] = {}
        self._layers(net)
        for path, slot in _slots(net):
            raw = _raw(net, path, slot)
            layer = self._library_layer(slot.plain, rng, raw[0].dtype).to(raw[0].device)
            _load(_trained(layer), raw)
            with torch.no_grad():
                _weight(layer)  # a first pass, as each step takes one
            library |= {f"{path}.{name}": value.clone() for name, value in _kept(layer)}
        return {"library": library}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean offset cross entropy for the weights that the library makes."""
        params: Params = {}
        library = dict(state["library"])
        layers = self._layers(net)
        for path, slot in _slots(net):
            layer = layers[path]
            names = [f"{path}.{name}" for name, _ in _kept(layer)]
            computation = _Pass(layer, [library[name] for name in names])
            params[f"{path}.plain.weight"] = _Weight.apply(computation, *_raw(net, path, slot))
            library |= dict(zip(names, computation.kept, strict=True))
        value, state = super().loss(net.with_params(params), batch, state, draw, h)
        return value, {**state, "library": library}

    def effective(self, net: Net, state: State, h: Scalars) -> Params:
        """Return the network with the weights of the next step."""
        params = dict(net.params)
        layers = self._layers(net)
        for path, slot in _slots(net):
            layer = layers[path]
            _load(
                [value for _, value in _kept(layer)],
                _kept_values(state["library"], path, layer),
            )
            _load(_trained(layer), _raw(net, path, slot))
            with torch.no_grad():
                params[f"{path}.plain.weight"] = _weight(layer).clone()
        return params

    def finish(self, net: Net, state: State, data: "Data", h: Scalars) -> Params:
        """Return the network with the weights that the library makes in the end."""
        params = dict(net.params)
        for path, slot in _slots(net):
            layer = self._library_layer(slot.plain, torch.Generator().manual_seed(0), torch.float64)
            layer = layer.to(params[f"{path}.plain.weight"].device)
            _load(
                [value for _, value in _kept(layer)],
                _kept_values(state["library"], path, layer),
            )
            _load(_trained(layer), _raw(net, path, slot))
            params[f"{path}.plain.weight"] = _settled(layer).to(params[f"{path}.plain.weight"])
        return params

    def _layers(self, net: Net) -> dict[str, nn.Module]:
        """Return the library's layers of a network, with stale numbers: each use loads its own.

        They are kept, for the library cannot make them inside of a transform of `torch.func`, and
        `start` makes them before.
        """
        like = next(iter(net.params.values()))
        layers = tuple((path, repr(slot.plain)) for path, slot in _slots(net))
        key = (type(self), repr(self), like.dtype, like.device, layers)
        if key not in _LAYERS:
            rng = torch.Generator().manual_seed(0)
            _LAYERS[key] = {
                path: self._library_layer(slot.plain, rng, like.dtype).to(like.device)
                for path, slot in _slots(net)
            }
        return _LAYERS[key]

    def _library_layer(
        self, plain: nn.Module, rng: torch.Generator, dtype: torch.dtype
    ) -> nn.Module:
        with _drawing(rng, dtype):
            return self.made(plain).train()


def is_installed(package: str) -> bool:
    """Return whether a module, or a part of one, can be imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # a part of a package that is absent
        return False


_LAYERS: dict[tuple[Any, ...], dict[str, nn.Module]] = {}


class _Pass:
    """A forward pass from parameters to a weight in the library, with the graph for backward."""

    def __init__(self, layer: nn.Module, kept: list[Tensor]) -> None:
        self.layer = layer
        self.kept = kept
        """What the layer keeps: before the computation, and then after it."""

    def forward(self, raw: tuple[Tensor, ...]) -> Tensor:
        self.trained = _trained(self.layer)
        _load(self.trained, raw)
        _load([value for _, value in _kept(self.layer)], self.kept)
        with torch.enable_grad():
            self.weight = _weight(self.layer)
        self.kept = [value.clone() for _, value in _kept(self.layer)]
        return self.weight.detach().clone()

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(self.weight, self.trained, gradient, allow_unused=True)
        pairs = zip(gradients, self.trained, strict=True)
        return tuple(torch.zeros_like(p) if g is None else g for g, p in pairs)


class _Weight(torch.autograd.Function):
    """A weight as a function of parameters, for `torch.func`, which the library knows nothing of.

    Inside these two functions tensors are ordinary ones.
    """

    @staticmethod
    def forward(computation: _Pass, *raw: Tensor) -> Tensor:
        return computation.forward(raw)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.computation = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_Back.apply(ctx.computation, gradients[0]))


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(computation: _Pass, gradient: Tensor) -> tuple[Tensor, ...]:
        return computation.backward(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


def _absent(method: type[LibraryMethod]) -> str:
    return f'{method.package} is not installed: pip install "lipbench[{method.extra}]"'


def _slots(net: Net) -> Iterator[tuple[str, Slot]]:
    for path, layer in net.skeleton.module.named_children():
        if isinstance(layer, Slot):
            yield path, layer


def _raw(net: Net, path: str, slot: Slot) -> list[Tensor]:
    return [net.params[f"{path}.raw.{number}"] for number in range(len(slot.raw))]


def _trained(layer: nn.Module) -> list[Tensor]:
    """Return the parameters of a library's layer that it trains."""
    return [value for value in layer.parameters() if value.requires_grad]


def _kept(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the tensors that a library's layer changes by itself: fixed ones, and buffers."""
    fixed = [(name, value) for name, value in layer.named_parameters() if not value.requires_grad]
    return [*((name, value.detach()) for name, value in fixed), *layer.named_buffers()]


def _kept_values(library: dict[str, Tensor], path: str, layer: nn.Module) -> list[Tensor]:
    return [library[f"{path}.{name}"] for name, _ in _kept(layer)]


def _load(into: list[Tensor], values: "list[Tensor] | tuple[Tensor, ...]") -> None:
    with torch.no_grad():
        for target, value in zip(into, values, strict=True):
            target.copy_(value)


def _weight(layer: nn.Module) -> Tensor:
    """Let a library's layer make its weight anew, which may move its vectors.

    Returns:
        The weight.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _settled(layer: nn.Module) -> Float[Tensor, "out *rest"]:
    """Take passes of a library's layer until its weight stands still.

    Returns:
        The weight, converged.
    """
    with torch.no_grad():
        weight = _weight(layer).clone()
        for _ in range(_PASSES):
            before, weight = weight, _weight(layer).clone()
            if float((weight - before).norm()) <= _STILL * float(weight.norm()):
                break
    return weight


@contextmanager
def _drawing(rng: torch.Generator, dtype: torch.dtype) -> Iterator[None]:
    """Seed torch's own generator from a stream, and set the default type, for a while."""
    seed, before = int(torch.randint(2**31, (), generator=rng)), torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
