"""1-Lipschitz networks by construction: what such methods share."""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.layers.normalise import Normalise
from lipbench.layers.sorting import MaxMin
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.method import Claim, Method, Params, Scalars, State, Strength
from lipbench.networks.net import Net
from lipbench.networks.network import walk
from lipbench.networks.sequential import LayerSite, layer_sites
from lipbench.networks.steps import AveragePool, MaxPool, Scale, Slope
from lipbench.norm import Norm
from lipbench.ranges import Rule, finite_at_least, finite_positive, require
from lipbench.refused import Refused

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data

_L2 = Norm(2)


@dataclass(frozen=True, kw_only=True)
class Contractive(Method):
    """Train parameters V and use layers made of them that are 1-Lipschitz in l2 for every V.

    The objective is the offset cross entropy t·CE((z - u·e_y)/t, y), with z the logits, e_y the
    unit vector of the label, u the `offset` and t the `temperature`: without an offset a network
    that cannot scale its logits would not ask for margins.

    The network that is trained has plain layers, or layers that explain themselves, and V are
    their parameters; `explicit` makes of V the parameters in effect, of the same names and
    shapes. Those are what a checkpoint holds, so that it is a network like any other.

    A subclass says what replaces a layer (`layer`), what makes it 1-Lipschitz (`explicit`), which
    layers it cannot replace (`misfit_reason`), and which of its layers hold an activation
    (`holds_activation`).

    Source:
        Prach, Lampert, Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks
        (ECCV 2022), https://arxiv.org/abs/2208.03160, for the loss, with u = √2 and t = 1/4.
        Prach, Brau, Buttazzo, Lampert, 1-Lipschitz Layers Compared (CVPR 2024),
        https://arxiv.org/abs/2311.16833, with u = 2√2·36/255.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="offset", scale=0.1)

    offset: float = 2 * math.sqrt(2) * 36 / 255
    """By how much the label's logit must lead, in units of logits; one pixel unit moves the
    difference of two logits by at most √2. Beyond the leads that a network can have, more of it
    changes nothing: a target accuracy below the one that is left then is not reached."""
    temperature: float = 0.25
    """What logits are divided by in the cross entropy, in units of logits."""
    activation: Literal["maxmin", "relu", "keep"] = "maxmin"
    """What stands between layers: sorted pairs of channels, ReLU, or what the model has."""

    def __post_init__(self) -> None:
        require(*self.ranges())

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep; a subclass adds its own."""
        return (
            finite_at_least("offset", self.offset, 0),
            finite_positive("temperature", self.temperature),
        )

    def layer(self, site: LayerSite, rng: torch.Generator) -> nn.Module:
        """Return what replaces a dense or convolutional layer, with its initial V.

        Here it is the layer itself, whose weight starts orthogonal: a convolution's as the
        orthogonal matrix of its channels in the middle of the kernel, and 0 elsewhere.
        """
        layer = copy.deepcopy(site.layer)
        assert isinstance(layer.weight, Tensor)
        start_orthogonal(layer.weight, rng)
        return layer

    def explicit(self, layer: nn.Module, raw: Params, *, is_final: bool) -> Params:
        """Return the parameters in effect of a layer that `layer` returned.

        What is not returned stays as it is: here everything, for layers that are contractive by
        themselves. This is pure tensor code that runs under `torch.func.vmap`, unless `is_final`:
        then `raw` is in float64, and iterations must converge.

        Args:
            layer: The layer, whose own numbers have no meaning.
            raw: The parameters that are trained, by their names in the layer.
            is_final: Whether the network is to be saved and judged.
        """
        return {}

    def in_effect(self, net: Net, state: State, *, is_final: bool = False) -> tuple[Params, State]:
        """Return what `explicit` makes of all layers, by names in the network, and the state.

        A method that carries something from step to step, such as singular vectors, has this in
        place of `explicit`.
        """
        effective: Params = {}
        for path, layer in net.skeleton.module.named_children():
            names = [name for name, _ in layer.named_parameters()]
            if names:
                raw = {name: net.params[f"{path}.{name}"] for name in names}
                made = self.explicit(layer, raw, is_final=is_final)
                effective |= {f"{path}.{name}": value for name, value in made.items()}
        return effective, state

    def misfit_reason(self, site: LayerSite) -> str | None:
        """Return why a dense or convolutional layer cannot be replaced, or None."""
        return None

    def holds_activation(self, site: LayerSite) -> bool:
        """Return whether what replaces a layer holds an activation: none follows it then."""
        return False

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why the method cannot train this network on these data, or None."""
        if data.task != "classification":
            return "the offset cross entropy needs classes"
        try:
            holds_activation, owners = False, dict[int, str]()
            for site in layer_sites(model, data.dataset.input_shape):
                _refuse_shared(site, owners)
                self._check(site, holds_activation=holds_activation)
                holds_activation = (
                    self.holds_activation(site) if site.is_linear else holds_activation
                )
        except Refused as refusal:
            return str(refusal).removesuffix(".")
        return None

    def build(
        self, model: nn.Module, input_shape: tuple[int, ...], rng: torch.Generator
    ) -> nn.Module:
        """Return the network with its layers and activations replaced.

        An activation behind the last layer stays.
        """
        layers: list[nn.Module] = []
        holds_activation = False
        for site in layer_sites(model, input_shape):
            if site.is_linear:
                layers.append(self.layer(site, rng))
                holds_activation = self.holds_activation(site)
            elif not site.is_activation or site.is_last:
                layers.append(site.layer)
            elif not holds_activation:
                kinds = {"maxmin": MaxMin, "relu": nn.ReLU}
                kind = kinds.get(self.activation)
                layers.append(site.layer if kind is None else kind())
        return nn.Sequential(*layers)

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean offset cross entropy of the batch for the parameters in effect."""
        params, state = self.in_effect(net, state)
        outputs, buffers = net.with_params(params).train(batch.inputs)
        classes = torch.arange(outputs.shape[1], device=outputs.device)
        one_hot = (classes == batch.targets.unsqueeze(1)).to(outputs.dtype)
        scaled = (outputs - h["offset"] * one_hot) / h["temperature"]
        return h["temperature"] * batch.loss(scaled), {**state, "buffers": buffers}

    def effective(self, net: Net, state: State, h: Scalars) -> Params:
        """Return the parameters in effect."""
        return {**net.params, **self.in_effect(net, state)[0]}

    def finish(self, net: Net, state: State, data: "Data", h: Scalars) -> Params:
        """Return the parameters in effect, computed in float64 and with converged iterations."""
        double = {name: value.detach().double() for name, value in net.params.items()}
        effective, _ = self.in_effect(net.with_params(double), state, is_final=True)
        return {
            **net.params,
            **{name: value.to(net.params[name].dtype) for name, value in effective.items()},
        }

    def claims(self, net: Net) -> Claim:
        """Return the product of the constants of pooling, activations and normalisation."""
        kinds = (Scale, Slope, MaxPool, AveragePool)
        rest = [constant(step, _L2) for step in net.steps.steps if isinstance(step, kinds)]
        # Weights are stored in single precision: every factor is rounded once.
        return Claim(norm=_L2, constant=math.prod(rest, start=1.0), tolerance=1e-5)

    def _check(self, site: LayerSite, *, holds_activation: bool) -> None:
        """Raise a refusal if the network with this layer would not be contractive."""
        if site.is_linear:
            reason = _strange(site) or self.misfit_reason(site)
        elif not site.is_activation or site.is_last:
            reason = _expansion(site)
        elif holds_activation:
            reason = None
        else:
            reason = _expansion(site) if self.activation == "keep" else self._odd(site)
        if reason is not None:
            raise site.refusal(reason)

    def _odd(self, site: LayerSite) -> str | None:
        channels = site.input_shape[0]
        if self.activation == "relu" or channels % 2 == 0:
            return None
        return f"{channels} channels are no pairs to sort; make them even or set activation"


