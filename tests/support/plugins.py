"""Plugins of strangers, as text."""

METHOD = """
from dataclasses import dataclass
from lipbench.method import Method

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    def loss(self, net, batch, state, draw, h):
        return batch.loss(net(batch.inputs)), state
"""

FAMILY = """
from dataclasses import dataclass
from typing import ClassVar
from lipbench.adversary import Attack
from lipbench.norm import Norm

@dataclass(frozen=True, kw_only=True)
class Family(Attack):
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2.0)})
    variant: str

    @classmethod
    def variants(cls):
        return ("One", "Two")

    def propose(self, model, inputs, labels, threat, rng):
        return inputs
"""
