import math
import re

import numpy as np
import pytest
import torch
from support.penalised import convolutional, dense, matrices, penalty
from support.training import a_method, a_model, a_net, an_entry, digits, same, train
from torch import nn

NAME = "lipbound_regularization"


def by_the_letter(kernel, samples, apart):
    # (c1, c2, k, k) with c1 ≤ c2: sqrt(Σ_i max_w Σ_j |Σ_hg k_ijhg exp(i(w1 h + w2 g))|²).
    kernel = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.transpose(1, 0, 2, 3)
    rows, columns, height, width = kernel.shape
    squares = np.zeros((rows, samples, samples))
    for i, a, b in np.ndindex(*squares.shape):
        w1, w2 = 2 * math.pi * a / samples, 2 * math.pi * b / samples
        for j in range(columns):
            value = sum(
                kernel[i, j, h, g] * np.exp(1j * (w1 * h + w2 * g))
                for h, g in np.ndindex(height, width)
            )
            squares[i, a, b] += abs(value) ** 2
    return math.sqrt(squares.max((1, 2)).sum() if apart else squares.sum(0).max())


@pytest.mark.parametrize("channels", ["apart", "together"])
@pytest.mark.parametrize(
    ("kind", "apply"), [("log", math.log), ("log1p", math.log1p), ("sum", float)]
)
def test_the_penalty_of_convolutions_is_the_papers(channels, kind, apply):
    modules = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 2), nn.Flatten()).double()
    net = a_net(modules, (1, 8, 8))
    fields = {"penalty": kind, "channels": channels, "samples": 7}
    value, _, _ = penalty(NAME, net, lambda_=0.3, **fields)
    # Between 7 samples, polynomials of degree 1 per axis may be larger by √(7/5) for each of two.
    expected = [
        apply(by_the_letter(layer.weight.numpy(), 7, channels == "apart") * 7 / 5)
        for layer in net.layers
    ]
    assert value == pytest.approx(0.3 * sum(expected), rel=1e-9)


def test_the_penalty_of_dense_layers_is_their_frobenius_or_spectral_norm():
    net = dense()
    for kind, order in (("frobenius", "fro"), ("spectral", 2)):
        expected = [math.log(np.linalg.norm(layer.weight.numpy(), order)) for layer in net.layers]
        value, _, _ = penalty(NAME, net, lambda_=1.0, dense=kind)
        assert value == pytest.approx(sum(expected), rel=1e-9)


@pytest.mark.parametrize("channels", ["apart", "together"])
@pytest.mark.parametrize("seed", range(4))
def test_the_product_of_the_bounds_is_one_of_the_norms(channels, seed):
    net = convolutional(seed=seed)
    norms = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices(net)]
    value, _, _ = penalty(NAME, net, lambda_=1.0, channels=channels)
    assert value >= sum(map(math.log, norms)) - 1e-12


@pytest.mark.parametrize("kind", ["log", "log1p", "sum"])
def test_with_lambda_0_it_is_standard_training_bit_for_bit(kind):
    (ours,) = train(an_entry(NAME, lambda_=0.0, penalty=kind, epochs=1))
    (standard,) = train(an_entry("standard", epochs=1))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


def test_a_larger_lambda_leaves_a_smaller_product():
    products = []
    for lambda_ in (0.0, 0.01, 0.1):
        (outcome,) = train(an_entry(NAME, lambda_=lambda_, epochs=10, batch_size=128))
        params = outcome.checkpoints["last"].params.values()
        sizes = [float(torch.linalg.matrix_norm(value)) for value in params if value.ndim == 2]
        products.append(math.prod(sizes))
    assert products[0] > 1.05 * products[1] > 1.1 * products[2]


def test_a_convolutional_network_trains():
    data = digits(train=32, pairs=0, validation=0)
    entry = an_entry(NAME, samples=16, epochs=2, batch_size=16, lr=0.01)
    (outcome,) = train(entry, data, model=a_model("madry_cnn"))
    assert outcome.state == "done"
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


def zero():
    layer = nn.Linear(8, 3)
    nn.init.zeros_(layer.weight)
    return layer


def test_a_layer_of_zeros_has_no_logarithm_and_no_gradient():
    found = a_method(NAME).refuses(nn.Sequential(zero()), digits())
    assert "layer '0' is zero and has no logarithm" in found
    assert a_method(NAME, penalty="log1p").refuses(nn.Sequential(zero()), digits()) is None
    net = a_net(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), (1, 8, 8))
    net = net.with_params({name: torch.zeros_like(value) for name, value in net.params.items()})
    value, gradients, _ = penalty(NAME, net, penalty="log1p")
    assert value == 0
    assert not any(slope.any() for slope in gradients.values())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Softmin(dim=1), r"layer '0' \(Softmin\)"),
        (nn.Conv2d(1, 1, (1, 8)), "layer '0' has 8 taps along an axis: raise samples"),
    ],
)
def test_layers_without_a_rule_are_refused_by_name(layer, reason):
    assert re.search(reason, a_method(NAME, samples=8).refuses(nn.Sequential(layer), digits()))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("lambda_", -1.0, r"lambda must be at least 0, got -1\.0"),
        ("samples", 1, "samples must be at least 2, got 1"),
    ],
)
def test_bad_fields_are_refused(field, value, reason):
    with pytest.raises(ValueError, match=reason):
        a_method(NAME, **{field: value})
