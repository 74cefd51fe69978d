"""Bounds of Jacobians against exact constants, brute force, hand-computed nets and a twin."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.architectures import CASES
from support.bounds import bound, rechecked
from support.nets import ABSOLUTE, HAT, IDENTITY, LINEAR, MAXIMUM, dense, random_network
from torch import nn

from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.intervals import Interval, derivatives
from lipbench.lipschitz.relaxations.jacobians import Case, Jacobians
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.relaxations.preactivations import closer_slopes
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

L1, L2, LINF = map(Norm, (1.0, 2.0, math.inf))
NORMS = [L1, L2, LINF]
SAME = 1 + 1e-9


def computed(model, shape, norm=LINF, domain=None, name="jacobian_bound", **options):
    return rechecked(name, model, shape, norm, domain, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("model", "features", "domain", "constant"),
    [
        (ABSOLUTE, 1, (1.0, 2.0), 1),
        (ABSOLUTE, 1, (-1.0, 2.0), 1),  # slopes 1 and -1 of two neurons, never together
        (IDENTITY, 1, None, 2),  # but on all of space they are, for what is known
        (HAT, 1, (5.0, 6.0), 0),
        (MAXIMUM, 2, (1.0, 2.0), 1),
        (dense(([[3]], [0]), ([[2]], [1])), 1, (-1.0, 1.0), 6),
    ],
)
def test_a_hand_computed_network(model, features, domain, constant, norm):
    value = computed(model, (features,), norm, domain, nodes=4).value
    assert value == pytest.approx(constant, abs=1e-9)


def test_a_row_is_bounded_jointly_by_hand():
    """The maximum has derivatives s and 1 - s: their sum is 1, and 2 if each is at its worst."""
    assert computed(MAXIMUM, (2,), LINF, (1.0, 2.0), nodes=0).value == pytest.approx(1)
    assert computed(MAXIMUM, (2,), LINF, (1.0, 2.0), "fastlip").value == pytest.approx(2)


def test_a_linear_network_is_its_norm():
    for norm, constant in zip(NORMS, (7, 5, 4), strict=True):
        assert computed(LINEAR, (2,), norm).value == pytest.approx(constant, rel=1e-9)


def steepest(model, shape, norm, box):
    """Return the largest norm of the derivatives at some points."""
    lo, hi = box or (-3.0, 3.0)
    points = lo + (hi - lo) * torch.rand(50, *shape, dtype=torch.float64)
    outputs = model(points.requires_grad_()).flatten(1).sum(dim=0)
    rows = [
        torch.autograd.grad(output, points, retain_graph=True)[0].flatten(1) for output in outputs
    ]
    return float(torch.linalg.matrix_norm(torch.stack(rows, dim=1), float(norm)).max())


BOXES = st.one_of(
    st.none(),
    st.tuples(st.floats(-2, 1), st.floats(1e-2, 2)).map(lambda pair: (pair[0], sum(pair))),
)


@settings(max_examples=4)
@given(
    st.integers(0, 999),
    st.sampled_from([(2, 3, 2), (2, 2, 2, 1), (1, 3, 2, 1)]),
    st.sampled_from([nn.ReLU, nn.LeakyReLU, lambda: nn.LeakyReLU(-0.5)]),
    BOXES,
    st.sampled_from(NORMS),
)
def test_it_lies_between_the_exact_constant_and_intervals(seed, widths, activation, box, norm):
    model, shape = random_network(seed, widths, activation), widths[:1]
    exact = computed(model, shape, norm, box, "lipbab")
    few, more = (computed(model, shape, norm, box, nodes=nodes).value for nodes in (0, 10))
    assert exact.side == "exact"
    assert exact.least <= more * SAME
    assert more <= few <= computed(model, shape, norm, box, "fastlip").value * SAME


@settings(max_examples=4)
@given(
    st.integers(0, 999),
    st.sampled_from([(2, 6, 3), (3, 5, 4, 2)]),
    st.sampled_from([nn.Tanh, nn.GELU, nn.Hardtanh, nn.SELU, nn.PReLU, nn.Softplus]),
    BOXES,
    st.sampled_from(NORMS),
)
def test_smooth_networks_are_bounded_too(seed, widths, activation, box, norm):
    model, shape = random_network(seed, widths, activation).double(), widths[:1]
    value = computed(model, shape, norm, box, nodes=6).value
    assert steepest(model, shape, norm, box) <= value * SAME
    assert value <= computed(model, shape, norm, box, "fastlip").value * SAME


@pytest.mark.parametrize(
    ("case", "norm", "box"),
    [
        ("branching", LINF, (0.2, 0.4)),
        ("groups", L2, (0.2, 0.4)),
        ("groups", L1, (-1.0, 1.0)),
        ("convolutional", L2, (0.2, 0.4)),
        ("residual", LINF, None),
        ("residual", L1, (0.2, 0.4)),
        ("sandwich", L2, (0.2, 0.4)),
        ("linear", L1, (0.2, 0.4)),
        ("linear", LINF, None),
    ],
)
def test_any_architecture_is_followed(case, norm, box):
    model, shape = CASES[case]()
    value = computed(model, shape, norm, box, nodes=4).value
    assert steepest(model, shape, norm, box) <= value * SAME
    assert value <= computed(model, shape, norm, box, "fastlip").value * SAME


def formal(network, slopes, norm):
    # The largest norm over all slopes at their ends.
    best = 0.0
    lo, hi = (torch.cat(ends) for ends in zip(*slopes, strict=True))
    open_ = (lo < hi).nonzero().flatten()
    for bits in product([False, True], repeat=len(open_)):
        chosen = lo.clone()
        chosen[open_] = torch.where(torch.tensor(bits, dtype=torch.bool), hi[open_], lo[open_])
        known = [torch.eye(network.inputs, dtype=torch.float64)]
        by_block = chosen.split([len(block) for block in network.blocks])
        for block, local in zip(network.blocks, by_block, strict=True):
            reads = sum(m.values @ known[s] for s, m in block.reads.matrices.items())
            known.append(local.unsqueeze(1) * reads)
        whole = sum(m.values @ known[s] for s, m in network.output.matrices.items())
        best = max(best, float(torch.linalg.matrix_norm(whole, float(norm))))
    return best


@pytest.mark.parametrize(
    ("norm", "activation"),
    [(L1, nn.ReLU), (LINF, nn.ReLU), (L1, lambda: nn.LeakyReLU(-2.0)), (LINF, nn.LeakyReLU)],
)
def test_all_of_space_is_brute_force_once_all_slopes_are_decided(norm, activation):
    model = random_network(0, (3, 4, 3, 2), activation)
    network = as_neuron_blocks(as_network(model, (3,)))
    expected = formal(network, closer_slopes(network, None), norm)
    few, all_ = (computed(model, (3,), norm, nodes=nodes).value for nodes in (0, 2000))
    assert all_ == pytest.approx(expected, rel=1e-9)
    assert few >= expected * (1 - 1e-12)


@settings(max_examples=6)
@given(
    st.integers(0, 999),
    st.sampled_from([(2, 5, 3), (2, 3, 2, 2), (3, 2, 2, 2, 1)]),
    st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, lambda: nn.LeakyReLU(-2.0)]),
    BOXES,
    st.sampled_from(NORMS),
)
def test_no_slopes_in_their_ranges_make_a_larger_norm(seed, widths, activation, box, norm):
    model = random_network(seed, widths, activation)
    network = as_neuron_blocks(as_network(model, widths[:1]))
    value = computed(model, widths[:1], norm, box, nodes=0).value
    assert formal(network, closer_slopes(network, box), norm) <= value * SAME


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
    slopes = closer_slopes(network, box)
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
    slopes = closer_slopes(network, None)
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


@pytest.fixture(name="searched")
def _searched():
    model = random_network(2, (3, 8, 6, 2), nn.ReLU)
    return as_network(model, (3,)), computed(model, (3,), LINF, (-1.0, 1.0), nodes=20)


def test_a_search_is_worth_its_time(searched):
    network, value = searched
    few = bound("jacobian_bound", nodes=0).compute(network, LINF, (-1.0, 1.0))
    assert value.value < 0.95 * few.value
    assert len(value.proof["cases"]) > len(few.proof["cases"]) == 2


def test_more_cases_never_make_a_value_larger():
    """Here the bounds that are left after ten cases are smaller than those after twenty."""
    model, box = random_network(43, (2, 4, 4, 4, 2), nn.LeakyReLU), (-1.0, 1.0)
    whole, ten, twenty = (computed(model, (2,), L1, box, nodes=n).value for n in (0, 10, 20))
    assert twenty == ten < 0.7 * whole


@pytest.mark.parametrize("norm", NORMS)
def test_a_lowered_value_is_caught(norm):
    network = as_network(random_network(2, (3, 8, 6, 2), nn.ReLU), (3,))
    value = bound("jacobian_bound", nodes=10).compute(network, norm, (-1.0, 1.0))
    assert recheck(network, value) == []
    (violation,) = recheck(network, replace(value, value=value.value * 0.999999))
    assert "cases of its derivatives prove" in violation.message
    (violation,) = recheck(network, replace(value, domain=(-2.0, 2.0)))
    assert "cases of its derivatives prove" in violation.message


def tampered(cases):
    deep = int((cases >= 0).sum(dim=1).argmax())
    last = int((cases[deep] >= 0).sum()) - 1
    turned, swapped, far = cases.clone(), cases.clone(), cases.clone()
    turned[deep, last] = turned[deep, last] // 2 * 2  # both halves become one
    turned[:, last] = torch.where(turned[:, last] >= 0, turned[:, last] // 2 * 2, -1)
    swapped[deep, last] = (swapped[deep, last] + 2) % 28
    far[deep, last] = 1000
    return [
        cases[1:],
        torch.cat([cases[:deep], cases[deep + 1 :]]),
        cases[cases[:, 0] == 0],
        torch.cat([cases, cases[:1]]),
        turned,
        swapped,
        far,
        cases[:, :2],
        torch.zeros(1, 1, dtype=torch.int64),
    ]


def test_cases_that_do_not_make_up_all_prove_nothing(searched):
    network, value = searched
    for cases in tampered(value.proof["cases"]):
        wrong = replace(value, proof={"cases": cases}, value=10 * value.value)
        assert "prove inf" in recheck(network, wrong)[0].message
    assert recheck(network, replace(value, value=10 * value.value)) == []


def test_smooth_neurons_are_not_decided():
    model = random_network(0, (2, 3, 2), nn.Tanh)
    value = computed(model, (2,), LINF, (0.0, 1.0))
    wrong = torch.tensor([[0, 0], [0, 1], [1, -1]])
    network = as_network(model, (2,))
    assert value.proof["cases"].tolist() == [[0], [1]]
    assert recheck(network, replace(value, proof={"cases": wrong}))


def test_large_networks_are_refused_by_their_work():
    model = random_network(0, (50, 60, 60, 10), nn.ReLU)
    network = as_network(model, (50,))
    small = bound("jacobian_bound", most_products=1e6)
    assert small.refuses(network, LINF, None).endswith("more than the 1e+06 of most_products.")
    assert bound("jacobian_bound").refuses(network, LINF, None) is None
    huge = as_network(
        nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(43264, 10)),
        (1, 28, 28),
    )
    assert bound("jacobian_bound").refuses(huge, L1, (0.0, 1.0))


def test_less_time_means_fewer_cases():
    network = as_network(random_network(0, (50, 60, 60, 10), nn.ReLU), (50,))
    whole = bound("jacobian_bound")
    cost = whole.cost(network, LINF, (0.0, 1.0))
    first = bound("jacobian_bound", nodes=0).cost(network, LINF, (0.0, 1.0))
    assert whole.within(network, LINF, (0.0, 1.0), cost * SAME) == whole
    assert whole.within(network, LINF, (0.0, 1.0), (first + cost) / 2).nodes == 50
    assert whole.within(network, LINF, (0.0, 1.0), 0.9 * first) is None
    assert whole.cost(network, L2, None) == bound("jacobian_bound", nodes=0).cost(network, L2, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": -1}, "nodes must be at least 0, got -1"),
        ({"most_products": 0.0}, "most_products must be positive, got 0"),
    ],
)
def test_fields_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bound("jacobian_bound", **options)


def test_what_overflows_is_refused():
    """Also if another row is small."""
    for last in ([[1e200, -1e200]], [[1, 0], [1e200, -1e200]], [[1e200, -1e200], [1, 0]]):
        layers = ([[1e200], [1e200]], [-1e250, -1e250]), (last, [0] * len(last))
        network = as_network(dense(*layers), (1,))
        for norm, box in product(NORMS, [None, (0.0, 1e60)]):
            with pytest.raises(Refused, match="too large for float64"):
                bound("jacobian_bound").compute(network, norm, box)


def test_a_case_without_points_counts_for_nothing():
    """The second neuron of the maximum reads an input that is positive."""
    jacobians = Jacobians(as_neuron_blocks(as_network(MAXIMUM, (2,))), LINF, (1.0, 2.0))
    sums, splits = jacobians.bounds([Case(0, ((1, False),)), Case(0, ((1, True),))])
    assert sums.tolist() == pytest.approx([0, 1])
    assert splits.tolist() == [-1, 0]
