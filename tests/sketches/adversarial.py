"""Adversarial training: projected ascent in each step (Madry 2018), and free (Shafahi 2019)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.func import grad

from lipbench.ascent import ascent_step, random_start, steepest
from lipbench.method import Method
from lipbench.norm import Norm
from lipbench.threat import Threat

_LARGEST = Norm(torch.inf)


def _threat(norm, epsilon, batch):
    radius = torch.as_tensor(epsilon, dtype=batch.inputs.dtype).expand(len(batch.inputs))
    return Threat(norm=norm, epsilon=radius, domain=batch.box)


@dataclass(frozen=True, kw_only=True)
class PGDTraining(Method):
    stackable: ClassVar[bool] = True

    epsilon: float = 0.1
    norm: Norm = _LARGEST
    steps: int = 3
    length: float = 0.5

    @property
    def cost(self):
        return 1.0 + self.steps

    def draw(self, batch, rng):
        return {"start": random_start(batch.inputs, _threat(self.norm, self.epsilon, batch), rng)}

    def loss(self, net, batch, state, draw, h):
        points = self.worst(net.frozen, batch, draw["start"], h)
        outputs, buffers = net.train(points)
        return batch.loss(outputs), {**state, "buffers": buffers}

    def worst(self, frozen, batch, points, h):
        threat = _threat(self.norm, h["epsilon"], batch)
        for _ in range(self.steps):
            gradient = grad(lambda inputs: batch.losses(frozen(inputs)).sum())(points)
            frozen.meter.gradients += len(points)
            points = ascent_step(
                points,
                batch.inputs,
                steepest(gradient, self.norm),
                threat,
                h["length"] * threat.epsilon,
            )
        return points


@dataclass(frozen=True, kw_only=True)
class FreeTraining(Method):
    stackable: ClassVar[bool] = True

    epsilon: float = 0.1
    replays: int = 3

    @property
    def ascends(self):
        return ("delta",)

    def start(self, net, data, rng):
        shape = data.train.inputs.shape[1:]
        return {"delta": data.train.inputs.new_zeros(data.batch_size, *shape)}

    def loss(self, net, batch, state, draw, h):
        # The last batch of an epoch has fewer samples; the rest of the offsets waits.
        points = batch.inputs + state["delta"][: len(batch.inputs)]
        if batch.box is not None:
            points = points.clamp(*batch.box)
        outputs, buffers = net.train(points)
        return batch.loss(outputs), {**state, "buffers": buffers}

    def ascend(self, state, gradients, h):
        moved = state["delta"] + h["epsilon"] * gradients["delta"].sign()
        return {**state, "delta": moved.clamp(-h["epsilon"], h["epsilon"])}
