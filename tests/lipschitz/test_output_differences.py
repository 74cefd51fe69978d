"""Constants of differences between outputs, against pairs of points and by hand."""

import math
from contextlib import suppress
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import random_network
from torch import nn

from lipbench.bound import Bound, Lipschitz
from lipbench.lipschitz.output_differences import difference_constants
from lipbench.lipschitz.relaxations.loop_transformation import loop_transformation
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

L2 = Norm(2.0)
NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
UPPER = ["product", "liplt", "fastlip", "eclipse_fast", "lipsdp_neuron", "lipsdp_layer", "lipbab"]
ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid]


def value_of(network, name, norm=L2, domain=None):
    bound = load("lipbench.bounds", name, Bound)()
    return bound.compute(network, norm, domain) if norm in bound.norms else None


def linear(rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


@st.composite
def cases(draw):
    activation = draw(st.sampled_from(ACTIVATIONS))
    widths = draw(st.sampled_from([(3, 5, 4), (2, 4, 4, 3), (4, 2)]))
    model = random_network(draw(st.integers(0, 999)), widths, activation)
    domain = draw(st.sampled_from([None, (-0.5, 0.5)]))
    return model, widths[0], draw(st.sampled_from(NORMS)), domain


@given(cases(), st.sampled_from(UPPER))
@settings(max_examples=30)
def test_no_pair_of_points_moves_a_difference_more(case, name):
    model, features, norm, domain = case
    network = as_network(model, (features,))
    value = None
    with suppress(Refused):  # smooth functions have no regions, and a constant network no share
        value = value_of(network, name, norm, domain)
    if value is None:
        return
    constants = difference_constants(network, value)
    most = norm.margin_factor() * value.value * (1 + 1e-12)
    assert bool((constants <= most).all())
    assert bool((constants == constants.T).all())
    assert constants.diagonal().tolist() == [0.0] * len(constants)
    u = torch.rand(200, *network.input_shape, dtype=torch.float64) - 0.5
    near = (u + 1e-3 * torch.randn_like(u)).clamp(-0.5, 0.5)
    v = torch.cat([near[:100], near[100:].flip(0)])
    moved = network(u) - network(v)
    moved = (moved.unsqueeze(2) - moved.unsqueeze(1)).abs()
    quotients = moved / norm.length(u - v).reshape(-1, 1, 1)
    assert bool((quotients.amax(dim=0) <= constants * (1 + 1e-9) + 1e-9).all())


@pytest.mark.parametrize("name", ["product", "liplt", "fastlip", "lipsdp_neuron"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_map_by_hand(name, norm):
    """Rows (3, 0), (0, 1), (0, 1): differences (3, -1) twice and 0, in the dual norm."""
    network = as_network(linear([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), (2,))
    value = value_of(network, name, norm)
    if value is None:
        return
    length = {1.0: 3.0, 2.0: math.sqrt(10), math.inf: 4.0}[float(norm)]
    constants = difference_constants(network, value)
    assert constants[0].tolist() == pytest.approx([0, length, length], abs=1e-9)
    assert constants[1, 2] == pytest.approx(0, abs=1e-9)


def test_multipliers_prove_what_the_formula_says():
    """‖c'FP⁻¹F'c‖·ρ for each c = e_i - e_j, with P of the stored multipliers."""
    network = as_network(random_network(3, (3, 6, 5, 4), nn.ReLU), (3,))
    value = value_of(network, "lipsdp_neuron")
    loops = loop_transformation(as_neuron_blocks(network))
    rows, outputs = loops.matrix.values[:11], loops.matrix.values[11:]
    weights, square = value.proof["multipliers"], value.proof["square"]
    form = torch.block_diag(square * torch.eye(3), weights.diag()) - rows.T @ weights.diag() @ rows
    table = difference_constants(network, value)
    for i, j in combinations(range(4), 2):
        row = outputs[i] - outputs[j]
        expected = math.sqrt(square * (row @ torch.linalg.solve(form, row)))
        assert float(table[i, j]) == pytest.approx(expected, rel=1e-6)
        assert float(table[i, j]) < math.sqrt(2) * value.value


def test_each_kind_of_proof_is_sharper_than_the_general_bound():
    network = as_network(random_network(0, (8, 10, 10, 6), nn.ReLU), (8,))
    for name in UPPER[:-1]:
        value = value_of(network, name)
        constants = difference_constants(network, value)
        assert float(constants.max()) < math.sqrt(2) * value.value, name


def test_without_a_known_proof_the_general_bound_does():
    network = as_network(linear([[1.0, 0.0], [0.0, 1.0]]), (2,))
    value = Lipschitz(value=5.0, side="upper", norm=Norm(math.inf), domain=None)
    assert difference_constants(network, value)[0].tolist() == pytest.approx([0, 10])


def test_broken_multipliers_are_worth_no_less_than_the_general_bound():
    network = as_network(random_network(1, (2, 3, 2), nn.ReLU), (2,))
    value = value_of(network, "lipsdp_neuron")
    broken = {**value.proof, "multipliers": torch.full((3,), 1e9, dtype=torch.float64)}
    value = Lipschitz(value=2.0, side="upper", norm=Norm(2.0), domain=None, proof=broken)
    blocks = value_of(network, "liplt")
    difference = float(difference_constants(network, value)[0, 1])
    assert difference == pytest.approx(
        min(2 * math.sqrt(2), float(difference_constants(network, blocks)[0, 1]))
    )


def test_multipliers_sharpen_nothing_in_another_norm():
    """They prove l2: under another norm the differences have the general bound."""
    network = as_network(random_network(0, (3, 5, 3), nn.ReLU), (3,))
    value = load("lipbench.bounds", "lipsdp_neuron", Bound)().compute(network, Norm(2), None)
    table = difference_constants(network, replace(value, norm=Norm(math.inf)))
    assert float(table[0, 1]) >= 2 * value.value
