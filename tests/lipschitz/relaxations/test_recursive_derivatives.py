"""Recursive bounds of derivatives, against the recursion of the paper written out."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.architectures import CASES
from support.bounds import bound
from support.nets import dense, random_network
from torch import nn

from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.entrywise import interval_norm
from lipbench.lipschitz.relaxations.intervals import derivatives, slopes
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.relaxations.recursive_derivatives import (
    products,
    recursive_derivatives,
    recursive_norm,
)
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Hardtanh]


def ends(*factors):
    """Return the ends of a product of numbers and intervals."""
    products = [1.0]
    for factor in factors:
        pair = factor if isinstance(factor, tuple) else (factor, factor)
        products = [number * end for number in products for end in pair]
    return min(products), max(products)


def literal(weights, gates):
    """Return intervals of W_l D_l ... D_1 W_1, with each entry found by a recursion of its own.

    The weights are lists of rows, the gates pairs for the neurons between them.
    """
    known = [[[(w, w) for w in row] for row in weights[0]]]

    def upper(row, layer, column):
        if layer == 0:
            kept = [ends(w, gate, known[0][i][column])[1] for i, (w, gate) in pairs(row, 0)]
            return sum(kept)
        rest, kept = 0.0, [0.0] * len(row)
        for i, (w, gate) in pairs(row, layer):
            lo, hi = known[layer][i][column]
            if gate[0] == gate[1]:
                kept[i] = w * gate[0]
            elif lo >= 0:
                kept[i] = max(w * gate[0], w * gate[1])
            elif hi <= 0:
                kept[i] = min(w * gate[0], w * gate[1])
            else:
                rest += ends(w, gate, (lo, hi))[1]
        columns = zip(*weights[layer], strict=True)
        before = [sum(k * w for k, w in zip(kept, c, strict=True)) for c in columns]
        return rest + upper(before, layer - 1, column)

    def pairs(row, layer):
        return enumerate(zip(row, gates[layer], strict=True))

    for layer, rows in enumerate(weights[1:]):
        matrix = []
        for row in rows:
            entries = []
            for column in range(len(weights[0][0])):
                terms = [
                    ends(w, gate, known[layer][i][column]) for i, (w, gate) in pairs(row, layer)
                ]
                lo, hi = (sum(side) for side in zip(*terms, strict=True))
                less = -upper([-w for w in row], layer, column)
                entries.append((max(lo, less), min(hi, upper(row, layer, column))))
            matrix.append(entries)
        known.append(matrix)
    return torch.tensor(known[-1], dtype=torch.float64)


@pytest.mark.parametrize("widths", [(3, 5, 2), (3, 6, 5, 2), (4, 9, 9, 9, 3)])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Hardtanh])
def test_it_is_the_recursion_of_the_paper_from_both_ends(widths, activation):
    model = random_network(3, widths, activation).double()
    blocks = as_neuron_blocks(as_network(model, (widths[0],)))
    weights = [layer.weight.tolist() for layer in model if isinstance(layer, nn.Linear)]
    turned = [list(map(list, zip(*weight, strict=True))) for weight in reversed(weights)]
    differ = 0
    for box in ((0.3, 0.4), (-0.5, 0.3), None):
        gates = [list(zip(lo.tolist(), hi.tolist(), strict=True)) for lo, hi in slopes(blocks, box)]
        ahead = literal(weights, gates)
        back = literal(turned, gates[::-1]).transpose(0, 1)
        differ += int((ahead - back).abs().max() > 1e-9)
        plain, recursive = derivatives(blocks, box), recursive_derivatives(blocks, box)
        least = torch.stack([plain.lo, ahead[..., 0], back[..., 0]]).amax(dim=0)
        most = torch.stack([plain.hi, ahead[..., 1], back[..., 1]]).amin(dim=0)
        torch.testing.assert_close(recursive.lo, least, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(recursive.hi, most, rtol=1e-9, atol=1e-12)
    assert differ or len(widths) < 5 or activation is not nn.GELU


# relu(relu(x) + 5) - relu(relu(x) + 5): the second ReLUs are on, the first has any slope.
NOTHING = dense(([[1]], [0]), ([[1], [1]], [5, 5]), ([[1, -1]], [0]))


@pytest.mark.parametrize("norm", NORMS)
def test_products_of_layers_that_cancel_are_known(norm):
    blocks = as_neuron_blocks(as_network(NOTHING, (1,)))
    assert recursive_norm(blocks, norm, (-1.0, 1.0))[0] <= 1e-14
    assert interval_norm(blocks, norm, (-1.0, 1.0))[0] == pytest.approx(1)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_exact_for_weights_that_are_not_negative(norm):
    """Every derivative is largest where all ReLUs are on."""
    model = random_network(0, (3, 5, 4, 2), nn.ReLU).double().requires_grad_(False)
    for layer in model[::2]:
        layer.weight.abs_()
    product = model[4].weight @ model[2].weight @ model[0].weight
    constant = recursive_norm(as_neuron_blocks(as_network(model, (3,))), norm, None)[0]
    assert constant == pytest.approx(
        float(torch.linalg.matrix_norm(product, float(norm))), rel=1e-9
    )


@st.composite
def networks(draw):
    widths = draw(st.sampled_from([(2, 5, 3), (3, 6, 4, 2), (1, 4, 4, 4, 2), (2, 3, 3, 3, 3, 1)]))
    model = random_network(draw(st.integers(0, 999)), widths, draw(st.sampled_from(ACTIVATIONS)))
    return model, (widths[0],)


boxes = st.tuples(st.floats(-2, 1), st.floats(-2, 0.3)).map(
    lambda ends: (ends[0], ends[0] + 10 ** ends[1])
)


def encloses(network, box):
    blocks = as_neuron_blocks(network)
    shape = 16, *network.input_shape
    points = box[0] + (box[1] - box[0]) * torch.rand(shape, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: network(x.unsqueeze(0))[0]))(points)
    jacobians = jacobians.reshape(len(points), -1, blocks.inputs)
    recursive, plain = recursive_derivatives(blocks, box), derivatives(blocks, box)
    assert (recursive.lo <= jacobians + 1e-12).all()
    assert (jacobians <= recursive.hi + 1e-12).all()
    return bool((recursive.lo >= plain.lo).all() and (recursive.hi <= plain.hi).all())


@settings(max_examples=12)
@given(networks(), boxes)
def test_derivatives_at_points_of_the_box_are_inside(network, box):
    assert encloses(as_network(*network), box)


@pytest.mark.parametrize("case", ["branching", "groups", "residual", "sandwich", "linear"])
def test_networks_that_branch_are_enclosed(case):
    assert encloses(as_network(*CASES[case]()), (0.1, 0.4))


def test_branches_tighten_as_well():
    network = as_network(*CASES["branching"]())
    recursive, plain = (
        bounded(as_neuron_blocks(network), (0.0, 0.3))
        for bounded in (recursive_derivatives, derivatives)
    )
    assert float((recursive.hi - recursive.lo).sum()) < 0.99 * float((plain.hi - plain.lo).sum())


@pytest.mark.parametrize(
    ("seed", "norm", "box"),
    [(0, NORMS[0], (0.0, 0.3)), (1, NORMS[1], (-1.0, 1.0)), (2, NORMS[2], (-0.3, 0.1))],
)
def test_it_is_between_the_exact_constant_and_fastlip(seed, norm, box):
    network = as_network(random_network(seed, (2, 3, 2, 2), nn.ReLU), (2,))
    bounds = [bound(name).compute(network, norm, box) for name in ("lipbab", "recurjac", "fastlip")]
    exact, recursive, fast = bounds
    assert 0 < exact.value <= recursive.value * (1 + 1e-9)
    assert recursive.value <= fast.value * (1 + 1e-12)
    assert recheck(network, recursive) == []
    (violation,) = recheck(network, replace(recursive, value=recursive.value * 0.999))
    assert "bounds of its derivatives prove" in violation.message


def fractions(matrix):
    return [[Fraction(float(entry)) for entry in row] for row in matrix.detach()]


def product(left, right):
    columns = list(zip(*right, strict=True))
    return [[sum(a * b for a, b in zip(row, c, strict=True)) for c in columns] for row in left]


@pytest.mark.parametrize("seed", range(8))
def test_no_rounding_leaves_the_true_derivative_out(seed):
    """Against rational arithmetic where all ReLUs are on, of layers that nearly cancel."""
    model = random_network(seed, (2, 3, 3, 2), nn.ReLU).double().requires_grad_(False)
    for layer in model[::2]:
        layer.weight[1] = layer.weight[0] * (1 + 1e-12)
        layer.weight[:, 0] = -layer.weight[:, 1] * (1 - 1e-12)
        layer.weight[:, 2:] *= 1e-13
        layer.bias.fill_(10)
    exact = fractions(model[0].weight)
    for layer in model[2::2]:
        exact = product(fractions(layer.weight), exact)
    blocks = as_neuron_blocks(as_network(model, (2,)))
    box = (0.0, 1e-3)
    assert all((lo == 1).all() for lo, _ in slopes(blocks, box))
    recursive = recursive_derivatives(blocks, box)
    for i, row in enumerate(exact):
        for j, entry in enumerate(row):
            assert (
                Fraction(float(recursive.lo[i, j])) <= entry <= Fraction(float(recursive.hi[i, j]))
            )


def test_products_are_counted_by_hand():
    """Four rows of three weights go through a layer of 3 x 2, up and down, for two columns."""
    assert products((2, 3, 4)) == 2 * 2 * 4 * 3 * 2
    assert products((5, 7)) == 0
    # The second layer's 6 rows go through 4 x 3; the output's 2 through 6 x 4 and 4 x 3.
    assert products((3, 4, 6, 2)) == 2 * 3 * (6 * 4 * 3 + 2 * (6 * 4 + 4 * 3))


def test_what_takes_too_long_is_refused_with_the_size_it_can_do():
    network = as_network(random_network(0, (3, 4, 6, 2), nn.ReLU), (3,))
    least = min(products((3, 4, 6, 2)), products((2, 6, 4, 3)))
    assert bound("recurjac", most_products=least).refuses(network, Norm(2), None) is None
    reason = bound("recurjac", most_products=least - 1).refuses(network, Norm(2), None)
    assert reason == (
        f"its recursion takes {least} products, more than the {least - 1} of most_products."
    )
    with pytest.raises(ValueError, match="most_products must be at least 1, got 0"):
        bound("recurjac", most_products=0)


def test_slopes_without_an_end_are_refused():
    network = as_network(nn.Sequential(nn.Linear(1, 1), nn.CELU(-1.0)), (1,))
    with pytest.raises(Refused, match="step '1' has slopes that are not bounded"):
        bound("recurjac").compute(network, Norm(2), None)
