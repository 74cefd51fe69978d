"""What the Cayley transform adds to `test_contractive`: all singular values are 1."""

import pytest
import torch
from support.training import a_method, a_model, a_net, an_entry, digits, initial, train
from torch import nn

from lipbench.bound import Bound
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.training.optimiser import Optimizer

RNG = torch.Generator().manual_seed(0)
STRIDED = nn.Sequential(
    nn.Conv2d(1, 4, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
)


def effective(module, shape):
    method = a_method("cayley")
    net = a_net(method.build(module, shape, RNG), shape)
    state = method.start(net, digits(), RNG)
    return net.with_params(method.finish(net, state, digits(), {})).module()


def as_matrix(layer, shape):
    identity = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    bias, layer.bias = layer.bias, None
    matrix = layer.double()(identity.reshape(-1, *shape)).flatten(1)
    layer.bias = bias
    return matrix


def test_layers_are_orthogonal_after_training():
    entry = an_entry("cayley", epochs=2, optimizer=Optimizer(name="adam", lr=0.05))
    (outcome,) = train(entry, model=a_model(widths=(80, 16)))
    weights = [v for name, v in outcome.checkpoints["last"].params.items() if "weight" in name]
    assert [tuple(weight.shape) for weight in weights] == [(80, 64), (16, 80), (10, 16)]
    for weight in weights:
        values = torch.linalg.svdvals(weight)
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("channels", "stride"), [((4, 4), 1), ((2, 4), 1), ((4, 2), 1), ((1, 4), 2)]
)
def test_convolutions_are_orthogonal(channels, stride):
    layer = nn.Conv2d(*channels, 4 if stride == 2 else 3, stride=stride, padding=1)
    found = effective(nn.Sequential(layer), (channels[0], 6, 6))[0]
    values = torch.linalg.svdvals(as_matrix(found, (channels[0], 6, 6)))
    torch.testing.assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["product", "sedghi"])
def test_bounds_of_convolutions_prove_it(name):
    module = effective(STRIDED, (1, 8, 8))
    bound = load("lipbench.bounds", name, Bound)()
    value = bound.compute(as_network(module, (1, 8, 8)), Norm(2), None).value
    assert value == pytest.approx(1, abs=1e-5)


def test_madry_cnn_trains():
    entry = an_entry("cayley", epochs=1, batch_size=64)
    (outcome,) = train(entry, digits(train=64), model=a_model("madry_cnn"))
    assert outcome.state == "done"


def test_a_convolution_that_shrinks_the_image_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    reason = a_method("cayley").refuses(model, digits())
    assert reason.startswith("layer '0' (Conv2d): an image around whose edges")
    assert a_method("cayley").refuses(initial(digits()), digits()) is None
