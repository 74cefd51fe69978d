"""Every kind of step has its rules, and a kind without them is refused by name wherever it comes.

A kind that is new here fails in `EXAMPLES`, and then wherever a rule is missing.
"""

import inspect
import math
from dataclasses import dataclass

import pytest
import torch
from support.written import Written
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.layers.explanations import ConvResidual, Residual
from lipbench.layers.sandwich import SandwichLayer
from lipbench.lipschitz.exact.region_search import _has_scales
from lipbench.lipschitz.lower_bounds.slope_ascent import climb
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.dense_and_convolution import upper_norm
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.chain import refusal
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, neurons, widths
from lipbench.lipschitz.relaxations.rounding import enclose
from lipbench.networks import steps
from lipbench.networks.network import Network, as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load, names

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
NOT_READ = {steps.Softmax}
NO_RULE = "has no rule for this kind"


def a_sandwich():
    layer = SandwichLayer(3, 5, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


EXAMPLES = {
    steps.Dense: (lambda: nn.Linear(3, 2), (3,)),
    steps.Convolution: (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 3, 3)),
    steps.TransposedConvolution: (lambda: nn.ConvTranspose2d(2, 2, 2, 2), (2, 2, 2)),
    steps.Slope: (nn.Tanh, (3,)),
    steps.Scale: (lambda: lipbench.Normalise([0.1, 0.2], [0.3, 0.7]), (2, 2, 2)),
    steps.Rearrange: (nn.Flatten, (2, 2)),
    steps.MaxPool: (lambda: nn.MaxPool2d(2, 1), (1, 3, 3)),
    steps.AveragePool: (lambda: nn.AvgPool2d(2, 1), (1, 3, 3)),
    steps.Copy: (lambda: nn.ReflectionPad1d(1), (1, 3)),
    steps.Sum: (lambda: Written(lambda self, x: x / 3 + (2 - x)), (3,)),
    steps.Concatenation: (lambda: Written(lambda self, x: torch.cat([x, x / 3], dim=1)), (3,)),
    steps.GroupSort: (lambda: lipbench.GroupSort(3), (6,)),
    steps.Softmax: (lambda: nn.Softmax(1), (3,)),
    steps.Contraction: (lambda: Residual(torch.randn(3, 4) / 4, torch.ones(4)), (3,)),
    steps.ConvContraction: (
        lambda: ConvResidual(torch.randn(2, 2, 3, 3) / 9, torch.zeros(2)),
        (2, 3, 3),
    ),
    steps.Sandwich: (a_sandwich, (3,)),
}


def kinds(base=steps.Step):
    """Return all classes of steps in the package that can be made."""
    below = {kind for child in base.__subclasses__() for kind in kinds(child)}
    is_ours = base.__module__.startswith("lipbench.") and not inspect.isabstract(base)
    return below | ({base} if is_ours and not base.__name__.startswith("_") else set())


def an_example(kind):
    torch.manual_seed(0)
    make, shape = EXAMPLES[kind]
    network = as_network(make().eval(), shape)
    assert kind in set(map(type, network.steps))
    return network


def test_there_is_an_example_of_every_kind():
    assert kinds() == set(EXAMPLES)


def climbed(network, inputs):
    """Return the slopes at inputs and one step further, whichever is larger."""
    return climb(network, inputs, inputs, Norm(2), domain=None, steps=1, spread=1.0)[0]


@pytest.mark.parametrize("kind", sorted(EXAMPLES, key=lambda kind: kind.__name__))
def test_every_kind_has_a_rule_everywhere(kind):
    network = an_example(kind)
    for norm in NORMS:
        constants = [constant(step, norm) for step in network.steps]
        assert 0 <= composed(network, constants, norm) < math.inf
    inputs = torch.rand(2, *network.input_shape, dtype=torch.float64)
    assert bool((enclose(network, inputs).radius >= 0).all())
    assert neurons(network) >= 0
    assert NO_RULE not in (refusal(network, 10**9) or "")
    assert _has_scales(network) in (True, False)
    assert bool((climbed(network, inputs) >= 0).all())


@pytest.mark.parametrize("kind", sorted(set(EXAMPLES) - NOT_READ, key=lambda k: k.__name__))
def test_every_kind_is_unrolled_into_as_many_neurons_as_are_counted(kind):
    network = an_example(kind)
    blocks = as_neuron_blocks(network)
    inputs = torch.rand(2, *network.input_shape, dtype=torch.float64)
    torch.testing.assert_close(blocks(inputs.flatten(1)), network(inputs).flatten(1))
    assert sum(map(len, blocks.blocks)) == neurons(network)


