"""Lipschitz constant enforced in training by a semidefinite program (LipSDP, ADMM)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from lipbench.lipschitz.semidefinite.dense_layers import Layers, Multipliers, Weights
from lipbench.lipschitz.semidefinite.inequality import Inequality, rescaled
from lipbench.method import Claim, Scalars, Strength
from lipbench.method_families.admm import Alternating, FixedMultipliers
from lipbench.networks.net import Net
from lipbench.norm import Norm
from lipbench.ranges import Rule, finite_positive

_ROOM = 1e-6
"""Share by which the constant is missed on purpose, so that a bound's tolerance is below it."""


@dataclass(frozen=True, kw_only=True)
class SDPEnforced(Alternating):
    """Minimise the loss over the networks that LipSDP proves to have a constant in l2.

    minimise loss(W) subject to W = V, N(V, L²; T) ≥ 0

    by the alternating direction method of multipliers: N is the matrix inequality of LipSDP with
    fixed multipliers T, ρ = L² and L = `constant`, which
    `lipbench.lipschitz.semidefinite.inequality` derives. A round takes the V with N ≥ 0 that is
    nearest to W + Y/r. The T are those that LipSDP finds for the network at the end of the warm
    start, whose constant L_0 is another: they are taken as if all its k layers were scaled by
    (L/L_0)^(1/k). The authors enforce L = L_0, where that changes nothing.

    What is guaranteed is the constant of the network that is returned, which has the weights V: it
    is certified in float64 for the weights as they are stored.

    Source:
        Pauli, Koch, Berberich, Kohler, Allgöwer, Training Robust Neural Networks Using Lipschitz
        Bounds (2022), https://arxiv.org/abs/2005.02929, and its public code, for one layer of
        neurons with slopes in [0, 1]. More layers, other slopes and the rule for L ≠ L_0 are this
        project's. Defaults are those of the code, but its 10,000 full-batch steps (learning rate
        0.01) between rounds are an epoch or more here, and `constant` has no published value.
    """

    strength: ClassVar[Strength] = Strength(field="constant", shrinks=False, least=1e-3)

    constant: float = 1.0
    """L, in outputs per pixel unit."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            finite_positive("constant", self.constant),
        )

    def level(self, h: Scalars) -> float:
        """Return L."""
        return float(h["constant"])

    def solution(
        self, layers: Layers, fixed: FixedMultipliers, targets: Weights, h: Scalars
    ) -> tuple[Weights, Multipliers, float]:
        """Return the nearest copy."""
        aim = self.level(h) / layers.factor * (1 - _ROOM)
        ratio = aim / math.sqrt(fixed.square) if fixed.square > 0 else 1.0
        multipliers = rescaled(fixed.multipliers, ratio)
        inequality = Inequality(slopes=layers.slopes, multipliers=multipliers)
        weights, square = self.proposed(inequality, targets, aim**2, None)
        return weights, multipliers, square

    def claims(self, net: Net) -> Claim:
        """Return L."""
        return Claim(norm=Norm(2), constant=self.constant, tolerance=1e-6)
