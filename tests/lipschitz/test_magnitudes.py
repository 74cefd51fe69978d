"""Networks of numbers from 1e-320 to 1e300: what is certified is true in fractions, or refused."""

import math
from contextlib import suppress
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.exact_outputs import EXACT, fractions
from support.nets import dense
from torch import nn

import lipbench
from lipbench import registry
from lipbench.bound import Bound
from lipbench.lipschitz.certified_radius import certified_radius, gaps
from lipbench.lipschitz.lower_bounds.witness import proved_quotient
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.balls import local_radius
from lipbench.networks.network import as_network
from lipbench.norm import NORMS, Norm
from lipbench.refused import Refused

UPPER = {
    name: plugin
    for name in registry.names("lipbench.bounds")
    if (plugin := registry.load("lipbench.bounds", name, Bound)).side in ("upper", "exact")
}
SCALES = st.one_of(
    st.integers(-320, 300),
    st.sampled_from([-320, -308, -300, -170, -165, -162, -155, -150, -100, 0, 100, 150, 165, 300]),
)
ACTIVATIONS = [None, nn.ReLU(), nn.LeakyReLU(0.25), lipbench.MaxMin()]


def scaled(exponents, activation, seed, biased, width=4):
    """Return a network with a layer for each power of 10 that its weights are near."""
    rng = torch.Generator().manual_seed(seed)
    layers, size = [], 1.0
    for number, exponent in enumerate(exponents):
        outputs = width if number + 1 < len(exponents) else 3
        layer = nn.Linear(width, outputs).double()
        scale = 10.0**exponent
        with torch.no_grad():
            layer.weight.copy_(torch.randn(outputs, width, generator=rng).double() * scale)
            size *= scale
            bias = torch.randn(outputs, generator=rng).double()
            layer.bias.copy_(bias * size if biased and size < 1e300 else 0 * bias)
        layers += [layer, *([activation] if activation and number + 1 < len(exponents) else [])]
    return nn.Sequential(*layers)


def read(module):
    """Return a network, None where its outputs overflow, which is refused by that name."""
    if module(torch.full((1, 4), 10.0, dtype=torch.float64)).isfinite().all():
        with suppress(Refused):
            return as_network(module, (4,))
    with pytest.raises(Refused, match="not finite"):
        as_network(module, (4,))
    return None


def exact_outputs(network, x):
    values = [x]
    for step in network.steps:
        values.append(EXACT[type(step).__name__](step, *[values[i] for i in step.inputs]))
    return values[network.output]


def power(numbers, norm):
    """Return the norm of fractions, squared in l2."""
    sizes = [abs(number) for number in numbers]
    return {1.0: sum, math.inf: max}.get(float(norm), lambda s: sum(n * n for n in s))(sizes)


def minus(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


def steepest(network, points, norm):
    """Return the largest exact quotient of close pairs of points, squared in l2."""
    found = Fraction(0)
    for x in points:
        for axis in range(len(x) + 2):
            move = [Fraction(0)] * len(x)
            if axis < len(x):
                move[axis] = Fraction(1, 2**20)
            else:
                move = [Fraction((-1) ** (i * (axis - len(x) + 1)), 2**20) for i in range(len(x))]
            rise = minus(
                exact_outputs(network, [a + m for a, m in zip(x, move, strict=True)]),
                exact_outputs(network, x),
            )
            found = max(found, power(rise, norm) / power(move, norm))
    return found


def bounds_of(network, norm, box=None):
    for name, plugin in UPPER.items():
        bound = plugin()
        if norm not in bound.norms:
            continue
        try:
            if bound.refuses(network, norm, box) is None:
                yield name, bound.compute(network, norm, box)
        except Refused:
            continue


def check(network, norm, seed):
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2, *network.input_shape, generator=rng, dtype=torch.float64)
    points = [fractions(x) for x in inputs]
    truth = steepest(network, points, norm)
    labels = torch.tensor(
        [max(range(3), key=out.__getitem__) for out in (exact_outputs(network, x) for x in points)]
    )
    margins = gaps(network, inputs, labels)
    told = 0
    for name, value in bounds_of(network, norm):
        if not math.isfinite(value.value):
            continue
        told += 1
        claim = Fraction(value.value) ** (2 if norm == 2.0 else 1)
        assert truth <= claim * (1 + Fraction(1, 10**8)), (name, value.value, float(truth))
        assert recheck(network, value) == [], name
        radius = certified_radius(margins, labels, network, value)
        for x, label, r in zip(points, labels.tolist(), radius.tolist(), strict=True):
            assert_certified(network, x, label, r, norm, name)
    with suppress(Refused):
        radius = local_radius(network, norm, inputs, labels, margins, (1e-200, 0.1, 1.0))
        for x, label, r in zip(points, labels.tolist(), radius.tolist(), strict=True):
            assert_certified(network, x, label, r, norm, "local_radius")
    u, v = inputs
    proved = Fraction(proved_quotient(network, u, v, norm))
    rise = power(minus(*(exact_outputs(network, x) for x in points)), norm)
    run = power(minus(*points), norm)
    assert proved ** (2 if norm == 2.0 else 1) <= rise / run * (1 + Fraction(1, 10**9))
    return told


