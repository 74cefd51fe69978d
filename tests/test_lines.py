"""Lines around functions, and what neurons read, against points, fractions and a literal twin."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import MAXIMUM, dense, random_network
from test_unrolled import CASES
from torch import nn

from lipbench.bound import Refused
from lipbench.intervals import Interval, slopes
from lipbench.lines import Lines, Relaxation, above, below
from lipbench.network import as_network
from lipbench.reads import closer_slopes, on_parts
from lipbench.unrolled import unroll


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def whole(network):
    return torch.zeros(sum(map(len, network.blocks)), 1, dtype=torch.int64)


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
    place = min(max(lo + share * (hi - lo), lo), hi)
    exact = Fraction(place)
    value = exact * Fraction(right if place > 0 else left)
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
        own = []
        for weight, (lo, hi) in zip(weights, ends, strict=True):
            if lo >= 0 or hi <= 0:
                slope, offset = float(lo >= 0), 0.0
            elif weight > 0:
                slope, offset = hi / (hi - lo), -hi * lo / (hi - lo)
            else:
                slope, offset = float(hi > -lo), 0.0
            own.append(weight * slope)
            total += weight * offset
        total += sum(w * b for w, b in zip(own, before.bias.tolist(), strict=True))
        columns = before.weight.T.tolist()
        weights = [sum(w * x for w, x in zip(own, column, strict=True)) for column in columns]
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
    network = unroll(as_network(model, (3,)))
    found = on_parts(network, box, whole(network)).reads
    for ends, expected in zip(found, literal(model, box), strict=True):
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
    network = unroll(as_network(random_network(seed, widths, activation), (widths[0],)))
    known = on_parts(network, box, whole(network))
    wide = slopes(network, box)
    for ends, values in zip(
        known.reads, pre_activations(network, sampled(network, box)), strict=True
    ):
        assert (values + 1e-12 >= ends.lo.T).all()
        assert (values <= ends.hi.T + 1e-12).all()
    for (least, most), (lower, upper) in zip(closer_slopes(network, box), wide, strict=True):
        assert (lower <= least).all()
        assert (most <= upper).all()


@pytest.mark.parametrize("case", ["branching", "groups", "convolutional", "residual"])
def test_any_architecture_is_followed(case):
    model, shape = CASES[case]()
    network = unroll(as_network(model, shape))
    for box in ((-0.5, 0.5), (0.2, 0.25)):
        known = on_parts(network, box, whole(network))
        values = pre_activations(network, sampled(network, box))
        for ends, own in zip(known.reads, values, strict=True):
            assert (own + 1e-12 >= ends.lo.T).all()
            assert (own <= ends.hi.T + 1e-12).all()


def test_parts_of_a_box_hold_their_own_points():
    """The points at which some neurons are on the sides that make up a part, or none."""
    network = unroll(as_network(random_network(5, (2, 4, 4, 2), nn.ReLU), (2,)))
    points = sampled(network, (-2.0, 2.0), 3000)
    reads = pre_activations(network, points)
    sides = torch.zeros(8, 3, dtype=torch.int64)
    sides[1, :] = torch.tensor([0, 1, -1])
    sides[5, 2] = 1
    known = on_parts(network, (-2.0, 2.0), sides)
    for part in range(3):
        flat = torch.cat(reads, dim=1)
        inside = (flat * sides[:, part] >= 0).all(dim=1)
        lo, hi = (torch.cat([ends[end][:, part] for ends in known.reads]) for end in (0, 1))
        assert not inside.any() or bool(known.possible[part])
        assert (lo <= flat[inside] + 1e-12).all()
        assert (flat[inside] <= hi + 1e-12).all()
        alone = on_parts(network, (-2.0, 2.0), sides[:, part : part + 1])
        for ends, own in zip(known.reads, alone.reads, strict=True):
            for end in (0, 1):
                torch.testing.assert_close(ends[end][:, [part]], own[end], rtol=0, atol=1e-12)
    assert len({float(known.reads[1].hi[:, part].sum()) for part in range(3)}) == 3


def test_a_part_without_points_is_empty():
    """MAXIMUM on [1, 2]: its second neuron reads the second input, which is positive."""
    network = unroll(as_network(MAXIMUM, (2,)))
    sides = torch.tensor([[0, 0], [-1, 1], [0, 0]])
    assert on_parts(network, (1.0, 2.0), sides).possible.tolist() == [False, True]


def test_lines_know_what_intervals_forget():
    """relu(x) + relu(-x) is at most 1 between -1 and 1, and not 2 as by intervals."""
    absolute = ([[1], [-1]], [0, 0])
    model = dense(absolute, ([[1, 1]], [-1.5]), ([[1]], [0]))
    network = unroll(as_network(model, (1,)))
    assert [end.tolist() for end in slopes(network, (-1.0, 1.0))[1]] == [[0], [1]]
    assert [end.tolist() for end in closer_slopes(network, (-1.0, 1.0))[1]] == [[0], [0]]


@pytest.mark.parametrize("end", [0.3, math.nextafter(0.3, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_is_never_cut_off(end, seed):
    """In boxes as thin as rounding, or points, the exact numbers lie between lines."""
    torch.manual_seed(seed)
    network = unroll(as_network(random_network(seed, (3, 20, 10, 10, 5), nn.LeakyReLU), (3,)))
    box = Interval(*(torch.full((3, 1), number, dtype=torch.float64) for number in (0.3, end)))
    relaxation, values = Relaxation(box), [Fraction(end)] * 3
    for block in (*network.blocks, None):
        affine = network.output if block is None else block.reads
        (part,) = affine.parts.values()
        ends = relaxation.reads(affine)
        rows = [[Fraction(w) for w in row] for row in part.values.tolist()]
        offsets = [Fraction(b) for b in affine.offset.values.flatten().tolist()]
        exact = [
            sum((w * x for w, x in zip(row, values, strict=True)), offset)
            for row, offset in zip(rows, offsets, strict=True)
        ]
        for number, lo, hi in zip(exact, *ends, strict=True):
            assert Fraction(float(lo)) <= number <= Fraction(float(hi))
        if block is not None:
            left, right = (side.unsqueeze(1) for side in block.sides)
            lines = Lines(below=below(ends, left, right), above=above(ends, left, right))
            wide = Interval(-2 * ends.largest, 2 * ends.largest)  # of no use but for rounding
            relaxation.add(affine, ends, lines, wide)
            slopes_ = [Fraction(float(side)) for side in (left[0], right[0])]
            values = [number * slopes_[number > 0] for number in exact]


def test_slopes_that_are_not_bounded_are_refused():
    network = unroll(
        as_network(nn.Sequential(nn.Linear(2, 2), nn.CELU(-1.0), nn.Linear(2, 1)), (2,))
    )
    with pytest.raises(Refused, match="step '1' has slopes that are not bounded"):
        closer_slopes(network, (0.0, 1.0))
