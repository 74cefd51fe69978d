"""Margin training against the network's own measured bound.

`bottom` is the extra class of Leino, Wang and Fredrikson (2021); `margin` adds the gap to every
wrong logit, as Tsuzuku, Sato and Sugiyama (2018), and is cross entropy at epsilon 0.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lipbench.method import Method, Strength
from lipbench.norms import converged_norm, power_iteration
from lipbench.steps import Scale, Slope


@dataclass(frozen=True, kw_only=True)
class GloRo(Method):
    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="epsilon")

    epsilon: float = 0.5
    form: Literal["margin", "bottom"] = "margin"
    growth: float = 0.5

    def refuses(self, model, data):
        return None if data.task == "classification" else "it needs classes"

    def start(self, net, data, rng):
        rights = {
            str(number): torch.randn(layer.input_shape, generator=rng).to(layer.weight)
            for number, layer in enumerate(net.layers[:-1])
        }
        return {"rights": rights, "share": net.layers[0].weight.new_tensor(0.01)}

    def begin_epoch(self, net, data, state, epoch, rng):
        rights = {
            str(number): converged_norm(layer).right.to(layer.weight)
            for number, layer in enumerate(net.layers[:-1])
        }
        return {**state, "rights": rights}

    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs)
        constant, rights = self.constant(net, state["rights"])
        gaps = h["epsilon"] * state["share"] * constant * _distances(net.layers[-1].weight)
        state = {**state, "rights": rights, "buffers": buffers}
        if self.form == "margin":
            raised = outputs + gaps.take_along_dim(batch.targets.unsqueeze(1), dim=0)
            return batch.loss(raised), state
        own = outputs.argmax(dim=1, keepdim=True)
        rivals = outputs + gaps.take_along_dim(own, dim=0)
        rivals = rivals.scatter(1, own, -torch.inf)
        extended = torch.cat([outputs, rivals.amax(dim=1, keepdim=True)], dim=1)
        return batch.loss(extended), state

    def end_epoch(self, net, summary, state, h):
        grown = min(1.0, summary.epoch / (self.growth * summary.epochs))
        return {**state, "share": torch.full_like(state["share"], grown)}

    def constant(self, net, rights):
        constant, followed = 1.0, {}
        for number, layer in enumerate(net.layers[:-1]):
            sigma = power_iteration(layer, rights[str(number)])
            constant, followed[str(number)] = constant * sigma.value, sigma.right
        for step in net.steps.steps:
            if isinstance(step, Slope):
                constant = constant * step.constant
            elif isinstance(step, Scale):
                constant = constant * step.factor.abs().amax()
        return constant, followed


def _distances(rows):
    squares = (rows.unsqueeze(1) - rows).square().sum(dim=2)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