def assert_certified(network, x, label, radius, norm, name):
    """Walk from a sample to where another class is best, in exact steps shorter than the radius."""
    if not radius > 0:
        return
    reach = Fraction(min(radius, 1e307)) * Fraction(999, 1000)
    here = exact_outputs(network, x)
    for rival in {0, 1, 2} - {label}:
        slopes = []
        for axis in range(len(x)):
            moved = list(x)
            moved[axis] += Fraction(1, 2**30)
            out = exact_outputs(network, moved)
            slopes.append(out[label] - out[rival] - here[label] + here[rival])
        largest = max(map(abs, slopes))
        if not largest:
            continue
        if norm == math.inf:
            step = [-reach if s > 0 else reach if s < 0 else Fraction(0) for s in slopes]
        elif norm == 1.0:
            step = [Fraction(0)] * len(slopes)
            at = max(range(len(slopes)), key=lambda i: abs(slopes[i]))
            step[at] = -reach if slopes[at] > 0 else reach
        else:
            unit = [s / largest for s in slopes]
            length = Fraction(math.sqrt(float(sum(s * s for s in unit))) * (1 + 1e-12))
            step = [-reach * s / length for s in unit]
        out = exact_outputs(network, [a + s for a, s in zip(x, step, strict=True)])
        assert out[label] > out[rival], (name, radius)


def check_box(network, norm, seed, box):
    """Compare upper bounds on a box with exact quotients of pairs in it."""
    lo, hi = map(Fraction, box)
    rng = torch.Generator().manual_seed(seed)
    shares = torch.rand(4, 2, *network.input_shape, generator=rng, dtype=torch.float64)
    shares = torch.cat([shares, shares.round()])
    power_of = 2 if norm == 2.0 else 1
    truth = Fraction(0)
    for pair in shares:
        u, v = ([lo + (hi - lo) * share for share in fractions(x)] for x in pair)
        if u != v:
            rise = minus(exact_outputs(network, u), exact_outputs(network, v))
            truth = max(truth, power(rise, norm) / power(minus(u, v), norm))
    for name, value in bounds_of(network, norm, box):
        if math.isfinite(value.value):
            claim = Fraction(value.value) ** power_of
            assert truth <= claim * (1 + Fraction(1, 10**8)), (name, value.value, box)
            assert recheck(network, value) == [], name


CASES = (
    st.lists(SCALES, min_size=1, max_size=3),
    st.sampled_from(ACTIVATIONS),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from(sorted(NORMS)),
)


@settings(max_examples=8, deadline=None)
@given(*CASES)
def test_no_scale_of_weights_breaks_what_is_certified(exponents, activation, seed, biased, norm):
    network = read(scaled(exponents, activation, seed, biased))
    if network is not None:
        check(network, norm, seed)


ENDS = st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1]), SCALES, SCALES)


def box_of(ends):
    """Return a box whose ends are 0 or a power of 10 of either sign, None if it is empty."""
    first, last, low, high = ends
    lo, hi = sorted((first * 10.0**low, last * 10.0**high))
    return (lo, hi) if lo < hi else None


