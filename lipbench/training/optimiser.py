"""The optimisers: pure updates of parameters, so that trials can be stacked."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lipbench.method import Params
from lipbench.ranges import between, positive, require

Moments = dict[str, Params]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Stochastic gradient descent with momentum, or Adam; fields are keys of `benchmarks.toml`.

    Source:
        Kingma and Ba, Adam: A Method for Stochastic Optimization (2015), Algorithm 1. Momentum
        is the heavy ball v ← momentum·v + g, θ ← θ - lr·v.
    """

    name: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    """Of sgd."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    """Of adam, as beta1 and beta2."""

    def __post_init__(self) -> None:
        require(
            positive("lr", self.lr),
            between("momentum", self.momentum, 0, 1, without_high=True),
            between("beta1", self.beta1, 0, 1, without_high=True),
            between("beta2", self.beta2, 0, 1, without_high=True),
            positive("eps", self.eps),
        )

    def start(self, params: Params) -> Moments:
        """Return the moments before the first step."""
        names = ("velocity",) if self.name == "sgd" else ("first", "second")
        moments = {
            name: {key: torch.zeros_like(value) for key, value in params.items()} for name in names
        }
        if self.name == "adam":
            like = next(iter(params.values()))
            moments["steps"] = {"": torch.zeros((), dtype=like.dtype, device=like.device)}
        return moments

    def step(
        self, params: Params, gradients: Params, moments: Moments, lr: Tensor
    ) -> tuple[Params, Moments]:
        """Return parameters and moments after one step with the learning rate `lr`."""
        if self.name == "sgd":
            # One pass over the memory each: what these updates cost is to read and write.
            before = moments["velocity"]
            velocity = {n: torch.add(gradients[n], before[n], alpha=self.momentum) for n in params}
            moved = {n: torch.addcmul(params[n], velocity[n], lr, value=-1) for n in params}
            return moved, {"velocity": velocity}
        first = {n: torch.lerp(gradients[n], moments["first"][n], self.beta1) for n in params}
        second = {
            n: torch.lerp(gradients[n].square(), moments["second"][n], self.beta2) for n in params
        }
        steps = moments["steps"][""] + 1
        bias1, bias2 = 1 - self.beta1**steps, 1 - self.beta2**steps
        moved = {
            n: params[n] - lr * (first[n] / bias1) / ((second[n] / bias2).sqrt() + self.eps)
            for n in params
        }
        return moved, {"first": first, "second": second, "steps": {"": steps}}
