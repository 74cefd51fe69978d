"""Functions, methods and operators inside a forward pass."""

import math
import operator

import pytest
import torch
from support.written import Written, read
from torch import nn
from torch.nn import functional as F

from lipbench.networks.network import as_network
from lipbench.networks.steps import AveragePool, Concatenation, Slope, Sum
from lipbench.refused import Refused


def step_of(forward, *shape):
    (step,) = read(lambda self, x: forward(x), *shape).steps
    return step


@pytest.mark.parametrize(
    ("forward", "coefficients", "offset"),
    [
        (lambda x: x + x, (1, 1), 0),
        (lambda x: x - x, (1, -1), 0),
        (lambda x: operator.iadd(x, 2), (1,), 2),
        (lambda x: 1 - x, (-1,), 1),
        (lambda x: x - 0.5, (1,), -0.5),
        (lambda x: 3 * x, (3,), 0),
        (lambda x: x * -0.25, (-0.25,), 0),
        (lambda x: x / 3, (1 / 3,), 0),
        (lambda x: -x, (-1,), 0),
        (lambda x: +x, (1,), 0),
        (lambda x: torch.add(x, x, alpha=2), (1, 2), 0),
        (lambda x: x.add(x), (1, 1), 0),
        (lambda x: torch.sub(x, other=x, alpha=0.5), (1, -0.5), 0),
        (lambda x: torch.sub(x, 3, alpha=2), (1,), -6),
        (lambda x: x.sub_(1), (1,), -1),
        (lambda x: torch.mul(x, 2), (2,), 0),
        (lambda x: x.mul(2.0), (2,), 0),
        (lambda x: torch.div(x, 4), (0.25,), 0),
        (lambda x: x.neg(), (-1,), 0),
    ],
)
def test_arithmetic_with_numbers_is_a_sum(forward, coefficients, offset):
    step = step_of(forward, 3)
    assert isinstance(step, Sum)
    assert (step.coefficients, step.offset) == (coefficients, offset)
    x = torch.randn(5, 3, dtype=torch.float64)
    values = [x] * len(coefficients)
    torch.testing.assert_close(step(*values), forward(x.clone()))


@pytest.mark.parametrize(
    ("forward", "axis"),
    [
        (lambda x: torch.cat([x, x], 1), 1),
        (lambda x: torch.cat((x, x), dim=-1), 3),
        (lambda x: torch.concat([x, -x, x], dim=-2), 2),
        (lambda x: torch.cat(tensors=[x], dim=1), 1),
    ],
)
def test_concatenation_is_one_step(forward, axis):
    network = read(lambda self, x: forward(x), 2, 3, 4)
    step = network.steps[-1]
    assert isinstance(step, Concatenation)
    assert step.axis == axis
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(network(x), forward(x))


IMAGE = (2, 6, 6)


@pytest.mark.parametrize(
    ("forward", "layer"),
    [
        (lambda x: F.max_pool2d(x, 2), nn.MaxPool2d(2)),
        (lambda x: F.max_pool2d(x, 3, 2, 1, 1, True), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        (lambda x: F.max_pool2d(x, kernel_size=(2, 1), stride=1), nn.MaxPool2d((2, 1), 1)),
        (lambda x: torch.max_pool2d(x, 2), nn.MaxPool2d(2)),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, False, False), nn.AvgPool2d(3, 2, 1, False, False)),
        (lambda x: F.avg_pool2d(input=x, kernel_size=2), nn.AvgPool2d(2)),
        (lambda x: F.adaptive_avg_pool2d(x, (1, 2)), nn.AdaptiveAvgPool2d((1, 2))),
        (lambda x: F.dropout(x, 0.5, False), nn.Identity()),
        (lambda x: torch.relu_(x), nn.ReLU()),
        (lambda x: x.relu_(), nn.ReLU()),
        (lambda x: torch.clamp(x, -1, 2), nn.Hardtanh(-1, 2)),
        (lambda x: x.clamp(min=0), nn.ReLU()),
        (lambda x: F.relu6(x), nn.ReLU6()),
        (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2)),
        (lambda x: F.leaky_relu(x, negative_slope=3.0), nn.LeakyReLU(3.0)),
        (lambda x: F.hardtanh(x, -2, 3), nn.Hardtanh(-2, 3)),
        (lambda x: F.elu(x, 2.0), nn.ELU(2.0)),
        (lambda x: F.selu(x), nn.SELU()),
        (lambda x: F.celu(x, alpha=0.5), nn.CELU(0.5)),
        (lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")),
        (lambda x: F.silu(x), nn.SiLU()),
        (lambda x: F.mish(x), nn.Mish()),
        (lambda x: F.logsigmoid(x), nn.LogSigmoid()),
        (lambda x: F.hardsigmoid(x), nn.Hardsigmoid()),
        (lambda x: F.tanhshrink(x), nn.Tanhshrink()),
        (lambda x: F.softplus(x, 2.0), nn.Softplus(2.0)),
        (lambda x: F.softsign(x), nn.Softsign()),
        (lambda x: F.hardswish(x), nn.Hardswish()),
        (lambda x: torch.sigmoid(x), nn.Sigmoid()),
        (lambda x: x.tanh(), nn.Tanh()),
    ],
)
def test_a_function_is_read_as_the_layer_that_does_the_same(forward, layer):
    step, (expected,) = step_of(forward, *IMAGE), as_network(layer, IMAGE).steps
    assert type(step) is type(expected)
    x = torch.randn(5, *IMAGE, dtype=torch.float64)
    assert torch.equal(step(x), expected(x))
    torch.testing.assert_close(step(x), forward(x.clone()))
    if isinstance(step, Slope):
        assert (step.lo, step.hi) == (expected.lo, expected.hi)


