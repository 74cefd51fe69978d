"""Exact numbers through products of layers, and exact constants of networks that have them."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.written import Written
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.layers.normalise import Normalise
from lipbench.lipschitz.exact.dyadic import Dyadic
from lipbench.lipschitz.exact.exact_matrix import ExactMatrix, plain, very
from lipbench.lipschitz.exact.region_search import HELD
from lipbench.lipschitz.exact.vertices import norm_of_corners
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]


def batch_norm(width):
    layer = nn.BatchNorm1d(width)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.weight.normal_()
        layer.bias.normal_()
    return layer


def scaled():
    torch.manual_seed(0)
    layers = [Normalise([0.3, 0.5, 0.1], [0.4, 0.2, 0.3]), batch_norm(3), nn.Linear(3, 5)]
    return nn.Sequential(*layers, batch_norm(5), nn.ReLU(), nn.Linear(5, 2)).double().eval()


def folded(model):
    # The same network, its scales multiplied into the layers beside them.
    normalise, first, dense, second, relu, last = model
    weight, bias = 1 / normalise.std, -normalise.mean / normalise.std
    for layer in (first, dense, second):
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight * weight, layer.weight @ bias + layer.bias
            continue
        factor = layer.weight / (layer.running_var + layer.eps).sqrt()
        bias = factor * (bias - layer.running_mean) + layer.bias
        weight = factor.reshape(-1, *[1] * (weight.ndim - 1)) * weight
    merged = nn.Linear(3, 5).double()
    merged.weight, merged.bias = nn.Parameter(weight), nn.Parameter(bias)
    return nn.Sequential(merged, relu, last)


def merged():
    torch.manual_seed(1)
    layers = [nn.Linear(3, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 2)]
    return nn.Sequential(*layers).double()


def constant(model, norm, domain=None):
    network = as_network(model, (3,))
    value = load("lipbench.bounds", "lipbab", Bound)().compute(network, norm, domain)
    assert recheck(network, value) == []
    return value


@pytest.mark.parametrize("domain", [None, (0.0, 1.0)])
@pytest.mark.parametrize("norm", NORMS)
def test_scales_do_not_keep_the_exact_search_out(norm, domain):
    value, expected = constant(scaled(), norm, domain), constant(folded(scaled()), norm, domain)
    assert (value.side, expected.side) == ("exact", "exact")
    assert value.value == pytest.approx(expected.value, rel=1e-9)
    assert (value.flags, expected.flags) == ((HELD,), ())


@pytest.mark.parametrize("norm", NORMS)
def test_layers_that_follow_each_other_are_multiplied_exactly(norm):
    one, two, relu, three, four = model = merged()
    first, last = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
    first.weight, first.bias = (
        nn.Parameter(tensor)
        for tensor in (two.weight @ one.weight, two.weight @ one.bias + two.bias)
    )
    last.weight = nn.Parameter(four.weight @ three.weight)
    value, expected = (constant(net, norm) for net in (model, nn.Sequential(first, relu, last)))
    assert (value.side, value.flags) == ("exact", ())
    assert value.value == pytest.approx(expected.value, rel=1e-9)


def test_it_lies_between_both_sides_of_the_bracket():
    bracket = lipbench.bracket(scaled(), (3,), domain=(0, 1), time_limit=60)
    exact = next(bound for bound in bracket.bounds if bound.name == "lipbab")
    assert exact.side == "exact"
    assert bracket.lower >= 0.999 * exact.value
    uppers = [bound.value for bound in bracket.bounds if bound.side == "upper"]
    assert all(upper >= exact.value * (1 - 1e-9) for upper in uppers)


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_another_value_is_found_out(share):
    network, value = as_network(scaled(), (3,)), constant(scaled(), Norm(2))
    assert recheck(network, replace(value, value=share * value.value))


def test_exact_factors_of_a_sum_have_no_flag():
    halves = Written(lambda self, x: self.layer(x / 2).relu() * 4, layer=nn.Linear(3, 2)).double()
    thirds = Written(lambda self, x: self.layer(x / 3).relu() * 4, layer=nn.Linear(3, 2)).double()
    assert constant(halves, Norm(2)).flags == ()
    assert constant(thirds, Norm(2)).flags == (HELD,)


@given(st.integers(0, 10_000))
def test_a_network_is_evaluated_exactly(seed):
    """Its parts, in fractions, give what its steps give one after the other."""
    torch.manual_seed(seed)
    layers = [Normalise([0.3], [0.7]), nn.Linear(3, 4), batch_norm(4), lipbench.MaxMin()]
    image = [nn.Unflatten(1, (1, 2)), nn.ZeroPad1d(1), nn.Conv1d(1, 2, 2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4, 2), *image).double().eval()
    network = as_network(model, (3,))
    blocks = as_neuron_blocks(network, kind=ExactMatrix)
    x = [Fraction(entry) for entry in torch.randn(3, dtype=torch.float64).tolist()]
    known = [x]
    for block in blocks.blocks:
        known.append([max(entry, Fraction(0)) for entry in _at(block.reads, known)])
    assert _at(blocks.output, known) == _exactly(network, x)
    for matrix in blocks.output.matrices.values():
        for row, middle, half in zip(
            very(matrix).numerators, matrix.values.tolist(), matrix.radius.tolist(), strict=True
        ):
            for top, value, reach in zip(row, middle, half, strict=True):
                apart = Fraction(top, 2 ** very(matrix).exponent) - Fraction(value)
                assert abs(apart) <= Fraction(reach)


def _at(affine, known):
    offset = very(affine.offset)
    values = [offset.entry(row) for row in range(len(affine))]
    for source, matrix in affine.matrices.items():
        numerators, unit = very(matrix).numerators.tolist(), 2 ** very(matrix).exponent
        for number, row in enumerate(numerators):
            values[number] += sum(
                Fraction(a, unit) * b for a, b in zip(row, known[source], strict=True)
            )
    return values


def _exactly(network, values):
    for step in network.steps:
        kind = type(step).__name__
        if kind == "Scale":
            pairs = (step.factor.expand(len(values)), step.offset.expand(len(values)))
            factors, offsets = ([Fraction(entry) for entry in tensor.tolist()] for tensor in pairs)
            values = [f * v + o for f, v, o in zip(factors, values, offsets, strict=True)]
        elif kind == "GroupSort":
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [entry for pair in pairs for entry in sorted(pair, reverse=True)]
        elif kind == "Copy":
            values = [Fraction(0), *values, Fraction(0)]
        elif kind == "Dense":
            values = [
                sum(Fraction(w) * v for w, v in zip(row, values, strict=True)) + Fraction(b)
                for row, b in zip(step.weight.tolist(), step.bias.tolist(), strict=True)
            ]
        elif kind == "Convolution":
            values = [
                sum(Fraction(w) * values[at + tap] for tap, w in enumerate(kernel[0])) + Fraction(b)
                for kernel, b in zip(step.weight.tolist(), step.bias.tolist(), strict=True)
                for at in range(len(values) - 1)
            ]
        else:
            assert kind == "Rearrange"
    return values


def test_what_is_known_up_to_rounding_stays_so():
    unit = ExactMatrix.exact(torch.eye(2, dtype=torch.float64))
    third = torch.full((2, 1), 1 / 3, dtype=torch.float64)
    assert very(unit.scaled(third)) is None
    assert very(unit.scaled(third, held=True)) is not None
    assert very(unit.blurred(unit.radius)) is None
    lost = unit.scaled(third)
    for matrix in (lost.negative, lost.times(unit.values), lost.plus(unit), unit.plus(lost)):
        assert very(matrix) is None
    assert very(unit.plus(Matrix.exact(unit.values))).numerators.tolist() == [[2, 0], [0, 2]]
    assert very(Matrix.exact(unit.values)) is not None
    assert very(Matrix(values=unit.values, radius=unit.values)) is None


@pytest.mark.parametrize("make", [scaled, merged])
def test_rounded_matrices_are_those_without_exact_ones(make):
    network = as_network(make(), (3,))
    stripped = plain(as_neuron_blocks(network, kind=ExactMatrix))
    rounded = as_neuron_blocks(network)
    pairs = [(stripped.output, rounded.output)]
    pairs += [(a.reads, b.reads) for a, b in zip(stripped.blocks, rounded.blocks, strict=True)]
    for mine, its in pairs:
        for source, matrix in its.matrices.items():
            assert type(mine.matrices[source]) is Matrix
            assert torch.equal(mine.matrices[source].values, matrix.values)
            assert torch.equal(mine.matrices[source].radius, matrix.radius)
        assert torch.equal(mine.offset.values, its.offset.values)


@given(st.integers(0, 10_000), st.booleans())
def test_products_with_columns_of_one_entry_are_products(seed, sparse):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(-9, 10, (2, 3)), rng.integers(-9, 10, (3, 4))
    if sparse:
        right = right * (np.arange(3)[:, None] == rng.integers(0, 3, 4))
    product = Dyadic(left.astype(object), 2).times(Dyadic(right.astype(object), 3))
    assert (product.numerators == left @ right).all()
    assert product.exponent == 5


def test_corners_allow_for_what_is_known_up_to_rounding_only():
    """Two layers that nearly cancel: what rounding takes is large beside what is left."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    first.weight.data = torch.tensor([[1e8, 1.0], [1e8, 0.0]])
    second.weight.data = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    model = nn.Sequential(first, second, nn.ReLU(), nn.Linear(2, 1)).double()
    blocks = as_neuron_blocks(as_network(model, (2,)))
    slopes = [(block.lo, block.hi) for block in blocks.blocks]
    radius = blocks.blocks[0].reads.matrices[0].radius
    spread = float((blocks.output.matrices[1].values.abs() @ radius).sum())
    (block,) = blocks.blocks
    bare = Matrix.exact(block.reads.matrices[0].values)
    rounded = replace(block, reads=replace(block.reads, matrices={0: bare}))
    for norm in (Norm(1), Norm(math.inf)):
        without = norm_of_corners(replace(blocks, blocks=(rounded,)), slopes, norm)
        assert norm_of_corners(blocks, slopes, norm) >= without + spread / 2 > without * (1 + UNIT)
