import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.penalised import convolutional, dense, matrices, penalty
from support.training import a_method, a_model, a_net, an_entry, digits, same, train
from torch import nn

NAME = "gram_regularization"


def by_the_letter(matrix, iterations):
    # The paper's Algorithm 1: r ← 2r + log|G|, G ← (G/|G|)*(G/|G|).
    r, gram = 0.0, matrix
    for _ in range(iterations):
        size = np.linalg.norm(gram)
        r, gram = 2 * r + math.log(size), (gram / size).conj().T @ (gram / size)
    power = 2.0**-iterations
    return np.linalg.norm(gram) ** power * math.exp(2 * power * r)


def norms(net):
    return [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices(net)]


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_the_penalty_of_dense_layers_is_the_papers(iterations):
    net = dense(seed=3)
    bounds = [by_the_letter(layer.weight.numpy(), iterations) for layer in net.layers]
    threshold = sorted(bounds)[1]  # One layer above it, one at it, and one below.
    value, gradients, _ = penalty(NAME, net, r=0.3, threshold=threshold, iterations=iterations)
    assert value == pytest.approx(0.3 * sum(max(s - threshold, 0) for s in bounds), rel=1e-9)
    costly = [bool(gradients[layer.weight_name].any()) for layer in net.layers]
    assert costly[bounds.index(max(bounds))]
    assert not costly[bounds.index(min(bounds))]


def test_the_penalty_of_a_circular_convolution_is_the_largest_over_frequencies():
    layer = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
    net = a_net(nn.Sequential(layer, nn.Flatten()).double(), (1, 8, 8))
    symbol = np.fft.fft2(net.layers[0].weight.numpy(), s=(8, 8)).reshape(4, 1, -1)
    expected = max(by_the_letter(symbol[:, :, w], 6) for w in range(64))
    value, _, _ = penalty(NAME, net, r=1.0, threshold=0.0)
    assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("build", [dense, convolutional])
def test_the_penalty_falls_to_the_norms_and_its_gradient_to_that_of_singular_values(build):
    net = build()
    total = sum(norms(net))
    found = [penalty(NAME, net, r=1.0, threshold=0.0, iterations=n)[0] for n in range(1, 9)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(found))
    assert min(found) >= total * (1 - 1e-12)
    if build is dense:  # The grid that holds a zero-padded convolution has another norm.
        assert found[5] <= 1.01 * total
        _, gradients, _ = penalty(NAME, net, r=1.0, threshold=0.0, iterations=12)
        for layer in net.layers:
            left, _, right = torch.linalg.svd(layer.weight)
            slope = torch.outer(left[:, 0], right[0])
            torch.testing.assert_close(gradients[layer.weight_name], slope, rtol=0, atol=0.02)


def test_with_r_0_it_is_standard_training_bit_for_bit():
    (ours,) = train(an_entry(NAME, r=0.0, epochs=2))
    (standard,) = train(an_entry("standard", epochs=2))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


def test_a_larger_r_leaves_smaller_norms():
    sums = []
    for r in (0.0, 0.01, 0.1):
        (outcome,) = train(an_entry(NAME, r=r, epochs=10, batch_size=128))
        params = outcome.checkpoints["last"].params.values()
        matrix_norms = [torch.linalg.matrix_norm(value, 2) for value in params if value.ndim == 2]
        sums.append(float(sum(matrix_norms)))
    assert sums[0] > 1.02 * sums[1] > 1.04 * sums[2]


def test_a_convolutional_network_trains():
    data = digits(train=32, pairs=0, validation=0)
    entry = an_entry(NAME, epochs=2, batch_size=16, lr=0.01)
    (outcome,) = train(entry, data, model=a_model("madry_cnn"))
    assert outcome.state == "done"
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


def test_a_layer_without_a_rule_is_refused_by_name():
    found = a_method(NAME).refuses(nn.Sequential(nn.Softmin(dim=1)), digits())
    assert "layer '0' (Softmin)" in found


@pytest.mark.parametrize(
    ("field", "value"), [("r", -1.0), ("threshold", math.nan), ("iterations", -1)]
)
def test_bad_fields_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least 0, got {value}"):
        a_method(NAME, **{field: value})
