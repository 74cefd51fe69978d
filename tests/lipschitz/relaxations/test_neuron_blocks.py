"""A network as matrices between neurons is the same function, and knows its own rounding."""

import resource
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.architectures import (
    CASES,
)
from support.nets import MAXIMUM, random_network
from torch import nn

from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, neurons
from lipbench.networks.network import as_network
from lipbench.refused import Refused


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_same_function(case):
    model, shape = CASES[case]()
    network = as_network(model, shape)
    inputs = torch.randn(20, *shape, dtype=torch.float64)
    outputs, expected = as_neuron_blocks(network)(inputs.flatten(1)), network(inputs).flatten(1)
    assert torch.allclose(outputs, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_neurons_are_counted_beforehand(case):
    """Those that turn out to be linear are counted too."""
    network = as_network(*CASES[case]())
    count = sum(map(len, as_neuron_blocks(network).blocks))
    straight = 64 if case == "convolutional" else 0
    assert count == neurons(network) - straight


def test_a_plain_network_is_read_without_rounding():
    network = as_network(*CASES["dense"]())
    blocks = as_neuron_blocks(network)
    first, second = (layer.weight for layer in network.layers)
    assert torch.equal(blocks.blocks[0].reads.matrices[0].values, first)
    assert torch.equal(blocks.output.matrices[1].values, second)
    for affine in (blocks.blocks[0].reads, blocks.output):
        assert all(not matrix.radius.any() for matrix in affine.matrices.values())


def fractions(matrix):
    return [[Fraction(float(entry)) for entry in row] for row in matrix.detach()]


@given(st.integers(0, 1000))
def test_products_stay_within_their_radius(seed):
    """Against rational arithmetic."""
    rng = torch.Generator().manual_seed(seed)
    left, middle, right = (
        torch.randn(4, 4, generator=rng, dtype=torch.float64) * 10.0**k for k in (0, 3, -3)
    )
    product = Matrix.exact(right).times(middle).plus(Matrix.exact(left)).times(left)
    product = product.scaled(middle[:, :1])
    a, b, c = map(fractions, (left, middle, right))
    for i in range(4):
        for j in range(4):
            inner = [sum(b[k][m] * c[m][j] for m in range(4)) + a[k][j] for k in range(4)]
            exact = b[i][0] * sum(a[i][k] * inner[k] for k in range(4))
            error = abs(exact - Fraction(float(product.values[i, j])))
            assert error <= Fraction(float(product.radius[i, j]))
    assert (product.radius <= 1e-12 * (1 + product.values.abs()) * 1e6).all()


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_merged_layers_stay_within_their_radius(seed):
    """Two dense layers without an activation between them, against rational arithmetic."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU()).double()
    torch.manual_seed(seed)
    for layer in model[:2]:
        nn.init.normal_(layer.weight)
    matrix = as_neuron_blocks(as_network(model, (3,))).blocks[0].reads.matrices[0]
    first, second = (fractions(layer.weight) for layer in model[:2])
    for i in range(2):
        for j in range(3):
            exact = sum(second[i][k] * first[k][j] for k in range(4))
            error = abs(exact - Fraction(float(matrix.values[i, j])))
            assert error <= Fraction(float(matrix.radius[i, j])) <= Fraction(1, 10**13)


def test_a_sum_with_itself_is_exact():
    """x + relu(x) + 2 relu(-x) is 2|x|; on paper 2."""

    class Twice(nn.Module):
        def forward(self, x):
            return x + torch.relu(x) + 3 * torch.relu(-x)

    blocks = as_neuron_blocks(as_network(Twice(), (1,)))
    points = torch.tensor([[-3.0], [2.0]], dtype=torch.float64)
    assert blocks(points).flatten().tolist() == [6.0, 4.0]
    assert [len(block) for block in blocks.blocks] == [1, 1]


def test_differences_of_outputs():
    blocks = as_neuron_blocks(as_network(random_network(0, (5, 7, 3), nn.ReLU), (5,)))
    inputs = torch.randn(6, 5, dtype=torch.float64)
    differences, outputs = blocks.differences([(0, 1), (2, 0)])(inputs), blocks(inputs)
    assert torch.allclose(differences[:, 0], outputs[:, 0] - outputs[:, 1])
    assert torch.allclose(differences[:, 1], outputs[:, 2] - outputs[:, 0])


def test_what_is_too_large_is_refused_by_name():
    network = as_network(nn.Sequential(nn.Linear(5, 7), nn.ReLU()), (5,))
    with pytest.raises(Refused, match=r"step '0': .* more than 10 entries"):
        as_neuron_blocks(network, largest=10)


def test_a_large_network_is_refused_before_its_matrices_are_made():
    """25,088 neurons behind a convolution of MNIST's size: 5 GB for a matrix of their own."""
    model = nn.Sequential(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.Flatten())
    network = as_network(model, (1, 28, 28))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match=r"step '1': .* more than 67108864 entries"):
        as_neuron_blocks(network)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


def test_the_maximum_of_two_numbers_is_one_neuron():
    blocks = as_neuron_blocks(as_network(nn.MaxPool1d(2), (1, 2)))
    assert [len(block) for block in blocks.blocks] == [1]
    points = torch.tensor([[3.0, 1.0], [-1.0, 2.0]], dtype=torch.float64)
    assert blocks(points).flatten().tolist() == [3.0, 2.0]
    assert neurons(as_network(MAXIMUM, (2,))) == 3
