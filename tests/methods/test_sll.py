"""SDP-based Lipschitz layers."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training import a_method, a_net
from torch import nn

from lipbench.layers.explanations import ConvResidual, Residual


def random(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def in_effect(module, seed=0):
    # The network in effect, of random parameters; and these.
    net = a_net(module.double(), (1, 8, 8))
    raw = {
        name: random(*value.shape, seed=seed + number)
        for number, (name, value) in enumerate(net.params.items())
    }
    method = a_method("sll")
    return net.with_params(method.effective(net.with_params(raw), {}, {})).module(), raw


def build(*layers):
    return a_method("sll").build(nn.Sequential(*layers), (1, 8, 8), torch.Generator())


def naive_t(v, log_q):
    q = np.exp(log_q)
    count = v.shape[1]
    gram = np.abs(v.T @ v)
    return np.array([sum(gram[i, j] * q[j] / q[i] for j in range(count)) for i in range(count)])


def test_a_dense_layer_is_the_published_one():
    """x - 2·V·T⁻¹·relu(Vᵀx + T^(1/2)b), with the bias in the units in which it is stored."""
    module, raw = in_effect(build(nn.Flatten(), nn.Linear(64, 64)))
    assert isinstance(module[1], Residual)
    v, b, log_q = (raw[f"1.{name}"].numpy() for name in ("weight", "bias", "log_q"))
    t = naive_t(v, log_q)
    x = random(5, 1, 8, 8).numpy()
    flat = x.reshape(5, 64)
    hidden = np.maximum(flat @ v + np.sqrt(t) * b, 0)
    expected = flat - 2 * (hidden / t) @ v.T
    np.testing.assert_allclose(module(torch.tensor(x)).numpy(), expected, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.0, 1.0, 4.0]))
def test_t_is_above_the_gram_matrix_for_every_q(seed, spread):
    v, log_q = random(6, 5, seed=seed).numpy(), spread * random(5, seed=seed + 1).numpy()
    least = np.linalg.eigvalsh(np.diag(naive_t(v, log_q)) - v.T @ v)[0]
    assert least >= -1e-9 * np.abs(naive_t(v, log_q)).max()


def test_layers_that_change_the_width_are_rescaled_on_their_smaller_side():
    for out, inputs in ((10, 64), (70, 64)):
        module, raw = in_effect(build(nn.Flatten(), nn.Linear(64, out)))
        v, log_q = raw["1.weight"].numpy(), raw["1.log_q"].numpy()
        assert len(log_q) == min(out, inputs)
        tall = v if out > inputs else v.T
        expected = tall / np.sqrt(naive_t(tall, log_q))
        expected = expected if out > inputs else expected.T
        np.testing.assert_allclose(module[1].weight.numpy(), expected, rtol=1e-9)


def test_a_convolution_is_rescaled_by_hidden_channel():
    module, raw = in_effect(build(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)))
    assert isinstance(module[-1], ConvResidual)
    place = f"{len(module) - 1}.weight"
    factors = module[-1].weight / raw[place]
    torch.testing.assert_close(factors, factors[:1, :, :1, :1].expand_as(factors))


def test_a_single_channel_has_no_q_which_would_cancel():
    module = build(nn.Conv2d(1, 4, 3, padding=1))
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias"]


def test_the_first_residual_layer_keeps_lengths():
    """Its weight is orthogonal: without a bias it is -V|Vᵀx|."""
    module = build(nn.Flatten(), nn.Linear(64, 64, bias=False))
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(module(x).norm(dim=1), x.flatten(1).norm(dim=1))
