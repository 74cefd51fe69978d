"""Lines around functions, and what neurons read, against points, fractions and a literal twin."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.architectures import CASES
from support.nets import MAXIMUM, dense, random_network
from support.slopes import crown_slopes, undecided
from torch import nn

from lipbench.lipschitz.relaxations.affine import Affine, Matrix
from lipbench.lipschitz.relaxations.intervals import Interval, slopes
from lipbench.lipschitz.relaxations.linear_relaxation import Line, Lines, Relaxation, above, below
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.relaxations.preactivations import on_subdomains
from lipbench.networks.network import as_network
from lipbench.refused import Refused


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def sampled(network, box, count=40):
    # Points and some corners of the box.
    points = torch.rand(count, network.inputs, dtype=torch.float64)
    return box[0] + (box[1] - box[0]) * torch.cat([points, points.round()])


def pre_activations(network, points):
    values, reads = [points], []
    for block in network.blocks:
        reads.append(block.reads(values))
        values.append(block.function(reads[-1]))
    return reads


def test_lines_around_a_relu_by_hand():
    """From -1 to 3 the chord rises from 0 to 3; below, the larger side decides for slope 1 or 0."""
    reads = Interval(column(-1, -3, 1, -2), column(3, 1, 2, -1))
    left, right = column(0, 0, 0, 0), column(1, 1, 1, 1)
    over, under = above(reads, left, right), below(reads, left, right)
    assert over.slope.flatten().tolist() == [0.75, 0.25, 1, 0]
    assert over.offset.flatten().tolist() == pytest.approx([0.75, 0.75, 0, 0])
    assert under.slope.flatten().tolist() == [1, 0, 1, 0]
    assert under.offset.flatten().tolist() == pytest.approx([0, 0, 0, 0], abs=1e-300)


FLOATS = st.floats(-3, 3)


@settings(max_examples=60)
@given(st.tuples(FLOATS, FLOATS), FLOATS, FLOATS, st.floats(0, 1))
def test_no_point_of_a_bent_function_leaves_its_lines(ends, left, right, share):
    """All in fractions: slopes and offsets are what they are after rounding."""
    lo, hi = min(ends), max(ends)
    reads = Interval(column(lo), column(hi))
    point = min(max(lo + share * (hi - lo), lo), hi)
    exact = Fraction(point)
    value = exact * Fraction(right if point > 0 else left)
    over, under = (
        above(reads, column(left), column(right)),
        below(reads, column(left), column(right)),
    )
    for line, sign in ((over, 1), (under, -1)):
        slope, offset = (Fraction(float(number)) for number in line)
        for x, y in (
            (exact, value),
            (Fraction(lo), Fraction(lo) * Fraction(right if lo > 0 else left)),
        ):
            assert sign * (slope * x + offset - y) >= 0


def back(layers, known, box, row, bias):
    """Return the most of w·x + b by the paper's recursion, every sum written out."""
    weights, total = list(row), bias
    for before, ends in zip(reversed(layers), reversed(known), strict=True):
        propagated = []
        for weight, (lo, hi) in zip(weights, ends, strict=True):
            if lo >= 0 or hi <= 0:
                slope, offset = float(lo >= 0), 0.0
            elif weight > 0:
                slope, offset = hi / (hi - lo), -hi * lo / (hi - lo)
            else:
                slope, offset = float(hi > -lo), 0.0
            propagated.append(weight * slope)
            total += weight * offset
        total += sum(w * b for w, b in zip(propagated, before.bias.tolist(), strict=True))
        columns = before.weight.T.tolist()
        weights = [
            sum(w * x for w, x in zip(propagated, column, strict=True)) for column in columns
        ]
    return total + sum(max(w * box[0], w * box[1]) for w in weights)


