"""SDP-based Lipschitz layers (SLL)."""

from dataclasses import dataclass

import torch
from torch import nn

from lipbench.layers.diagonal_dominance import rescaled, rescaled_by_fewer
from lipbench.layers.explanations import ConvResidual, Residual
from lipbench.method import Params
from lipbench.method_families.residual import ContractiveResidual
from lipbench.networks.sequential import LayerSite


@dataclass(frozen=True, kw_only=True)
class SLL(ContractiveResidual):
    """Train residual layers x - 2·V·T⁻¹·relu(Vᵀx + b) with T_ii = Σ_j |VᵀV|_ij·q_j/q_i.

    For a convolution the sum is over all shifts of the kernels against each other. V and q > 0,
    one number for each hidden neuron or channel, are trained. T - VᵀV is positive semidefinite
    for all of them. With W = V·T^(-1/2) the layer is x - 2·W·relu(Wᵀx + b), b counted in units of
    T^(1/2): so it is stored.

    Layers that change the shape are linear with the weight V·T^(-1/2) of the same T, rescaled on
    the side with fewer channels, and followed by an activation; those that keep it lose theirs.
    The published networks pad channels with zeros, and pool, to change the shape.

    The guarantee is a constant of 1 in l2 on all of space, times that of normalisation.

    Source:
        Araujo, Havens, Delattre, Allauzen, Hu, A Unified Algebraic Perspective on Lipschitz
        Neural Networks (ICLR 2023), https://arxiv.org/abs/2303.03169: theorem 1 for both kinds of
        layers, with the T of SDP-based Lipschitz layers.
    """

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 3.0

    def layer(self, site: LayerSite, rng: torch.Generator) -> nn.Module:
        """Return the layer with log q besides V, which starts at 0; a single q would cancel."""
        layer = super().layer(site, rng)
        hidden = site.output_shape[0]
        count = hidden if self.holds_activation(site) else min(hidden, site.input_shape[0])
        if count > 1:
            layer.register_parameter("log_q", nn.Parameter(torch.zeros(count)))
        return layer

    def explicit(self, layer: nn.Module, raw: Params, *, is_final: bool) -> Params:
        """Return W; the q that it is made of are no part of the network in effect."""
        is_residual = isinstance(layer, Residual | ConvResidual)
        rescale = rescaled if is_residual else rescaled_by_fewer
        return {"weight": rescale(raw["weight"], raw.get("log_q"))}
