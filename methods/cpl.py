"""Convex potential layers (CPL)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lipbench.lipschitz.operator_norms.dense_and_convolution import power_iteration, upper_norm
from lipbench.method import Params, State
from lipbench.method_families.residual import ContractiveResidual, operator
from lipbench.networks.net import Net
from lipbench.networks.steps import Linear
from lipbench.norm import Norm
from lipbench.ranges import Rule, at_least

if TYPE_CHECKING:
    from lipbench.data.splits import Data


@dataclass(frozen=True, kw_only=True)
class CPL(ContractiveResidual):
    """Train residual layers x - (2/σ²)·V·relu(Vᵀx + b) with σ = ‖V‖₂, steps of a gradient flow.

    V·relu(Vᵀx + b) is the gradient of a convex function, which expands distances at most σ² times;
    so a step of 2/σ² along it, downhill, does not expand them at all. With W = V/σ the layer is
    x - 2·W·relu(Wᵀx + b), b counted in units of σ: so it is stored.

    Layers that change the shape are linear with the weight V/σ, and followed by an activation;
    those that keep it lose theirs. The published networks pad channels with zeros, and pool, to
    change the shape.

    In training σ is followed from below by power iteration, for convolutions that of the operator
    on images of this size. What is saved is divided by an upper bound of the norm, exact for dense
    layers; beside zeros it is that of a periodic convolution and may be a few percent larger.
    There the guarantee is a constant of 1 in l2 on all of space, times that of normalisation.

    Source:
        Meunier, Delattre, Araujo, Allauzen, A Dynamical System Perspective for Lipschitz Neural
        Networks (ICML 2022), https://arxiv.org/abs/2110.12690, with the norm's upper bound in
        place of 100 steps of power iteration at the end, and no constant added to σ².
    """

    iterations: int = 1
    """Steps of power iteration per training step."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            at_least("iterations", self.iterations, 1),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.0

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return a random unit vector for each layer, and its norm as it is seen from there."""
        state = {}
        for number, layer in enumerate(_operators(net)):
            vector = torch.randn(layer.input_shape, generator=rng).to(layer.weight)
            # A few steps at once: a σ far too small would make the first weights far too large.
            state[f"right_{number}"] = power_iteration(layer, vector, 15).right
        return state

    def in_effect(self, net: Net, state: State, *, is_final: bool = False) -> tuple[Params, State]:
        """Return each V divided by its norm, and the state with the vectors after this step."""
        params, rights = {}, {}
        for number, layer in enumerate(_operators(net)):
            raw = net.params[layer.weight_name]
            if is_final:
                params[layer.weight_name] = raw / upper_norm(layer, Norm(2))
                continue
            sigma = power_iteration(layer, state[f"right_{number}"], self.iterations)
            params[layer.weight_name] = raw / sigma.value
            rights[f"right_{number}"] = sigma.right
        return params, {**state, **rights}


def _operators(net: Net) -> list[Linear]:
    return [linear for step in net.steps.steps if (linear := operator(step)) is not None]
