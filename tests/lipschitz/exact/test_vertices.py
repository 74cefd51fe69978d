"""The largest norm over all sides of undecided neurons, against one corner after the other."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import random_network
from torch import nn

from lipbench.lipschitz.exact.vertices import Corners, _norms, corners_fit, norm_of_corners
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm


def naive(network, slopes, p):
    # Multiplies out a chain of layers for each choice of ends.
    weights = [block.reads.matrices[n].values for n, block in enumerate(network.blocks)]
    last = network.output.matrices[len(weights)].values
    ends = [list(zip(lo.tolist(), hi.tolist(), strict=True)) for lo, hi in slopes]
    best = 0.0
    for corner in itertools.product(*[pair for block in ends for pair in block]):
        matrix, left = torch.eye(network.inputs, dtype=torch.float64), list(corner)
        for weight in weights:
            gates, left = left[: len(weight)], left[len(weight) :]
            matrix = torch.tensor(gates, dtype=torch.float64).unsqueeze(1) * (weight @ matrix)
        best = max(best, float(torch.linalg.matrix_norm(last @ matrix, p)))
    return best


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), p=st.sampled_from([1.0, math.inf]))
def test_no_corner_is_left_out(seed, p):
    rng = torch.Generator().manual_seed(seed)
    network = as_neuron_blocks(as_network(random_network(seed % 1000, (3, 4, 3, 2), nn.ReLU), (3,)))
    slopes = []
    for block in network.blocks:
        ends = torch.randn(2, len(block), generator=rng, dtype=torch.float64).sort(dim=0).values
        ends[1] = torch.where(torch.rand(len(block), generator=rng) < 0.3, ends[0], ends[1])
        slopes.append((ends[0], ends[1]))
    norm, expected = norm_of_corners(network, slopes, Norm(p)), naive(network, slopes, p)
    assert expected <= norm <= expected * (1 + 1e-9) + 1e-12


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.last = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        y = x + self.outer(self.inner(x).relu())
        return self.last(y.relu()) + y


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_branches_are_followed(seed):
    torch.manual_seed(seed)
    model = Skipping()
    inner, outer, last = (layer.weight.detach().double() for layer in model.children())
    network = as_neuron_blocks(as_network(model, (2,)))
    slopes = [(torch.zeros(len(b)).double(), torch.ones(len(b)).double()) for b in network.blocks]
    norm = norm_of_corners(network, slopes, Norm(math.inf))
    best = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=5):
        first, second = torch.tensor(bits[:3]).double(), torch.tensor(bits[3:]).double()
        y = torch.eye(2).double() + outer @ (first.unsqueeze(1) * inner)
        matrix = last @ (second.unsqueeze(1) * y) + y
        best = max(best, float(torch.linalg.matrix_norm(matrix, math.inf)))
    assert best <= norm <= best * (1 + 1e-9)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32),
    p=st.sampled_from([1.0, 2.0, math.inf]),
    number=st.integers(0, 1),
    outputs=st.integers(1, 3),
)
def test_each_choice_of_sides_has_the_largest_norm_of_its_corners(seed, p, number, outputs):
    """Of the first block, or of the second one with the first decided; leaky slopes of both signs.

    The last neuron of the block is left out, with its smaller slope.
    """
    rng = torch.Generator().manual_seed(seed)
    model = random_network(seed % 1000, (3, 4, 3, outputs), lambda: nn.LeakyReLU(-0.5))
    network = as_neuron_blocks(as_network(model.double(), (3,)))
    slopes = [(block.lo, block.hi) for block in network.blocks]
    if number == 1:
        sides = torch.rand(4, generator=rng) < 0.5
        slopes[0] = (torch.where(sides, *slopes[0]),) * 2
    table = Corners(network, slopes, Norm(p), number)
    assert table.fit
    count = len(network.blocks[number]) - 1
    codes = torch.randint(0, 2**count, (3,), generator=rng)
    left, right = network.blocks[number].sides
    for code, value in zip(codes.tolist(), table.largest(range(count), codes), strict=True):
        ends = slopes[number][0].clone()
        for neuron in range(count):
            ends[neuron] = (right if code >> neuron & 1 else left)[neuron]
        chosen = [*slopes]
        chosen[number] = (ends, ends)
        expected = naive(network, chosen, p)
        assert expected <= value <= expected * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize(
    ("widths", "norm", "number", "fit"),
    [
        ((3, 4, 2), 1.0, 0, True),
        ((10, 15, 10, 3), 2.0, 0, True),
        ((10, 15, 10, 4), 2.0, 0, False),  # no formula for spectral norms
        ((10, 15, 10, 4), 1.0, 0, True),
        ((10, 20, 20, 3), 1.0, 0, False),
        ((10, 30, 15, 3), 1.0, 1, True),
        ((2, 23, 2), 1.0, 0, False),
    ],
)
def test_what_takes_too_long_is_known_before(widths, norm, number, fit):
    network = as_neuron_blocks(as_network(random_network(0, widths, nn.ReLU), widths[:1]))
    slopes = [(block.lo, block.hi) for block in network.blocks]
    slopes = [*((lo, lo) for lo, _ in slopes[:number]), *slopes[number:]]
    assert Corners(network, slopes, Norm(norm), number).fit == fit


FEW_ROWS = {
    "zero": torch.zeros(3, 5),
    "one row": torch.tensor([[3.0, -4.0]]),
    "two equal": torch.eye(2, 4),
    "three equal": 7 * torch.eye(3),
    "two of three equal": torch.diag(torch.tensor([2.0, 2.0, 1.0])),
    "two small ones equal": torch.diag(torch.tensor([2.0, 1.0, 1.0])),
    "nearly equal": torch.diag(torch.tensor([1.0, 1 - 1e-9, 1 - 2e-9]).double()),
    "rank one": torch.ones(3, 4),
    "tiny": 1e-200 * torch.arange(12.0).double().view(3, 4),
    "huge": 1e200 * torch.arange(12.0).double().view(3, 4),
    "tall": torch.arange(12.0).view(4, 3) - 5,
    "mixed": torch.diag(torch.tensor([1e-8, 1.0, 1e8]).double()) + 1e-3,
}


@pytest.mark.parametrize("name", FEW_ROWS)
def test_spectral_norms_of_few_rows_are_known_from_above(name):
    matrix = FEW_ROWS[name].double()
    scale = matrix.abs().max().clamp_min(1e-300)
    expected = float(torch.linalg.matrix_norm(matrix / scale, 2) * scale)
    norm = float(_norms(matrix.unsqueeze(0), Norm(2.0)))
    assert expected * (1 - 1e-13) <= norm <= expected * (1 + 1e-6)


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 3), rank=st.integers(1, 3))
def test_no_spectral_norm_is_too_small(seed, rows, rank):
    rng = torch.Generator().manual_seed(seed)
    few = torch.randn(200, rows, rank, generator=rng, dtype=torch.float64)
    many = few @ torch.randn(200, rank, 6, generator=rng, dtype=torch.float64)
    norms = _norms(many, Norm(2.0))
    ratio = norms / torch.linalg.matrix_norm(many, 2)
    assert float(ratio.min()) >= 1 - 1e-13
    assert float(ratio.max()) <= 1 + 1e-6


def test_corners_need_room():
    network = as_neuron_blocks(as_network(random_network(0, (10, 15, 10, 3), nn.ReLU), (10,)))
    assert corners_fit(network, 13)
    assert not corners_fit(network, 14)
