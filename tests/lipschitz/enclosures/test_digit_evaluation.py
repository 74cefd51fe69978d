"""Evaluation in many digits: against fractions, mpmath and float64."""

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from support.exact_outputs import MODELS, exactly, fractions
from support.written import Written
from torch import nn

import lipbench
from lipbench.layers.activations import CURVES
from lipbench.lipschitz.enclosures.digit_evaluation import evaluate_in_digits
from lipbench.lipschitz.relaxations.rounding import enclose
from lipbench.networks.network import as_network

EXACT_STEPS = {
    "dense": (lambda: deep(nn.ReLU(), 6), (8,)),
    "leaky": (lambda: deep(nn.LeakyReLU(0.3), 6), (8,)),
    "prelu": (lambda: deep(nn.PReLU(8), 6), (8,)),
    "maxmin": (lambda: deep(lipbench.MaxMin(), 6), (8,)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 2, 2, groups=2),
            nn.Flatten(),
            nn.Linear(2, 3),
        ),
        (1, 4, 4),
    ),
    "joined": (lambda: Written(lambda self, x: torch.cat([x, x + x, -x], 1)), (4,)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), (2, 2, 3)),
}


def deep(activation, depth, width=8):
    layers = [(nn.Linear(width, width), activation) for _ in range(depth)]
    return nn.Sequential(*[part for pair in layers for part in pair], nn.Linear(width, 3))


def as_fractions(digits):
    return [whole * Fraction(2) ** power for whole, power in digits.binary()]


@pytest.mark.parametrize("name", MODELS | EXACT_STEPS)
@pytest.mark.parametrize("most", [3, 8])
def test_exact_outputs_lie_within_the_radius(name, most):
    torch.manual_seed(0)
    make, shape = (MODELS | EXACT_STEPS)[name]
    network = as_network(make(), shape)
    inputs = torch.randn(3, *shape, dtype=torch.float64)
    digits = evaluate_in_digits(network, inputs, most)
    exact = [number for x in inputs for number in exactly(network, x)]
    reach = fractions(digits.radius)
    near = as_fractions(digits)
    assert all(abs(n - t) <= r for n, t, r in zip(near, exact, reach, strict=True))
    if name in EXACT_STEPS:
        assert float(digits.radius.max()) < 2.0 ** (-16 * most + 40)


SMOOTH = [kind for kind in CURVES if kind is not nn.ReLU and kind is not nn.LeakyReLU]


@pytest.mark.parametrize("kind", SMOOTH, ids=lambda kind: kind.__name__)
def test_formulas_are_the_functions_of_torch(kind):
    """At 41 numbers in float64, and behind a layer to 100 bits with twice as many digits."""
    layer = kind()
    network = as_network(layer, (41,))
    inputs = torch.linspace(-30, 30, 41, dtype=torch.float64).unsqueeze(0)
    few, many = (evaluate_in_digits(network, inputs, most) for most in (8, 16))
    values, radius = few.rounded()
    float64 = enclose(network, inputs)
    assert bool(((values - float64.values).abs() <= radius + float64.radius).all())
    assert float(few.radius.max()) < 2.0**-100
    for near, far, reach in zip(
        *map(as_fractions, (few, many)), fractions(few.radius), strict=True
    ):
        assert abs(near - far) <= reach


def test_a_normalisation_has_more_digits_than_float64():
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(3).double().eval()
    for tensor in (layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data):
        tensor.copy_(torch.rand(3) + 0.5)
    x = torch.randn(1, 3, dtype=torch.float64)
    digits = evaluate_in_digits(as_network(layer, (3,)), x, 8)
    with mpmath.workprec(300):
        for channel, number in enumerate(as_fractions(digits)):
            mean, var, w, b, point = (
                mpmath.mpf(tensor.detach().flatten()[channel].item())
                for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias, x)
            )
            truth = w * (point - mean) / mpmath.sqrt(var + layer.eps) + b
            near = mpmath.mpf(number.numerator) / number.denominator
            assert abs(truth - near) <= float(digits.radius.flatten()[channel]) <= 2.0**-100


@pytest.mark.parametrize("make", [lipbench.Normalise, None])
def test_divisors_have_more_digits_than_float64(make):
    numbers = torch.tensor([3.0, 7.0, -11.0])
    divided = Written(lambda self, x: x / self.divisor, divisor=nn.Parameter(numbers))
    model = divided if make is None else make([0.0] * 3, [3.0, 7.0, 11.0])
    digits = evaluate_in_digits(as_network(model, (3,)), torch.ones(1, 3).double(), 8)
    truth = [Fraction(1, 3), Fraction(1, 7), Fraction(1, 11 if make else -11)]
    pairs = zip(as_fractions(digits), truth, strict=True)
    assert all(abs(near - exact) < Fraction(2) ** -100 for near, exact in pairs)


def test_other_steps_have_the_error_of_float64():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(dim=1))
    network = as_network(model, (4,))
    x = torch.randn(2, 4, dtype=torch.float64)
    values, radius = evaluate_in_digits(network, x, 8).rounded()
    assert torch.allclose(values, network(x), rtol=1e-12)
    assert 1e-17 < float(radius.max()) < 1e-13


def test_fractions_tell_apart_what_float64_cannot():
    """Behind 30 layers float64's own error bound is larger than all outputs."""
    torch.manual_seed(0)
    layers = []
    for _ in range(30):
        layers += [nn.Linear(16, 16), nn.ReLU()]
        nn.init.normal_(layers[-2].weight, 0, math.sqrt(2 / 16))
    network = as_network(nn.Sequential(*layers), (16,))
    x = torch.randn(1, 16, dtype=torch.float64)
    truth = exactly(network, x[0])
    digits = evaluate_in_digits(network, x, 8)
    assert all(
        abs(n - t) <= r
        for n, t, r in zip(as_fractions(digits), truth, fractions(digits.radius), strict=True)
    )
    assert float(digits.radius.max()) < 1e-12 < 1e-3 < float(enclose(network, x).radius.max())
