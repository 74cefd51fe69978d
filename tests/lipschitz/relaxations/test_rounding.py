"""Enclosures of computed outputs against exact ones, in fractions."""

from fractions import Fraction

import pytest
import torch
from support.exact_outputs import MODELS, exactly, fractions, scaling
from support.written import Written
from torch import nn

import lipbench
from lipbench.lipschitz.relaxations.rounding import Enclosed, _radius, enclose
from lipbench.networks.network import as_network


@pytest.mark.parametrize("name", MODELS)
def test_exact_outputs_lie_in_the_enclosure(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    network = as_network(make(), shape)
    inputs = torch.randn(20, *shape, dtype=torch.float64)
    enclosed = enclose(network, inputs)
    worst = Fraction(0)
    for x, values, radius in zip(inputs, enclosed.values, enclosed.radius, strict=True):
        exact = exactly(network, x)
        for truth, near, reach in zip(exact, fractions(values), fractions(radius), strict=True):
            worst = max(worst, abs(truth - near))
            assert abs(truth - near) <= reach
    assert worst > 0
    assert float(enclosed.radius.max()) < 1e-12


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (lipbench.MaxMin(), (4,), [2.0, 2.0, 4.0, 4.0]),
        (lipbench.GroupSort(4), (4,), [4.0] * 4),
        (nn.ReflectionPad1d(1), (1, 4), [2.0, 1.0, 2.0, 3.0, 4.0, 3.0]),
        (Written(lambda self, x: -2 * x), (4,), [2.0, 4.0, 6.0, 8.0]),
        (scaling(3.0), (4,), [3.0, 6.0, 9.0, 12.0]),
        (
            Written(lambda self, x: torch.cat([x, 3 * x], 1)),
            (4,),
            [1.0, 2.0, 3.0, 4.0, 3.0, 6.0, 9.0, 12.0],
        ),
        (Written(lambda self, x: x - x), (4,), [2.0, 4.0, 6.0, 8.0]),
    ],
)
def test_errors_of_the_input_are_passed_on(model, shape, expected):
    """With inputs that are off by up to 1, 2, 3 and 4, however small their rounding."""
    network = as_network(model, shape)
    radius = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).reshape(1, *shape)
    known = [Enclosed(values=torch.zeros_like(radius), radius=radius)]
    for step in network.steps:
        sources = [known[i] for i in step.inputs]
        values = step(*[source.values for source in sources])
        known.append(Enclosed(values=values, radius=_radius(step, *sources)))
    radii = known[network.output].radius.flatten().tolist()
    assert radii == pytest.approx(expected)