def test_an_index_of_a_sample_is_not_taken_for_an_index_of_a_channel():
    """Of three samples and three channels, the wrong axis has the right length."""
    with pytest.raises(Refused, match=r"'getitem' mixes samples|'getitem'.*more than to copy"):
        step_of(lambda x: x[..., 1, :, :], 3, 4)


def test_one_number_for_each_sample_needs_an_axis():
    with pytest.raises(Refused, match="'getitem' leaves a sample no axis; keep one"):
        step_of(lambda x: x[:, 0], 3)


def test_one_dimensional_pools_are_read():
    def forward(self, x):
        return F.adaptive_avg_pool1d(F.avg_pool1d(F.max_pool1d(x, 2, stride=1), 2), 2)

    network, x = read(forward, 2, 9), torch.randn(5, 2, 9, dtype=torch.float64)
    assert len(network.steps) == 3
    torch.testing.assert_close(network(x), forward(None, x))


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(dim=[-1, -2], keepdim=True),
        lambda x: torch.mean(x, -1),
    ],
)
def test_a_mean_over_axes_of_a_sample_is_a_pool(forward):
    step, x = step_of(forward, *IMAGE), torch.randn(5, *IMAGE, dtype=torch.float64)
    assert isinstance(step, AveragePool)
    torch.testing.assert_close(step(x), forward(x))


def test_numbers_that_a_module_holds_are_read():
    network = read(lambda self, x: self.layer(x) / math.sqrt(4), 3, layer=nn.Linear(3, 3))
    assert network.steps[1].coefficients == (0.5,)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x * x.relu(), "'mul'.*product of two values"),
        (lambda x: 2 / x, "'truediv'.*can divide"),
        (lambda x: x / 0, "'truediv'.*can divide"),
        (lambda x: x / 1e-320, "'truediv'.*inf is no finite number"),
        (lambda x: x * math.nan, "'mul'.*nan is no finite number"),
        (lambda x: x + math.inf, "'add'.*inf is no finite number"),
        (lambda x: x * 1j * 1j, "'mul'.*1j is no finite number"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "'div'.*rounding_mode"),
        (lambda x: x + x.mean(1, keepdim=True), "'add'.*differ in shape"),
        (lambda x: x**2, "'pow', which has no rule"),
        (lambda x: x.clamp(min=1.0), "'clamp'.*two numbers"),
        (lambda x: F.pad(x, (1, 1), value=1.0), "'pad'.*more than to copy"),
        (lambda x: F.pad(x, (0, 0, 1, 1)), "'pad' mixes samples"),
        (lambda x: x.squeeze(0)[:1], "'getitem' mixes samples"),
        (lambda x: x[[2, 1, 0]], "'getitem'.*more than to copy"),
        (lambda x: x.flip(0), "'flip'.*more than to copy"),
        (lambda x: x[x > 0], "cannot be traced"),
        (lambda x: x.exp(), "'exp', which has no rule"),
        (lambda x: F.softmin(x, 1), "'softmin', which has no rule"),
        (lambda x: F.softmax(x, 0), "'softmax'.*one sample"),
        (lambda x: x.log_softmax(-2), "'log_softmax'.*one sample"),
        (lambda x: x.softmax(1, torch.float32), "'softmax'.*nothing else"),
        (lambda x: x.softmax(x.size(1) - 5, dtype=torch.float64), "'softmax'.*nothing else"),
        (lambda x: F.normalize(x), "'norm.*', which has no rule"),
        (lambda x: F.layer_norm(x, (6,)), "'layer_norm', which has no rule"),
        (lambda x: F.dropout(x, 0.5), r"layer 'dropout' \(Dropout\).*active dropout"),
        (lambda x: x.data, "'getattr', which has no rule"),
        (lambda x: x * x.size(0), "depends on others in the batch"),
        (lambda x: F.avg_pool2d(x, x.mean(1)), "cannot be traced.*avg_pool2d"),
        (lambda x: x[:, x.argmax()], "cannot be traced"),
        (lambda x: x * x.abs().max().item(), "cannot be traced.*item"),
        (lambda x: torch.cat([x, x]), "'cat' mixes samples"),
        (lambda x: x.mean(), "'mean' mixes samples"),
        (lambda x: x.mean(0, keepdim=True), "'mean' mixes samples"),
        (lambda x: x.reshape(-1), "'reshape' mixes samples"),
        (lambda x: x.view(torch.complex64), "'view'.*another type"),
        (lambda x: F.max_pool2d(x, 1, return_indices=True)[0], "'getitem', which has no rule"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(forward, message):
    shape = (3, 6, 6) if "pool" in message or "getitem" in message else (6,)
    with pytest.raises(Refused, match=message):
        read(lambda self, x: forward(x), *shape)


def test_a_mean_over_samples_is_refused_where_their_number_fits():
    """Three channels, as many as the walker has samples: the result has the right shape."""
    with pytest.raises(Refused, match=r"'mean'.*axes of one sample"):
        step_of(lambda x: x.mean(0), 3, 4)


def test_a_sum_of_different_values_names_the_layer_that_adds():
    inner = Written(lambda self, x: x + x.mean(1, keepdim=True))
    with pytest.raises(Refused, match=r"layer '1' \(Written\).*'add'"):
        as_network(nn.Sequential(nn.Linear(3, 3), inner), (3,))


def test_a_layer_called_with_names_is_refused_by_name():
    with pytest.raises(Refused, match=r"layer 'layer' \(Linear\).*not called with one tensor"):
        read(lambda self, x: self.layer(input=x), 3, layer=nn.Linear(3, 3))
