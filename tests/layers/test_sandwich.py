"""Sandwich layers: their certificate, and training with them."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.matrices import matrix_of
from support.training import a_method, a_model, a_net, an_entry, digits, initial, train
from torch import nn

from lipbench.bound import Bound
from lipbench.layers.normalise import Normalise
from lipbench.layers.sandwich import SandwichLayer
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations import neuron_blocks
from lipbench.networks.network import as_network
from lipbench.networks.sequential import layer_sites
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.training.optimiser import Optimizer

L2 = Norm(2)
WIDE = a_model(widths=(70, 16, 16), activation="relu")


def a_layer(inputs, hidden, outputs, seed=0, scale=1.0):
    layer = SandwichLayer(inputs, hidden, outputs).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            value = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.copy_(scale * value)
    return layer


def value_of(network, name, **fields):
    return load("lipbench.bounds", name, Bound)(**fields).compute(network, L2, None)


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 99),
    st.sampled_from([0.1, 1.0, 3.0]),
)
def test_no_slopes_give_more_than_the_constant(inputs, hidden, outputs, seed, scale):
    """The largest norm of a Jacobian is at slopes that are all 0 or 1: it is convex in them."""
    layer = a_layer(inputs, hidden, outputs, seed, scale)
    (step,) = as_network(layer, (inputs,)).steps
    largest = max(
        float(
            torch.linalg.matrix_norm(
                2 * layer.outer.weight.T.detach() * torch.tensor(slopes) @ inner, 2
            )
        )
        for inner in [layer.inner.weight.detach()]
        for slopes in product([0.0, 1.0], repeat=hidden)
    )
    assert largest <= constant(step, L2) * (1 + 1e-9)
    for norm in (1.0, float("inf")):
        jacobian = step.push.weight.T @ step.pull.weight
        assert torch.linalg.matrix_norm(jacobian, norm) <= constant(step, Norm(norm)) * (1 + 1e-9)


def test_the_constant_is_the_largest_eigenvalue():
    layer = a_layer(4, 3, 5)
    (step,) = as_network(layer, (4,)).steps
    outer, inner = (part.weight.detach().numpy() for part in (layer.outer, layer.inner))
    expected = np.linalg.eigvalsh(outer @ outer.T + inner @ inner.T)[-1]
    assert constant(step, L2) == pytest.approx(expected, rel=1e-9)
    # It is attained where A = B = t·I: the map is 2t²·relu.
    with torch.no_grad():
        square = a_layer(3, 3, 3)
        square.outer.weight.copy_(0.3 * torch.eye(3, dtype=torch.float64))
        square.inner.weight.copy_(0.3 * torch.eye(3, dtype=torch.float64))
        square.bias.zero_()
        square.psi.zero_()
    (step,) = as_network(square, (3,)).steps
    assert constant(step, L2) == pytest.approx(0.18, rel=1e-9)
    torch.testing.assert_close(square(torch.ones(1, 3).double())[0, 0].item(), 0.18)


def test_other_bounds_read_the_layer_too():
    """Each neuron's multiplier at its best proves no less than the layer's own."""
    torch.manual_seed(0)
    network = as_network(nn.Sequential(a_layer(4, 6, 3), nn.Linear(3, 2).double()), (4,))
    assert neuron_blocks.widths(network) == (4, 6, 2)
    crude = value_of(network, "product").value
    for name in ("lipsdp_neuron", "liplt", "fastlip"):
        found = value_of(network, name)
        assert recheck(network, found) == []
        if name == "lipsdp_neuron":
            assert found.value <= crude * (1 + 1e-6)


def twin(raw, x):
    # The paper's layer in numpy; each of these is [outer; inner] with rows for the neurons.
    both = np.hstack([raw["outer.weight"], raw["inner.weight"]]).T
    n = both.shape[1]
    u, v = both[:n], both[n:]
    z = u - u.T + v.T @ v
    inverse = np.linalg.inv(np.eye(n) + z)
    a, b = ((np.eye(n) - z) @ inverse).T, (-2 * v @ inverse).T
    psi = np.diag(np.exp(raw["psi"]))
    inner = np.sqrt(2) * np.linalg.inv(psi) @ b @ x + raw["bias"]
    return np.sqrt(2) * a.T @ psi @ np.maximum(inner, 0)


def test_the_layer_in_effect_is_the_formula_of_the_paper():
    layer = a_layer(5, 4, 4)
    raw = {name: value.detach().clone() for name, value in layer.named_parameters()}
    x = torch.randn(5, dtype=torch.float64)
    found = a_method("sandwich").explicit(layer, raw, is_final=True)
    with torch.no_grad():
        for name, value in found.items():
            layer.get_parameter(name).copy_(value)
    expected = twin({name: value.numpy() for name, value in raw.items()}, x.numpy())
    np.testing.assert_allclose(layer(x.unsqueeze(0))[0].detach(), expected, atol=1e-12)


def finished(gamma, trained=True):
    method = a_method("sandwich", gamma=gamma)
    module = method.build(
        initial(digits(), model=WIDE), (1, 8, 8), torch.Generator().manual_seed(0)
    )
    if trained:
        entry = an_entry(
            "sandwich", epochs=2, optimizer=Optimizer(name="adam", lr=0.03), gamma=gamma
        )
        (outcome,) = train(entry, model=WIDE)
        last = outcome.checkpoints["last"]
        module.load_state_dict({**last.params, **last.buffers})
    else:
        net = a_net(module, (1, 8, 8))
        state = method.start(net, digits(), torch.Generator())
        module = net.with_params(method.finish(net, state, digits(), {})).module()
    return method, module.eval()


@pytest.mark.parametrize("trained", [False, True])
def test_gamma_is_the_constant_of_the_network(trained):
    method, module = finished(3.0, trained)
    claim = method.claims(a_net(module, (1, 8, 8)))
    assert claim.constant == pytest.approx(3, rel=1e-6)
    network = as_network(module, (1, 8, 8))
    proof = value_of(network, "product")
    assert 2.9 < proof.value <= claim.constant * (1 + claim.tolerance)
    assert recheck(network, proof) == []
    rng = torch.Generator().manual_seed(0)
    x, reach = torch.rand(1000, 1, 8, 8, generator=rng), 0.3
    y = x + reach * torch.randn(x.shape, generator=rng)
    moved = (module(x) - module(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert 0.3 < float(moved.detach().max()) <= 3 * (1 + 1e-4)


def test_a_layer_that_expands_is_found_out():
    method, module = finished(1.0, trained=False)
    layer = next(each for each in module if isinstance(each, SandwichLayer))
    with torch.no_grad():
        layer.outer.weight.mul_(1.01)
    claim = method.claims(a_net(module, (1, 8, 8)))
    proof = value_of(as_network(module, (1, 8, 8)), "product")
    assert proof.value > claim.constant * (1 + 100 * claim.tolerance)


def test_training_starts_from_orthogonal_weights_between_relus():
    module = finished(1.0, trained=False)[1]
    layers = [each for each in module if isinstance(each, SandwichLayer)]
    assert [layer.inner.weight.shape for layer in layers] == [(70, 64), (16, 70), (16, 16)]
    for layer in layers[1:]:
        weight, x = 2**0.5 * layer.inner.weight, torch.randn(5, layer.inner.in_features)
        values = torch.linalg.svdvals(weight)
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)
        torch.testing.assert_close(layer(x), torch.relu(x @ weight.T + layer.bias))


def test_the_factors_stand_around_all_layers_but_the_output_activation():
    model = a_model(widths=(4,), activation="tanh", output_activation="sigmoid")
    module = a_method("sandwich", gamma=4.0).build(
        initial(digits(), model=model), (1, 8, 8), torch.Generator()
    )
    kinds = [Normalise, nn.Flatten, SandwichLayer, nn.Linear, Normalise, nn.Sigmoid]
    assert [type(layer) for layer in module] == kinds
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(module[0](x), 2 * x)


def a_convolution(channels=(4, 2), seed=0):
    first = nn.Conv2d(channels[1], channels[0], 3, padding=1)
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(25 * channels[0], 5))
    site = layer_sites(model, (channels[1], 5, 5))[0]
    rng = torch.Generator().manual_seed(seed)
    layer = a_method("sandwich").layer(site, rng).double()
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(torch.randn(value.shape, generator=rng, dtype=torch.float64) / 3)
    return layer


def as_matrices(layer):
    (step,) = as_network(layer, (layer.inner.weight.shape[1], 5, 5)).steps
    shapes = step.outer.input_shape, step.inner.input_shape
    maps = step.outer.apply, step.inner.apply
    return step, *[matrix_of(*pair) for pair in zip(maps, shapes, strict=True)]


@pytest.mark.parametrize("channels", [(4, 2), (2, 3)])
def test_convolutions_have_orthonormal_rows_too(channels):
    layer = a_convolution(channels)
    raw = {name: value.detach().clone() for name, value in layer.named_parameters()}
    found = a_method("sandwich").explicit(layer, raw, is_final=True)
    with torch.no_grad():
        for name, value in found.items():
            layer.get_parameter(name).copy_(value)
    step, outer, inner = as_matrices(layer)
    identity = torch.eye(len(outer), dtype=torch.float64)
    torch.testing.assert_close(outer @ outer.T + inner @ inner.T, identity)
    assert constant(step, L2) == pytest.approx(1, abs=1e-9)
    # The kernel of V has as few taps as the model's: more of them do not count.
    raw["inner.weight"][..., 4, 4] += 1
    again = a_method("sandwich").explicit(layer, raw, is_final=True)
    assert all(torch.equal(value, found[name]) for name, value in again.items())


def test_the_constant_of_a_convolution_is_the_largest_eigenvalue():
    step, outer, inner = as_matrices(a_convolution())
    expected = np.linalg.eigvalsh(outer @ outer.T + inner @ inner.T)[-1]
    assert constant(step, L2) == pytest.approx(float(expected), rel=1e-9)


def test_madry_cnn_trains():
    entry = an_entry("sandwich", epochs=1, batch_size=64)
    (outcome,) = train(entry, digits(train=64), model=a_model("madry_cnn"))
    assert outcome.state == "done"


def test_strides_are_refused_but_in_the_last_layer():
    strided = nn.Conv2d(1, 2, 4, stride=2, padding=1)
    model = nn.Sequential(strided, nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    reason = a_method("sandwich").refuses(model, digits())
    assert reason == "layer '0' (Conv2d): sandwich layers have no strides, got (2, 2)"
    last = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 10, 8, 8))
    assert a_method("sandwich").refuses(nn.Sequential(*last, nn.Flatten()), digits()) is None
    assert "around whose edges" in a_method("sandwich").refuses(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10)), digits()
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": 0.0}, "gamma must be positive and finite, got 0.0"),
        ({"gamma": float("inf")}, "gamma must be positive and finite, got inf"),
        ({"activation": "maxmin"}, "activation must be 'relu' in sandwich, got 'maxmin'"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ],
)
def test_a_bad_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        a_method("sandwich", **fields)