def literal(model, box):
    """Return pre-activations by intervals, and by the recursion where these leave a sign open."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)][:-1]
    known, values = [], [box] * layers[0].in_features
    for depth, layer in enumerate(layers):
        ends = []
        for row, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True):
            terms = [(w * lo, w * hi) for w, (lo, hi) in zip(row, values, strict=True)]
            lo, hi = bias + sum(map(min, terms)), bias + sum(map(max, terms))
            if lo < 0 < hi:
                lo = max(lo, -back(layers[:depth], known, box, [-w for w in row], -bias))
                hi = min(hi, back(layers[:depth], known, box, row, bias))
            ends.append((lo, hi))
        known.append(ends)
        values = [(max(lo, 0), max(hi, 0)) for lo, hi in ends]
    return [torch.tensor(ends, dtype=torch.float64) for ends in known]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("box", [(-0.3, 0.4), (0.1, 0.2), (-2.0, 1.0)])
def test_what_neurons_read_is_the_recursion_of_the_paper(seed, box):
    model = random_network(seed, (3, 6, 5, 4, 2), nn.ReLU).double()
    network = as_neuron_blocks(as_network(model, (3,)))
    reads = on_subdomains(network, box, undecided(network)).reads
    for ends, expected in zip(reads, literal(model, box), strict=True):
        torch.testing.assert_close(torch.cat(ends, dim=1), expected, rtol=0, atol=1e-12)


ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, lambda: nn.LeakyReLU(-2.0), nn.Tanh, nn.GELU, nn.Hardswish]


@settings(max_examples=10)
@given(
    st.integers(0, 999),
    st.sampled_from([(2, 5, 3, 2), (3, 6, 4, 4, 2), (1, 4, 4, 4, 2)]),
    st.sampled_from(ACTIVATIONS),
    st.floats(-2, 1),
    st.floats(1e-3, 2),
)
def test_neurons_read_what_lies_between_the_ends(seed, widths, activation, lo, width):
    box = (lo, lo + width)
    network = as_neuron_blocks(as_network(random_network(seed, widths, activation), (widths[0],)))
    known = on_subdomains(network, box, undecided(network))
    wide = slopes(network, box)
    for ends, values in zip(
        known.reads, pre_activations(network, sampled(network, box)), strict=True
    ):
        assert (values + 1e-12 >= ends.lo.T).all()
        assert (values <= ends.hi.T + 1e-12).all()
    for (least, most), (lower, upper) in zip(crown_slopes(network, box), wide, strict=True):
        assert (lower <= least).all()
        assert (most <= upper).all()


@pytest.mark.parametrize("case", ["branching", "groups", "convolutional", "residual", "sandwich"])
def test_any_architecture_is_followed(case):
    model, shape = CASES[case]()
    network = as_neuron_blocks(as_network(model, shape))
    for box in ((-0.5, 0.5), (0.2, 0.25)):
        known = on_subdomains(network, box, undecided(network))
        values = pre_activations(network, sampled(network, box))
        for ends, numbers in zip(known.reads, values, strict=True):
            assert (numbers + 1e-12 >= ends.lo.T).all()
            assert (numbers <= ends.hi.T + 1e-12).all()


@pytest.fixture(name="subdomains")
def _subdomains():
    # The whole of a box, a half, and a part of the other half.
    sides = torch.zeros(8, 3, dtype=torch.int64)
    sides[1, 1:] = torch.tensor([1, -1])
    sides[5, 2] = 1
    return (
        as_neuron_blocks(as_network(random_network(9, (2, 4, 4, 2), nn.ReLU), (2,))),
        (-2.0, 2.0),
        sides,
    )


def test_subdomains_hold_their_own_points(subdomains):
    network, box, sides = subdomains
    reads = torch.cat(pre_activations(network, sampled(network, box, 2000)), dim=1)
    known = on_subdomains(network, box, sides)
    for column in range(3):
        inside = (reads * sides[:, column] >= 0).all(dim=1)
        assert inside.any()
        lo, hi = (torch.cat([ends[end][:, column] for ends in known.reads]) for end in (0, 1))
        assert (lo <= reads[inside] + 1e-12).all()
        assert (reads[inside] <= hi + 1e-12).all()
    assert len({float(known.reads[1].hi[:, column].sum()) for column in range(3)}) == 3


def test_a_subdomain_does_not_depend_on_others(subdomains):
    network, box, sides = subdomains
    known = on_subdomains(network, box, sides)
    for column in range(3):
        alone = on_subdomains(network, box, sides[:, column : column + 1])
        for ends, bounds in zip(known.reads, alone.reads, strict=True):
            for end in (0, 1):
                torch.testing.assert_close(ends[end][:, [column]], bounds[end], rtol=0, atol=1e-12)


def test_a_subdomain_lies_in_the_whole(subdomains):
    network, box, sides = subdomains
    whole_ = on_subdomains(network, box, undecided(network)).reads
    beyond = {}
    for known in ((), whole_):
        reads = on_subdomains(network, box, sides, known).reads
        ends = zip(reads, whole_, strict=True)
        beyond[len(known)] = max(float((inner.hi - outer.hi).max()) for inner, outer in ends)
    assert beyond[0] > 0.01
    assert beyond[2] <= 0


def test_a_subdomain_without_points_is_empty():
    """MAXIMUM on [1, 2]: its second neuron reads the second input, which is positive."""
    network = as_neuron_blocks(as_network(MAXIMUM, (2,)))
    sides = torch.tensor([[0, 0], [-1, 1], [0, 0]])
    assert on_subdomains(network, (1.0, 2.0), sides).possible.tolist() == [False, True]


def test_lines_know_what_intervals_forget():
    """relu(x) + relu(-x) is at most 1 between -1 and 1, and not 2 as by intervals."""
    absolute = ([[1], [-1]], [0, 0])
    model = dense(absolute, ([[1, 1]], [-1.5]), ([[1]], [0]))
    network = as_neuron_blocks(as_network(model, (1,)))
    assert [end.tolist() for end in slopes(network, (-1.0, 1.0))[1]] == [[0], [1]]
    assert [end.tolist() for end in crown_slopes(network, (-1.0, 1.0))[1]] == [[0], [0]]


def exactly(affine, values):
    # In fractions.
    (matrix,) = affine.matrices.values()
    return [
        sum((Fraction(w) * x for w, x in zip(row, values, strict=True)), Fraction(offset))
        for row, offset in zip(
            matrix.values.tolist(), affine.offset.values.flatten().tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("lo", [-0.7, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_rounding_is_never_cut_off(lo, seed):
    """With positive weights lines are met at a corner, where outputs cancel to almost nothing."""
    model = random_network(seed, (3, 9, 7, 40), nn.ReLU).double().requires_grad_(False)
    corner = torch.full((3,), 0.9, dtype=torch.float64)
    for layer in model[::2]:
        layer.weight.abs_().mul_(1000)
        layer.bias.copy_(-400 * torch.rand(len(layer.bias)))
    model[4].bias.sub_(model(corner))
    network = as_neuron_blocks(as_network(model, (3,)))
    start = Interval(*(torch.full((3, 1), end, dtype=torch.float64) for end in (lo, 0.9)))
    relaxation, values = Relaxation(start), [Fraction(0.9)] * 3
    for block in network.blocks:
        reads = relaxation.reads(block.reads)
        assert lo > 0 or bool(((reads.lo < 0) & (reads.hi > 0)).all())
        left, right = (side.unsqueeze(1) for side in block.sides)
        lines = Lines(below=below(reads, left, right), above=above(reads, left, right))
        # Of what a block is between, nothing is known but lines.
        relaxation.add(block.reads, reads, lines, Interval(-reads.largest, reads.largest))
        values = [max(number, Fraction(0)) for number in exactly(block.reads, values)]
    most = relaxation.reads(network.output).hi.flatten().tolist()
    slack = [
        Fraction(hi) - exact
        for hi, exact in zip(most, exactly(network.output, values), strict=True)
    ]
    assert all(gap >= 0 for gap in slack)
    assert all(gap < 1e-2 for gap in slack)


@pytest.mark.parametrize("start", [(-1.0, 1.0), (1.0, 1.0)])
def test_what_is_not_known_of_weights_counts(start):
    """Twice a weight in [1 - 1/4, 1 + 1/4], and an offset of up to 1/8."""
    known = Affine(
        matrices={0: Matrix(values=column(1), radius=column(0.25))},
        offset=Matrix(values=column(0), radius=column(0.125)),
    )
    relaxation = Relaxation(Interval(*map(column, start)))
    reads = relaxation.reads(known)
    assert float(reads.hi) == pytest.approx(1.375)
    unit, flat = column(1), column(0)
    lines = Lines(below=Line(unit, flat), above=Line(unit, flat))
    relaxation.add(known, reads, lines, reads)
    again = replace(known, matrices={1: known.matrices[0]})
    assert float(relaxation.reads(again).hi) == pytest.approx(1.375 * 1.25 + 0.125)


def test_slopes_that_are_not_bounded_are_refused():
    network = as_neuron_blocks(
        as_network(nn.Sequential(nn.Linear(2, 2), nn.CELU(-1.0), nn.Linear(2, 1)), (2,))
    )
    with pytest.raises(Refused, match="step '1' has slopes that are not bounded"):
        crown_slopes(network, (0.0, 1.0))