@pytest.mark.parametrize("kind", sorted(NOT_READ, key=lambda kind: kind.__name__))
def test_a_kind_that_is_not_unrolled_says_so(kind):
    with pytest.raises(Refused, match=rf"\({kind.__name__}\) is not read neuron by neuron\.$"):
        as_neuron_blocks(an_example(kind))


@dataclass(frozen=True, kw_only=True, eq=False)
class Doubling(steps.Step):
    """A stranger's step, 2x or 2(x + y + …)."""

    def __call__(self, *inputs):
        """Return twice the sum."""
        return 2 * sum(inputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reversed(steps.Linear):
    """A stranger's linear step, which reads its input from the last entry to the first."""

    def apply(self, inputs):
        """Return W times the reversed input."""
        return inputs.flip(-1) @ self.weight.T

    def adjoint(self, outputs):
        """Return what undoes it in a scalar product."""
        return (outputs @ self.weight).flip(-1)

    @property
    def fan_in(self):
        """Return the number of columns."""
        return self.weight.shape[1]

    @property
    def _bias_axes(self):
        return 0


def a_network(*listed):
    return Network(input_shape=(2,), steps=listed, output=len(listed))


def doubling(inputs=(0,)):
    shapes = ((2,),) * len(inputs)
    return Doubling(name="strange", inputs=inputs, input_shapes=shapes, output_shape=(2,))


def a_reversed():
    return Reversed(
        name="strange",
        input_shapes=((2,),),
        output_shape=(2,),
        weight=torch.eye(2, dtype=torch.float64),
        bias=None,
        weight_name="weight",
        bias_name=None,
    )


POINTS = torch.ones(1, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("asked", "room"),
    [
        (lambda network: constant(network.steps[0], Norm(1)), "operator_norms.constants"),
        (lambda network: constant(network.steps[0], Norm(2)), "operator_norms.constants"),
        (lambda network: enclose(network, POINTS), "relaxations.rounding"),
        (as_neuron_blocks, "relaxations.neuron_blocks"),
        (neurons, "relaxations.neuron_blocks"),
        (widths, "relaxations.neuron_blocks"),
        (_has_scales, "exact.region_search"),
        (lambda network: climbed(network, POINTS), "lower_bounds.slope_ascent"),
    ],
)
def test_a_strangers_step_is_refused_with_its_kind_and_the_room(asked, room):
    match = rf"step 'strange' \(Doubling\) .*: lipbench\.lipschitz\.{room} {NO_RULE}"
    with pytest.raises(Refused, match=match):
        asked(a_network(doubling()))


def test_a_strangers_step_that_merges_values_is_refused():
    network = a_network(doubling((0, 0)))
    with pytest.raises(Refused, match=rf"\(Doubling\) merges values: .*composition {NO_RULE}"):
        composed(network, [2.0], Norm(2))


def test_a_strangers_step_is_no_layer_of_a_chain():
    assert "step 'strange' (Doubling) is no layer" in refusal(a_network(doubling()), 10)


@pytest.mark.parametrize(
    ("asked", "room"),
    [
        (
            lambda network: upper_norm(network.steps[0], Norm(2)),
            "operator_norms.dense_and_convolution",
        ),
        (
            lambda network: constant(network.steps[0], Norm(2)),
            "operator_norms.dense_and_convolution",
        ),
        (as_neuron_blocks, "relaxations.neuron_blocks"),
    ],
)
def test_a_strangers_linear_step_is_not_taken_for_a_matrix(asked, room):
    with pytest.raises(Refused, match=rf"\(Reversed\) .*{room} {NO_RULE}"):
        asked(a_network(a_reversed()))


BOUNDS = [
    (name, norm)
    for name in names("lipbench.bounds")
    for norm in NORMS
    if norm in load("lipbench.bounds", name, Bound).norms
]


@pytest.mark.parametrize(("name", "norm"), BOUNDS)
@pytest.mark.parametrize("strange", [doubling, a_reversed])
def test_no_bound_takes_a_strangers_step_for_another(name, norm, strange):
    """Of a kind without rules, a bound may say nothing, or what it proves without any."""
    network, bound = a_network(strange()), load("lipbench.bounds", name, Bound)()
    value = said(bound, network, norm)
    if isinstance(value, str):
        assert "strange" in value
        return
    truth = 2.0 if strange is doubling else 1.0
    assert value.side != "upper" or value.value >= truth
    assert value.side != "lower" or value.value <= truth * (1 + 1e-9)
    assert value.side != "exact" or value.value == pytest.approx(truth)
    assert recheck(network, value) == []


def said(bound, network, norm):
    """Return the value of a bound, or why it has none."""
    try:
        reason = bound.refuses(network, norm, (-1.0, 1.0))
        return reason or bound.compute(network, norm, (-1.0, 1.0), (), POINTS)
    except Refused as error:
        return str(error)
