"""Lipschitz constant constraint: layers are projected after every step (Gouk et al. 2021)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lipbench.method import Claim, Method, Strength
from lipbench.norm import Norm
from lipbench.norms import power_iteration, upper_norm
from lipbench.steps import Linear, Scale, Slope

_EUCLIDEAN = Norm(2)


@dataclass(frozen=True, kw_only=True)
class LCC(Method):
    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", shrinks=False, least=1e-3)

    lambda_: float = 2.0
    lambda_bn: float = 2.0
    norm: Norm = _EUCLIDEAN
    iterations: int = 2

    def start(self, net, data, rng):
        if self.norm != 2:
            return {"rights": {}}
        rights = {
            layer.name: power_iteration(
                layer, torch.randn(layer.input_shape, generator=rng).to(layer.weight), 15
            ).right
            for layer in net.layers
        }
        return {"rights": rights}

    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}

    def project(self, net, state, h):
        return self._clipped(net, state, h, self.iterations)

    def _clipped(self, net, state, h, iterations):
        params, rights = dict(net.params), dict(state["rights"])
        for step in net.steps.steps:
            if isinstance(step, Linear):
                size = self._size(step, rights, iterations)
                params[step.weight_name] = step.weight / (size / h["lambda_"]).clamp_min(1)
            elif isinstance(step, Scale) and step.weight_name:
                excess = step.factor.abs().amax() / h["lambda_bn"]
                params[step.weight_name] = params[step.weight_name] / excess.clamp_min(1)
        return params, {**state, "rights": rights}

    def effective(self, net, state, h):
        # Two iterations a step lag behind moving weights: what is measured has converged.
        return self._clipped(net, state, h, iterations=30)[0]

    def finish(self, net, state, data, h):
        params = dict(net.params)
        for layer in net.layers:
            excess = max(1.0, upper_norm(layer, self.norm) / float(h["lambda_"]))
            params[layer.weight_name] = (layer.weight.double() / excess).to(layer.weight)
        return params

    def claims(self, net):
        constant = 1.0
        for step in net.steps.steps:
            if isinstance(step, Linear):
                constant *= self.lambda_
            elif isinstance(step, Scale):
                constant *= self.lambda_bn
            elif isinstance(step, Slope):
                constant *= float(step.constant)
        return Claim(norm=self.norm, constant=constant, tolerance=1e-5)

    def _size(self, step, rights, iterations):
        if self.norm == 2:
            sigma = power_iteration(step, rights[step.name], iterations)
            rights[step.name] = sigma.right
            return sigma.value
        absolute = step.absolute()
        if self.norm == 1:
            return absolute.adjoint(step.weight.new_ones(1, *step.output_shape)).amax()
        return absolute.apply(step.weight.new_ones(1, *step.input_shape)).amax()
