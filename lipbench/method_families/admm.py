"""ADMM: training under LipSDP's matrix inequality, by alternating directions."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.semidefinite import conic
from lipbench.lipschitz.semidefinite.dense_layers import Layers, Multipliers, Weights
from lipbench.lipschitz.semidefinite.inequality import Inequality
from lipbench.method import Method, Params, Scalars, State, Summary
from lipbench.method_families.penalty import parameter_penalty
from lipbench.networks.net import Net
from lipbench.ranges import Rule, at_least, between, finite_positive, require
from lipbench.refused import Refused

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data

_ROOM = 1e-6
"""By how much stored weights are smaller than the solution: single precision rounds them."""


@dataclass(frozen=True, kw_only=True)
class Alternating(Method):
    """Train the weights W on the loss, and keep a copy V of them that obeys LipSDP.

    The augmented Lagrangian is loss(W) + r/2 ‖W - V‖² + ⟨Y, W - V⟩. Between two rounds the loss
    steps lower it in W and the biases. A round sets V to its minimum over the copies that the
    matrix inequality allows, with multipliers T that are fixed when the warm start ends, and adds
    r(W - V) to Y. The network that is returned has the weights V and the biases of W.

    It is not stackable: a round solves a semidefinite program.
    """

    r: float = 2.0
    """Weight of ½‖W - V‖², and length of the steps of Y."""
    rounds: int = 100
    """Rounds, spread evenly over the epochs; with fewer epochs there is one after each."""
    warm_start: float = 1 / 3
    """Share of the epochs before the Lagrangian, which train on loss and weight decay alone."""
    weight_decay: float = 5e-4
    """Weight of ½‖θ‖² of all parameters in the warm start."""
    refresh: bool = False
    """Whether a round ends with the multipliers that are the best for its copy."""
    solver: Literal["barrier", "clarabel"] = "barrier"
    """What solves a round: the project's own barrier method, or cvxpy with Clarabel."""
    tolerance: float = 1e-5
    """How far the own solver may miss the minimum, as a share of what it is for V = 0."""
    most_weights: int = 10_000
    """Largest size of a round that is tried: weights between layers, of which the first counts no
    more columns than it has rows, and the last no more rows than columns."""

    def __post_init__(self) -> None:
        require(*self.ranges())

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep; a subclass adds its own."""
        return (
            finite_positive("r", self.r),
            finite_positive("tolerance", self.tolerance),
            at_least("rounds", self.rounds, 1),
            at_least("most_weights", self.most_weights, 1),
            between("warm_start", self.warm_start, 0, 1),
            at_least("weight_decay", self.weight_decay, 0),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training, rounds apart."""
        return 2.3

    @abstractmethod
    def solution(
        self, layers: Layers, fixed: "FixedMultipliers", targets: Weights, h: Scalars
    ) -> tuple[Weights, Multipliers, float]:
        """Return the copy of a round, its multipliers and the ρ that they prove for it.

        Args:
            layers: The network of W.
            fixed: The multipliers that are fixed.
            targets: W + Y/r.
            h: The fields.
        """

    def level(self, h: Scalars) -> float:
        """Return the constant that every copy must keep, 0 if there is none."""
        return 0.0

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return what keeps the network from being a chain of dense layers, or its size."""
        if self.solver == "clarabel" and (absent := conic.missing()) is not None:
            return absent
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            return "it has no rule for batch normalisation, which changes the constant by itself"
        try:
            layers = _layers(_net(model, data.dataset.input_shape))
        except Refused as refused:
            return str(refused).rstrip(".")
        if not set(layers.names) <= dict(model.named_parameters()).keys():
            return "a weight is not a parameter of its own but made of others"
        if len(set(layers.names)) < len(layers.names):
            return "a layer stands in two places, and a round takes each weight for itself"
        if layers.size > self.most_weights:
            return (
                f"a round has {layers.size} weights between layers, more than the "
                f"{self.most_weights} of most_weights: take narrower layers or raise it"
            )
        return None

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return the copy, which is the network still, and the best multipliers for it."""
        layers = _layers(net)
        multipliers, square = layers.best()
        bar = {name: net.params[name].detach().clone() for name in layers.names}
        like = next(iter(bar.values()))
        number = torch.zeros((), dtype=torch.float64, device=like.device)
        return {
            "bar": bar,
            "dual": {name: torch.zeros_like(value) for name, value in bar.items()},
            "multipliers": _numbered(multipliers),
            "square": number + square,
            "level": number,
            "active": like.new_tensor(float(self.warm_start == 0)),
        }

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the augmented Lagrangian, or the loss with weight decay in the warm start."""
        outputs, buffers = net.train(batch.inputs)
        lagrangian = torch.zeros_like(state["active"])
        for name, bar in state["bar"].items():
            gap = net.params[name] - bar
            lagrangian = lagrangian + h["r"] / 2 * gap.square().sum()
            lagrangian = lagrangian + (state["dual"][name] * gap).sum()
        decay = h["weight_decay"] * parameter_penalty(net.params, power=2, biases=True)
        value = batch.loss(outputs) + torch.where(state["active"] > 0, lagrangian, decay)
        return value, {**state, "buffers": buffers}

    def end_epoch(self, net: Net, summary: Summary, state: State, h: Scalars) -> State:
        """Return the state after a round, if there is one after this epoch."""
        level = self.level(h)
        is_due = self._is_due(summary)
        if not (is_due or level != float(state["level"])):
            return state
        if not all(bool(value.isfinite().all()) for value in net.params.values()):
            return {**state, "bar": {name: net.params[name] for name in state["bar"]}}
        warm = self._warm(summary)
        layers, fixed = _layers(net), FixedMultipliers.of(state)
        if summary.epoch <= warm:
            fixed = FixedMultipliers(*layers.best())
        duals = [state["dual"][name].double().cpu() for name in layers.names]
        pairs = zip(layers.weights, duals, strict=True)
        targets = tuple(weight + dual / self.r for weight, dual in pairs)
        weights, multipliers, square = self.solution(layers, fixed, targets, h)
        copies = _stored(layers, weights, multipliers, square, state["bar"])
        bar = dict(zip(layers.names, copies, strict=True))
        dual = state["dual"]
        if is_due and summary.epoch > warm:
            dual = {n: value + h["r"] * (net.params[n] - bar[n]) for n, value in dual.items()}
            if self.refresh:
                fixed = FixedMultipliers(*_layers(net.with_params(bar)).best())
        return {
            **state,
            "bar": bar,
            "dual": dual,
            "multipliers": _numbered(fixed.multipliers),
            "square": torch.full_like(state["square"], fixed.square),
            "level": torch.full_like(state["level"], level),
            "active": torch.full_like(state["active"], float(summary.epoch >= warm)),
        }

    def report(self, net: Net, state: State, h: Scalars) -> dict[str, float]:
        """Return how far the copy is from the weights, as a share of these."""
        gap = sum(float((net.params[n] - bar).square().sum()) for n, bar in state["bar"].items())
        size = sum(float(net.params[n].square().sum()) for n in state["bar"])
        return {"gap": math.sqrt(gap / max(size, 1e-300))}

    def effective(self, net: Net, state: State, h: Scalars) -> Params:
        """Return the copy, and the biases as they are."""
        return {**net.params, **state["bar"]}

    def proposed(
        self, inequality: Inequality, targets: Weights, square: float, price: float | None
    ) -> tuple[Weights, float]:
        """Return the nearest weights, or the cheapest with their ρ, from the solver chosen."""
        if self.solver == "clarabel":
            return conic.solve(inequality, targets, square, price)
        if price is None:
            return inequality.nearest(targets, square, self.tolerance)
        return inequality.cheapest(targets, price, square, self.tolerance)

    def _warm(self, summary: Summary) -> int:
        return round(self.warm_start * summary.epochs)

    def _is_due(self, summary: Summary) -> bool:
        # The first epoch, too, so that no network is ever chosen that is not a copy.
        epoch, done = summary.epoch, self.rounds * summary.epoch // summary.epochs
        before = self.rounds * (epoch - 1) // summary.epochs
        return epoch in (1, self._warm(summary)) or done > before


@dataclass(frozen=True)
class FixedMultipliers:
    """Multipliers that are fixed, and the ρ of the network that they are the best for."""

    multipliers: Multipliers
    square: float

    @classmethod
    def of(cls, state: State) -> "FixedMultipliers":
        """Return those of a state."""
        multipliers = state["multipliers"]
        return cls(
            tuple(multipliers[str(number)].cpu() for number in range(len(multipliers))),
            float(state["square"]),
        )


def _numbered(multipliers: Multipliers) -> dict[str, Tensor]:
    return {str(number): multiplier for number, multiplier in enumerate(multipliers)}


def _net(model: nn.Module, input_shape: tuple[int, ...]) -> Net:
    from lipbench.networks.net import Skeleton

    params = {name: value.detach() for name, value in model.named_parameters()}
    return Net(Skeleton(model, input_shape), params, dict(model.named_buffers()))


def _layers(net: Net) -> Layers:
    def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (value.double() if value.is_floating_point() else value).detach().cpu()
            for name, value in tensors.items()
        }

    return Layers.of(net.skeleton.graph.bind(double(net.params), double(net.buffers)))


def _stored(
    layers: Layers, weights: Weights, multipliers: Multipliers, square: float, like: Params
) -> list[Tensor]:
    """Return the weights in the type they are stored in, a little smaller if ρ is not proved.

    Weights that are all multiplied by one number below 1 obey the inequality as well.
    """
    kept = list(like.values())
    missing = 0.0
    while missing < 1:
        copies = [
            ((1 - missing) * weight).to(target)
            for weight, target in zip(weights, kept, strict=True)
        ]
        doubles = tuple(copy.double().cpu() for copy in copies)
        if layers.proved(doubles, multipliers, square) <= math.sqrt(square) * (1 + _ROOM / 1000):
            return copies
        missing = max(_ROOM, 8 * missing)
    return [torch.zeros_like(target) for target in kept]
