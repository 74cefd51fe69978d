"""What skew orthogonal layers add to `test_contractive`: the series, and what it leaves out."""

import math

import pytest
import torch
from support.training import a_method, a_model, a_net, an_entry, digits, train
from torch import nn
from torch.nn import functional as F

from lipbench.bound import Bound
from lipbench.layers.fantastic_four import kernel_bound
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.training.optimiser import Optimizer

SHAPES = [(3, 3), (4, 2), (2, 4)]


def a_convolution(channels, seed=0):
    """Return the periodic layer of a convolution, with random taps, and its parameters."""
    outputs, inputs = channels
    model = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    rng = torch.Generator().manual_seed(seed)
    (layer,) = a_method("soc").build(model, (inputs, 6, 6), rng)
    return layer.double().requires_grad_(False)


def repeated(layer, x, terms):
    # The paper's layer, with torch's own convolutions: channels of zeros, x + Sx + S²x/2 + ...
    kernel = layer.middle()
    outputs, inputs = kernel.shape[:2]
    kernel = kernel * 2.1 / kernel_bound(kernel)
    most = max(outputs, inputs)
    square = F.pad(kernel, (0, 0, 0, 0, 0, most - inputs, 0, most - outputs))
    skew = (square - square.transpose(0, 1).flip(2, 3)) / 2
    term = F.pad(x, (0, 0, 0, 0, 0, most - inputs))
    total = term
    for number in range(1, terms + 1):
        term = F.conv2d(F.pad(term, (1, 1, 1, 1), mode="circular"), skew) / number
        total = total + term
    return total[:, :outputs]


def in_effect(layer, is_final=False, **fields):
    raw = {"weight": layer.weight.clone()}
    found = a_method("soc", **fields).explicit(layer, raw, is_final=is_final)
    layer.weight.copy_(found["weight"])
    return layer


def norm_of(layer, channels):
    network = as_network(layer, (channels, 6, 6))
    return load("lipbench.bounds", "product", Bound)().compute(network, Norm(2), None).value


@pytest.mark.parametrize("channels", SHAPES)
@pytest.mark.parametrize("terms", [1, 5])
def test_a_convolution_is_the_series_of_the_paper(channels, terms):
    layer = a_convolution(channels)
    x = torch.randn(2, channels[1], 6, 6, dtype=torch.float64)
    expected = repeated(layer, x, terms)
    found = in_effect(layer, terms=terms)(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("channels", SHAPES)
def test_what_the_series_adds_to_the_norm_is_divided_out(channels):
    few = in_effect(a_convolution(channels), terms=1)
    assert norm_of(few, channels[1]) > 1.05
    few = in_effect(a_convolution(channels), is_final=True, terms=1, final_terms=1)
    assert norm_of(few, channels[1]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("channels", SHAPES)
def test_the_saved_convolution_is_orthogonal(channels):
    layer = in_effect(a_convolution(channels), is_final=True)
    size = channels[1] * 36
    identity = torch.eye(size, dtype=torch.float64).reshape(size, channels[1], 6, 6)
    values = torch.linalg.svdvals(layer(identity).flatten(1))
    torch.testing.assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)


def test_dense_layers_are_orthogonal_after_training():
    entry = an_entry("soc", epochs=2, optimizer=Optimizer(name="adam", lr=0.05))
    (outcome,) = train(entry, model=a_model(widths=(80, 16, 16)))
    weights = [v for name, v in outcome.checkpoints["last"].params.items() if "weight" in name]
    assert len(weights) == 4
    for weight in weights:
        values = torch.linalg.svdvals(weight)
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)


def test_a_dense_layer_first_reads_all_its_inputs():
    model = nn.Sequential(nn.Linear(200, 8))
    (layer,) = a_method("soc").build(model, (200,), torch.Generator().manual_seed(0))
    raw = {"weight": layer.weight.detach()}
    found = a_method("soc").explicit(layer, raw, is_final=True)["weight"]
    # Of the squares, which sum to 8, the first 8 columns have little more than their share.
    assert float(found[:, :8].square().sum()) < 1


@pytest.mark.parametrize("shape", [(4, 4), (2, 5), (5, 2)])
def test_a_dense_layer_is_the_exponential_whatever_the_length_of_v(shape):
    weight = torch.randn(shape, dtype=torch.float64)
    layer = nn.Linear(shape[1], shape[0])
    found = [
        a_method("soc").explicit(layer, {"weight": factor * weight}, is_final=False)["weight"]
        for factor in (1.0, 7.0)
    ]
    torch.testing.assert_close(*found)
    square = F.pad(weight, (0, max(shape) - shape[1], 0, max(shape) - shape[0]))
    turn = math.pi * min(shape) ** 0.5 / weight.norm() * (square - square.T) / 2
    expected = torch.linalg.matrix_exp(turn)[: shape[0], : shape[1]]
    torch.testing.assert_close(found[0], expected)


def test_a_stride_is_a_convolution_of_phases():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    )
    method = a_method("soc")
    net = a_net(method.build(model, (1, 8, 8), torch.Generator().manual_seed(0)), (1, 8, 8))
    module = net.with_params(method.finish(net, {}, digits(), {})).module()
    network = as_network(module, (1, 8, 8))
    value = load("lipbench.bounds", "sedghi", Bound)().compute(network, Norm(2), None).value
    assert value == pytest.approx(1, abs=1e-5)


def test_madry_cnn_trains():
    entry = an_entry("soc", epochs=1, batch_size=64)
    (outcome,) = train(entry, digits(train=64), model=a_model("madry_cnn"))
    assert outcome.state == "done"


def test_a_convolution_that_shrinks_the_image_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    reason = a_method("soc").refuses(model, digits())
    assert reason.startswith("layer '0' (Conv2d): an image around whose edges")


def test_a_dense_layer_that_would_take_long_is_refused_by_its_size():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 600), nn.ReLU(), nn.Linear(600, 10))
    assert a_method("soc").refuses(model, digits()) is None
    reason = a_method("soc", most_width=63).refuses(model, digits())
    assert reason.startswith("layer '1' (Linear): the exponential of a layer with 64 inputs")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"most_width": 0}, "most_width must be at least 1, got 0"),
        ({"terms": 0}, "terms must be at least 1, got 0"),
        ({"terms": 8, "final_terms": 7}, r"final_terms must be at least terms \(8\), got 7"),
        ({"offset": -1.0}, "offset must be at least 0 and finite, got -1.0"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        a_method("soc", **fields)
