import re

import numpy as np
import pytest
import torch
from support.penalised import convolutional, dense, matrices, penalty
from support.training import a_method, a_model, an_entry, digits, same, train
from torch import nn

NAME = "spectral_regularization"


def norms(matrices):
    return [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices]


def test_penalty_and_gradient_are_those_of_algorithm_1():
    """The naive twin: v ← W'u/|W'u|, u ← Wv/|Wv|, σ = u'Wv, slope lambda·σ·uv'."""
    net = dense()
    _, _, state = penalty(
        NAME, net, lambda_=0.3
    )  # Leaves v; the next step begins with u ← Wv/|Wv|.
    value, gradients, after = penalty(NAME, net, state, lambda_=0.3)
    expected = 0.0
    for number, layer in enumerate(net.layers):
        matrix, v = layer.weight.numpy(), state[f"right_{number}"].numpy()
        u = matrix @ v / np.linalg.norm(matrix @ v)
        v = matrix.T @ u / np.linalg.norm(matrix.T @ u)
        u = matrix @ v / np.linalg.norm(matrix @ v)
        sigma = u @ matrix @ v
        expected += 0.3 / 2 * sigma**2
        np.testing.assert_allclose(gradients[layer.weight_name], 0.3 * sigma * np.outer(u, v))
        np.testing.assert_allclose(after[f"right_{number}"], v)
        assert not gradients[layer.bias_name].any()
    assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("build", [dense, convolutional])
def test_power_steps_end_at_the_norms_of_the_operators(build):
    net = build()
    value, _, _ = penalty(NAME, net, lambda_=2.0, iterations=200)
    assert value == pytest.approx(sum(s**2 for s in norms(matrices(net))), rel=1e-3)


@pytest.mark.parametrize("build", [dense, convolutional])
def test_exact_and_followed_norms_of_reshaped_kernels_agree(build):
    net = build()
    kernels = [layer.weight.flatten(1) for layer in net.layers]
    for fields in ({"estimate": "exact"}, {"iterations": 400}):
        value, gradients, _ = penalty(NAME, net, conv_norm="reshaped", **fields)
        assert value == pytest.approx(0.005 * sum(s**2 for s in norms(kernels)), rel=1e-6)
        for layer, kernel in zip(net.layers, kernels, strict=True):
            left, values, right = torch.linalg.svd(kernel)
            slope = 0.01 * values[0] * torch.outer(left[:, 0], right[0])
            found = gradients[layer.weight_name].flatten(1)
            torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"estimate": "exact"}], ids=repr)
def test_with_lambda_0_it_is_standard_training_bit_for_bit(fields):
    (ours,) = train(an_entry(NAME, lambda_=0.0, epochs=2, **fields))
    (standard,) = train(an_entry("standard", epochs=2))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


@pytest.mark.parametrize("fields", [{}, {"estimate": "exact"}], ids=repr)
def test_a_larger_lambda_leaves_smaller_norms(fields):
    sums = []
    for lambda_ in (0.0, 0.01, 0.1):
        (outcome,) = train(an_entry(NAME, lambda_=lambda_, epochs=10, batch_size=128, **fields))
        params = outcome.checkpoints["last"].params
        sums.append(sum(norms(value for value in params.values() if value.ndim == 2)))
    assert sums[0] > 1.05 * sums[1] > 1.1 * sums[2]


@pytest.mark.parametrize("conv_norm", ["operator", "reshaped"])
def test_a_convolutional_network_trains(conv_norm):
    data = digits(train=32, pairs=0, validation=0)
    entry = an_entry(NAME, conv_norm=conv_norm, epochs=2, batch_size=16, lr=0.01)
    (outcome,) = train(entry, data, model=a_model("madry_cnn"))
    assert outcome.state == "done"
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


@pytest.mark.parametrize(
    ("fields", "layer", "reason"),
    [
        ({"estimate": "exact"}, nn.Conv2d(1, 2, 3), r"layer '0' is a Convolution, .* 'exact'"),
        ({"conv_norm": "reshaped"}, nn.ConvTranspose2d(1, 2, 3), "is a TransposedConvolution"),
        ({}, nn.Softmin(dim=1), r"layer '0' \(Softmin\)"),
        ({}, nn.Flatten(), "the network has no layer with weights"),
    ],
)
def test_layers_without_a_rule_are_refused_by_name(fields, layer, reason):
    found = a_method(NAME, **fields).refuses(nn.Sequential(layer), digits())
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("lambda_", -1.0, r"lambda must be at least 0, got -1\.0"),
        ("iterations", 0, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(field, value, reason):
    with pytest.raises(ValueError, match=reason):
        a_method(NAME, **{field: value})
