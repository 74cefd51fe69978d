"""Rows and columns of Jacobians, bounded jointly: against a twin that writes out every sum."""

import math

import pytest
import torch
from support.nets import MAXIMUM, random_network
from support.slopes import crown_slopes
from torch import nn

from lipbench.lipschitz.relaxations.intervals import Interval, derivatives
from lipbench.lipschitz.relaxations.jacobians import Case, Jacobians
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm

L1, LINF = map(Norm, (1.0, math.inf))


def line(lo, hi, left, right, weight):
    """Return the line above weight times a function with two slopes, after the paper's figures."""
    rise, fall = weight * right, weight * left
    if lo >= 0 or hi <= 0:
        return (rise if lo >= 0 else fall), 0.0
    # max(mλ, Mλ) lies under the chord of its ends, and min(mλ, Mλ) over its own.
    slope = (rise * hi - fall * lo) / (hi - lo)
    return slope, (rise - slope) * hi


def twin(model, slopes, known):
    """Return bounds of the sums of rows by the paper's relaxation, every sum written out."""
    weights = [layer.weight.tolist() for layer in model if isinstance(layer, nn.Linear)]
    gates = [list(zip(lo.tolist(), hi.tolist(), strict=True)) for lo, hi in slopes]

    def most(row, depth, reads, coefficients):
        # Of Σ c_i λ_i, where λ are the adjoints of the neurons of block `depth`.
        total = 0.0
        for block in range(depth, len(gates)):
            matrix = weights[block + 1] if block + 1 < len(gates) else [weights[-1][row]]
            values = [sum(w * c for w, c in zip(r, coefficients, strict=True)) for r in matrix]
            if block + 1 == len(gates):
                return total + values[0]
            coefficients = []
            for c, (lo, hi), (m, M) in zip(values, reads[block + 1], gates[block + 1], strict=True):
                slope, offset = line(lo, hi, *((m, M) if c > 0 else (M, m)), c)
                coefficients.append(slope)
                total += offset
        return total

    sums = []
    for row in range(len(weights[-1])):
        reads = [[] for _ in gates]
        for depth in reversed(range(len(gates))):
            count = len(gates[depth])
            for neuron in range(count):
                unit = [float(neuron == other) for other in range(count)]
                least = -most(row, depth, reads, [-x for x in unit])
                reads[depth].append((least, most(row, depth, reads, unit)))

        def through(coefficients, row=row, reads=reads):
            # Of sums of derivatives.
            values = [sum(w * c for w, c in zip(r, coefficients, strict=True)) for r in weights[0]]
            total, chosen = 0.0, []
            for c, (lo, hi), (m, M) in zip(values, reads[0], gates[0], strict=True):
                slope, offset = line(lo, hi, *((m, M) if c > 0 else (M, m)), c)
                chosen.append(slope)
                total += offset
            return total + most(row, 0, reads, chosen)

        inputs = len(weights[0][0])
        entries, coefficients, offsets = [], [], 0.0
        for column in range(inputs):
            unit = [float(column == other) for other in range(inputs)]
            lo = max(-through([-x for x in unit]), float(known.lo[row, column]))
            hi = min(through(unit), float(known.hi[row, column]))
            entries.append(max(-lo, hi))
            slope, offset = line(lo, hi, -1.0, 1.0, 1.0)
            coefficients.append(slope)
            offsets += offset
        sums.append(min(sum(entries), through(coefficients) + offsets))
    return sums


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("box", [None, (-0.4, 0.3), (-1.0, 1.0)])
def test_it_is_the_relaxation_of_the_paper(seed, box):
    """Without intervals of adjoints, which may be closer in single neurons."""
    model = random_network(seed, (3, 5, 4, 4, 2), nn.ReLU).double()
    network = as_neuron_blocks(as_network(model, (3,)))
    slopes = crown_slopes(network, box)
    expected = twin(model, slopes, derivatives(network, box, slopes))
    sums, _ = Jacobians(network, LINF, box).bounds([Case(0), Case(1)])
    assert sums.tolist() == pytest.approx(expected, rel=1e-9)


def test_intervals_of_derivatives_count():
    """They are closer for single derivatives here, though not for sums of them."""
    torch.manual_seed(11)
    layers = []
    for fan_in, fan_out in ((2, 3), (3, 3), (3, 1)):
        layer, activation = nn.Linear(fan_in, fan_out), nn.PReLU(fan_out)
        with torch.no_grad():
            layer.weight.copy_((layer.weight * 6).round() + 0.25)
            activation.weight.copy_(torch.rand(fan_out) * 2 - 1)
        layers += [layer, activation]
    model = nn.Sequential(*layers[:-1]).double()
    network = as_neuron_blocks(as_network(model, (2,)))
    slopes = crown_slopes(network, None)
    known = derivatives(network, None, slopes)
    anything = Interval(torch.full_like(known.lo, -1e9), torch.full_like(known.hi, 1e9))
    (expected,), (worse,) = (twin(model, slopes, entries) for entries in (known, anything))
    (value,) = Jacobians(network, LINF, None).bounds([Case(0)]).sums.tolist()
    assert value == pytest.approx(expected, rel=1e-9)
    assert value < 0.99 * worse


def test_a_case_does_not_depend_on_what_else_is_asked():
    network = as_neuron_blocks(as_network(random_network(3, (4, 8, 8, 3), nn.ReLU), (4,)))
    for norm in (L1, LINF):
        jacobians = Jacobians(network, norm, (-1.0, 1.0))
        paths = [(), ((2, True),), ((2, False), (9, True)), ((11, True),)]
        cases = [Case(start, path) for start in range(3) for path in paths]
        together = jacobians.bounds(cases)
        alone = [jacobians.bounds([case]) for case in cases]
        assert torch.cat([bounds.sums for bounds in alone]) == pytest.approx(
            together.sums, rel=1e-12
        )
        assert torch.cat([bounds.splits for bounds in alone]).tolist() == together.splits.tolist()


def test_a_case_without_points_counts_for_nothing():
    """The second neuron of the maximum reads an input that is positive."""
    jacobians = Jacobians(as_neuron_blocks(as_network(MAXIMUM, (2,))), LINF, (1.0, 2.0))
    sums, splits = jacobians.bounds([Case(0, ((1, False),)), Case(0, ((1, True),))])
    assert sums.tolist() == pytest.approx([0, 1])
    assert splits.tolist() == [-1, 0]