@settings(max_examples=8, deadline=None)
@given(*CASES, ENDS)
def test_no_scale_of_a_box_breaks_a_bound(exponents, activation, seed, biased, norm, ends):
    box, network = box_of(ends), read(scaled(exponents, activation, seed, biased))
    if box is not None and network is not None:
        check_box(network, norm, seed, box)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(*CASES)
def test_no_scale_of_weights_breaks_what_is_certified_often(
    exponents, activation, seed, biased, norm
):
    network = read(scaled(exponents, activation, seed, biased))
    if network is not None:
        check(network, norm, seed)


def test_layers_that_make_up_for_each_other():
    """1e-165, then 1e165 and a bias: the sample at 0 is certified to 1/sqrt(2), and not to 1."""
    eye = [[1.0, 0.0], [0.0, 1.0]]
    first = [[number * 1e-165 for number in row] for row in eye]
    last = [[number * 1e165 for number in row] for row in eye]
    network = as_network(dense((first, [0, 0]), (last, [1, 0]), activation=nn.Identity), (2,))
    labels, inputs = torch.tensor([0]), torch.zeros(1, 2, dtype=torch.float64)
    count = 0
    for name, value in bounds_of(network, Norm(2)):
        radius = float(certified_radius(gaps(network, inputs, labels), labels, network, value))
        assert radius <= 0.5**0.5, name
        assert value.value >= 1, name
        count += radius > 0.49
    assert count >= 3


def test_a_ball_around_a_sample_knows_what_vanishes_between_layers():
    """Each layer is in range, and their product of 1e-295 is not."""
    network = as_network(scaled([-100, -95, -100], nn.ReLU(), 266537, False), (4,))
    check(network, Norm(2), 266537)


@pytest.mark.parametrize("scale", [1e-162, 1e-200, 1e-300, 1e-310, 5e-324])
def test_one_tiny_layer_has_no_infinite_radius(scale):
    network = as_network(dense(([[scale, 0.0], [0.0, -scale]], [1, 0])), (2,))
    labels, inputs = torch.tensor([0]), torch.zeros(1, 2, dtype=torch.float64)
    margins = gaps(network, inputs, labels)
    values = dict(bounds_of(network, Norm(2)))
    for name, value in values.items():
        assert value.value >= scale, name
        assert float(certified_radius(margins, labels, network, value)) <= 0.71 / scale, name
    assert values["product"].value <= 2 * scale + 1e-323


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ten_layers_whose_product_is_tiny(dtype):
    """The constant is above 1e-171 and no bound says less; the lower one is not 0."""
    rng = torch.Generator().manual_seed(0)
    layers = [nn.Linear(6, 6, bias=False, dtype=dtype) for _ in range(10)]
    for layer in layers:
        layer.weight.data = torch.randn(6, 6, generator=rng, dtype=dtype) * 2e-17
    network = as_network(nn.Sequential(*layers), (6,))
    truth = float(steepest(network, [[Fraction(1)] * 6], Norm(1)))
    assert truth > 1e-171
    for name, value in bounds_of(network, Norm(1)):
        assert value.value >= truth, name
    u, v = torch.randn(2, 6, generator=rng, dtype=torch.float64)
    assert proved_quotient(network, u, v, Norm(1)) > 1e-172


def test_a_bracket_of_subnormal_weights_is_sound():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight.mul_(1e-318)
        model[2].weight.mul_(1e300)
    found = lipbench.bracket(model, (3,), time_limit=5)
    truth = steepest(as_network(model, (3,)), [[Fraction(1, 3)] * 3], Norm(2))
    assert found.lower <= found.upper
    assert truth <= Fraction(found.upper) ** 2


@pytest.mark.parametrize("box", [(0.0, 1e-310), (-1.0, 1e-300), (1e-320, 1.0), (-1e-305, 0.0)])
def test_neurons_are_not_dead_because_a_box_is_thin(box):
    """relu(w x) with w x as small as 1e-330 rises with x, whatever float64 makes of it."""
    network = as_network(dense(([[1e-20]], [0]), ([[1.0]], [0])), (1,))
    for name, plugin in UPPER.items():
        bound = plugin()
        for norm in bound.norms:
            try:
                if bound.refuses(network, norm, box) is None:
                    value = bound.compute(network, norm, box).value
                    assert value >= (1e-20 if box[1] > 0 else 0), (name, norm)
            except Refused:
                continue
