"""Attacks that do what a test tells them to, and a problem on a line for them."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lipbench.adversarial.judge import judge
from lipbench.adversary import Attack
from lipbench.norm import Norm
from lipbench.threat import Threat

INF = Norm(math.inf)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Scripted(Attack):
    """An attack that does what a test tells it to."""

    norms: ClassVar[frozenset[Norm]] = frozenset({INF, Norm(2)})
    act: Any

    def propose(self, model, inputs, labels, threat, rng):
        return self.act(model, inputs, labels, threat, rng)


def up(model, inputs, labels, threat, rng):
    return inputs + 9


def still(model, inputs, labels, threat, rng):
    return inputs


def threshold(x):
    """Return logits with class 0 below 0.5 and class 1 above, for inputs of one coordinate."""
    return torch.cat([0.5 - x, x - 0.5], dim=1)


LINE = torch.tensor([[0.05], [0.35], [0.45], [0.6]])
ZEROS = torch.zeros(4, dtype=torch.int64)


def threat(epsilon, norm=INF, domain=(0.0, 1.0)):
    return Threat(norm=norm, epsilon=torch.as_tensor(epsilon), domain=domain)


def judge_line(act, epsilon=0.2, **options):
    allowed = threat([epsilon] * 4)
    return judge(Scripted(act=act), threshold, LINE, ZEROS, allowed, generator(), **options)
