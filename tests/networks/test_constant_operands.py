"""Forward passes that use parameters and buffers of their module as operands."""

import operator

import pytest
import torch
from support.written import Written
from torch import nn
from torch.nn import functional as F

from lipbench.bound import Bound
from lipbench.networks.network import as_network
from lipbench.networks.steps import Dense, Scale
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

L2 = Norm(2.0)
MEAN = torch.tensor([0.5, -0.25, 2.0]).reshape(1, 3, 1, 1)


def module(forward, **tensors):
    made = Written(forward)
    for name, tensor in tensors.items():
        made.register_buffer(name, tensor)
    return made


def read(forward, shape, **tensors):
    return as_network(module(forward, **tensors), shape)


@pytest.mark.parametrize(
    ("forward", "constant"),
    [
        (lambda self, x: x + self.t, 1),
        (lambda self, x: self.t + x, 1),
        (lambda self, x: torch.add(x, self.t), 1),
        (lambda self, x: x - self.t, 1),
        (lambda self, x: self.t - x, 1),
        (lambda self, x: x.sub(self.t), 1),
        (lambda self, x: x * self.t, 2),
        (lambda self, x: self.t * x, 2),
        (lambda self, x: torch.mul(self.t, x), 2),
        (lambda self, x: x / self.t, 4),
        (lambda self, x: torch.div(x, self.t), 4),
        (lambda self, x: operator.iadd(x, self.t), 1),
        (lambda self, x: operator.itruediv(x, self.t), 4),
    ],
)
@pytest.mark.parametrize("axes", [3, 4])
def test_a_tensor_for_each_channel_is_a_diagonal(forward, constant, axes):
    model = module(forward, t=MEAN if axes == 4 else MEAN[0])
    network = as_network(model, (3, 2, 2))
    (step,) = network.steps
    assert isinstance(step, Scale)
    inputs = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(network(inputs), model.double()(inputs.clone()))
    for norm in (1, 2, float("inf")):
        found = load("lipbench.bounds", "product", Bound)().compute(network, Norm(norm), None)
        assert found.value == pytest.approx(constant, rel=1e-9)


def test_normalisation_in_the_forward_pass_counts():
    """As published networks have it: the constant is divided by the smallest deviation."""
    model = module(lambda self, x: (x - self.mean) / self.std, mean=MEAN, std=MEAN.abs())
    layers = nn.Sequential(model, nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    network = as_network(layers, (3, 2, 2))
    assert [step.name for step in network.layers] == ["1", "4"]
    lower, upper, tight = (
        load("lipbench.bounds", name, Bound)().compute(network, L2, None).value
        for name in ("jacobian", "product", "lipsdp_neuron")
    )
    assert 0 < lower <= tight <= upper * (1 + 1e-9)


def test_a_number_is_a_diagonal_and_a_trained_one_is_named():
    model = Written(lambda self, x: self.gain * x + self.bias)
    model.gain, model.bias = nn.Parameter(torch.tensor(-3.0)), nn.Parameter(torch.zeros(2))
    network = as_network(nn.Sequential(model), (2,))
    assert [step.weight_name for step in network.steps] == ["0.gain", None]
    found = load("lipbench.bounds", "product", Bound)().compute(network, L2, None)
    assert found.value == pytest.approx(3)


class Subclass(nn.Linear):
    pass


class Handmade(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x):
        return F.linear(x, bias=self.shift, weight=self.weight)


@pytest.mark.parametrize("layer", [Subclass(4, 3), Subclass(4, 3, bias=False), Handmade()])
def test_a_matrix_that_a_forward_pass_applies_is_a_dense_layer(layer):
    network = as_network(nn.Sequential(nn.ReLU(), layer), (4,))
    step = network.steps[1]
    assert isinstance(step, Dense)
    assert (step.weight_name, len(network.layers)) == ("1.weight", 1)
    inputs = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(network(inputs), layer.double()(inputs.relu()))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: self.t / x, "'truediv'.*quotient by a value"),
        (lambda self, x: operator.iadd(self.batch, x), "changes the tensor 'batch'"),
        (lambda self, x: torch.add(x, self.t, alpha=2), "'add'.*only one value and one tensor"),
        (lambda self, x: x.maximum(self.t), "'maximum'"),
        (lambda self, x: torch.cat([x, self.batch], 1), "'cat'.*no value of the network"),
        (lambda self, x: F.linear(x.relu(), self.row), "'linear' leaves a sample no axis"),
        (lambda self, x: F.linear(self.row, x), "'linear'.*depend on the input"),
        (lambda self, x: x.relu() + self.wide, "'add'.*another shape"),
        (lambda self, x: x + self.batch, "'add'.*another shape"),
        (lambda self, x: self.t, "does not return one tensor"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(forward, message):
    tensors = {
        "t": torch.ones(1, 4),
        "row": torch.ones(4),
        "wide": torch.ones(1, 5, 4),
        "batch": torch.ones(3, 4),
    }
    with pytest.raises(Refused, match=message):
        read(forward, (1, 4) if "wide" in forward.__code__.co_names else (4,), **tensors)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.t * self.t + x,
        lambda self, x: x + 2 * self.t,
        lambda self, x: F.linear(x, self.batch[1:]),
        lambda self, x: F.linear(x, self.batch.abs().clamp(min=0.5)),
        lambda self, x: x @ torch.outer(self.t[0], self.t[0]),
        lambda self, x: x + self.whole,
    ],
)
def test_tensors_may_be_made_of_tensors(forward):
    model = module(
        forward,
        t=torch.tensor([[1.0, -2.0, 0.5, 3.0]]),
        batch=torch.arange(12.0).view(3, 4) - 5,
        whole=torch.arange(4),
    )
    network, inputs = as_network(model, (4,)), torch.randn(5, 4, dtype=torch.float64)
    assert len(network.steps) == 1
    torch.testing.assert_close(network(inputs), model.double()(inputs))


def test_a_forward_pass_that_changes_a_buffer_is_refused():
    """Slowly enough that no comparison with the module itself would tell."""

    def forward(self, x):
        self.scale.mul_(1 + 1e-12)
        return x * self.scale

    with pytest.raises(Refused, match="its forward changes the tensor 'scale'"):
        read(forward, (3,), scale=torch.ones(3))