def start_orthogonal(weight: Float[Tensor, "out in *kernel"], rng: torch.Generator) -> None:
    """Fill a weight, in place, with an orthogonal matrix, in the middle of a kernel."""
    with torch.no_grad():
        matrix = torch.empty(weight.shape[:2])
        nn.init.orthogonal_(matrix, generator=rng)
        middle = weight.zero_()
        for size in weight.shape[2:]:
            middle = middle.select(2, size // 2)
        middle.copy_(matrix)


def _refuse_shared(site: LayerSite, owners: dict[int, str]) -> None:
    """Refuse a layer with a weight that a layer before it has, too, and remember its own.

    What replaces the two would train apart.
    """
    if site.is_linear:
        first = owners.setdefault(id(site.layer.weight), site.name)
        if first != site.name:
            raise site.refusal(f"it shares its weight with layer {first}, and layers are replaced")


def _strange(site: LayerSite) -> str | None:
    """Return what a convolution has that no method replaces."""
    layer = site.layer
    if not isinstance(layer, nn.Conv2d):
        return None
    if layer.groups != 1:
        return f"groups of channels have no version, got groups {layer.groups}"
    if layer.padding_mode not in ("zeros", "circular"):
        return f"padding with copies may expand distances, got {layer.padding_mode!r}"
    if layer.padding_mode == "circular" and _repeats(site, layer):
        return "its circular padding is so wide that outputs repeat"
    if layer.padding_mode == "circular" and _wraps_unevenly(site, layer):
        return (
            f"its circular padding reads some pixels more often than others, for the stride "
            f"{layer.stride} does not divide the image, of size {site.input_shape[1:]}"
        )
    return None


def _repeats(site: LayerSite, layer: nn.Conv2d) -> bool:
    sizes = zip(site.input_shape[1:], site.output_shape[1:], layer.stride, strict=True)
    return any(stride * (outside - 1) >= inside for inside, outside, stride in sizes)


def _wraps_unevenly(site: LayerSite, layer: nn.Conv2d) -> bool:
    """Return whether windows overlap more around the edges than their size and stride say.

    Orthogonal kernels with strides are divided by the overlaps that there are elsewhere.
    """
    if isinstance(layer.padding, str):
        return False  # "same", which torch has for stride 1 only, or none
    sizes = zip(site.input_shape[1:], layer.stride, layer.padding, strict=True)
    return any(padding > 0 and inside % stride > 0 for inside, stride, padding in sizes)


def _expansion(site: LayerSite) -> str | None:
    """Return why a layer that stays could expand distances."""
    if isinstance(site.layer, Normalise):
        return None  # What it does to distances is claimed.
    if isinstance(site.layer, nn.PReLU):
        return "its slope is trained, and may expand distances"
    params, buffers = dict(site.layer.named_parameters()), dict(site.layer.named_buffers())
    network = walk(site.layer, site.input_shape).bind(params, buffers)
    most = math.prod(constant(step, _L2) for step in network.steps)
    return f"it can expand distances {most:.4g} times" if most > 1 + 1e-8 else None
