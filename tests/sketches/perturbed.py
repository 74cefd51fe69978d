"""Methods whose steps draw random tensors, and one whose fields are no real numbers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lipbench.method import Method


@dataclass(frozen=True, kw_only=True)
class Occluded(Method):
    """Train on images of which a share of the pixels is replaced by noise."""

    stackable: ClassVar[bool] = True

    rate: float = 0.2

    def draw(self, batch, rng):
        return {
            "uniform": torch.rand(batch.inputs.shape, generator=rng),
            "noise": torch.rand(batch.inputs.shape, generator=rng),
        }

    def loss(self, net, batch, state, draw, h):
        inputs = torch.where(draw["uniform"] < h["rate"], draw["noise"], batch.inputs)
        outputs, buffers = net.train(inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}


@dataclass(frozen=True, kw_only=True)
class Rounded(Method):
    """Train on inputs of a few grey levels; its fields are an integer and a choice."""

    stackable: ClassVar[bool] = True

    levels: int = 4
    rounding: Literal["nearest", "down"] = "nearest"

    def loss(self, net, batch, state, draw, h):
        scaled = batch.inputs * self.levels
        rounded = scaled.round() if self.rounding == "nearest" else scaled.floor()
        outputs, buffers = net.train(rounded / self.levels)
        return batch.loss(outputs), {**state, "buffers": buffers}
