"""Lipschitz bound penalised in training by a semidefinite program (LipSDP, ADMM)."""

from dataclasses import dataclass
from typing import ClassVar

from lipbench.lipschitz.semidefinite.dense_layers import Layers, Multipliers, Weights
from lipbench.lipschitz.semidefinite.inequality import Inequality
from lipbench.method import Scalars, Strength
from lipbench.method_families.admm import Alternating, FixedMultipliers
from lipbench.ranges import Rule, at_least


@dataclass(frozen=True, kw_only=True)
class SDPPenalty(Alternating):
    """Penalise the square of the constant in l2 that LipSDP proves.

    minimise loss(W) + mu·ρ subject to W = V, N(V, ρ; T) ≥ 0

    by the alternating direction method of multipliers: N is the matrix inequality of LipSDP with
    fixed multipliers T (`lipbench.lipschitz.semidefinite.inequality` derives it). A round minimises
    mu·ρ + r/2 ‖W + Y/r - V‖² over V and ρ. The T are those that LipSDP finds for the network at the
    end of the warm start.

    √ρ bounds the constant of the network that is returned, which has the weights V. It is known
    when training ends and not before, so nothing is claimed in advance: `lipsdp_neuron` proves that
    much or less of the finished network.

    Source:
        Pauli, Koch, Berberich, Kohler, Allgöwer, Training Robust Neural Networks Using Lipschitz
        Bounds (2022), https://arxiv.org/abs/2005.02929, and its public code, for one layer of
        neurons with slopes in [0, 1]; mu is 0.0008 there for the step and 0.01 for the sine. More
        layers and other slopes are this project's. Its 10,000 full-batch steps (learning rate
        0.01) between rounds are an epoch or more here.
    """

    strength: ClassVar[Strength] = Strength(field="mu", scale=0.01)

    mu: float = 8e-4
    """Weight of the square of the constant, in losses per (outputs per pixel unit)²."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            at_least("mu", self.mu, 0),
        )

    def solution(
        self, layers: Layers, fixed: FixedMultipliers, targets: Weights, h: Scalars
    ) -> tuple[Weights, Multipliers, float]:
        """Return the cheapest copy."""
        price = float(h["mu"]) * layers.factor**2 / self.r
        start = fixed.square if fixed.square > 0 else 1.0
        if price == 0:
            # Any ρ that is large enough.
            proved = layers.proved(targets, fixed.multipliers, start)
            return targets, fixed.multipliers, max(start, proved**2)
        inequality = Inequality(slopes=layers.slopes, multipliers=fixed.multipliers)
        weights, square = self.proposed(inequality, targets, start, price)
        return weights, fixed.multipliers, square
