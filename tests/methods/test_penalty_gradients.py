"""Regularisation by Gram iteration and by LipBound: gradients of what they add to the loss."""

import pytest
import torch
from support.penalised import convolutional, penalty


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gram_regularization", {"r": 1.0, "threshold": 0.0, "iterations": 3}),
        ("lipbound_regularization", {"lambda_": 1.0}),
    ],
)
def test_the_gradient_is_that_of_finite_differences(name, fields):
    net = convolutional()
    _, gradients, _ = penalty(name, net, **fields)
    rng = torch.Generator().manual_seed(0)
    move = {k: torch.randn(v.shape, generator=rng, dtype=v.dtype) for k, v in net.params.items()}
    values = [
        penalty(
            name,
            net.with_params({k: v + step * move[k] for k, v in net.params.items()}),
            **fields,
        )[0]
        for step in (1e-6, -1e-6)
    ]
    slope = sum(float((gradients[key] * move[key]).sum()) for key in move)
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-6)
