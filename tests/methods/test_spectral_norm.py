import dataclasses
import math

import pytest
import torch
from support.training import (
    a_method,
    a_model,
    a_net,
    an_entry,
    batches,
    digits,
    initial,
    same,
    train,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lipbench.bound import Bound
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.seeds import stream

DENSE = a_model(widths=(16, 16), activation="sigmoid")
FIELDS = {"layer_bound": 1.5, "last_layer_bound": 4.0}


def finished(model=DENSE, data=None, **options):
    # The last network, and the method that trained it.
    data = digits() if data is None else data
    (outcome,) = train(an_entry("spectral_norm", **{**FIELDS, **options}), data, model=model)
    net = a_net(initial(data, model=model), data.dataset.input_shape)
    names = [field.name for field in dataclasses.fields(load_method())]
    fields = {name: value for name, value in {**FIELDS, **options}.items() if name in names}
    return net.with_params(outcome.checkpoints["last"].params), a_method("spectral_norm", **fields)


def load_method():
    return type(a_method("spectral_norm"))


def matrix(layer):
    # The layer as a dense matrix, column by column.
    size = math.prod(layer.input_shape)
    inputs = torch.eye(size, dtype=layer.weight.dtype).view(size, *layer.input_shape)
    return layer.apply(inputs).flatten(1).T


def norms(net):
    return [float(torch.linalg.svdvals(matrix(layer.detach()).double())[0]) for layer in net.layers]


def unit(vector):
    return vector / vector.norm()


def test_training_is_a_plain_loop_with_one_power_step_per_training_step():
    """u ← V'V u, W = c V / |V u|, with u held fixed in the gradient; c = 4·bound for sigmoid."""
    data = digits(dtype=torch.float64)
    bounds = [6.0, 6.0, 4.0]
    rng, rights = stream(0, "method", "spectral_norm"), []
    net = initial(digits())  # Networks are built in float32, whatever they are trained in.
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, bound in zip(layers, bounds, strict=True):
            wide = layer.weight.double()
            layer.weight.copy_(wide * (bound / torch.linalg.matrix_norm(wide, ord=2)))
    net.double()
    for layer in layers:
        right = unit(torch.randn(layer.in_features, generator=rng).double())
        for _ in range(15):
            right = unit(layer.weight.detach().T @ (layer.weight.detach() @ right))
        rights.append(right)
    theirs = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for inputs, targets in batches(data, 32, epochs=1):
        x = inputs.flatten(1)
        for number, layer in enumerate(layers):
            weight = layer.weight
            rights[number] = unit(weight.detach().T @ (weight.detach() @ rights[number]))
            x = x if not number else x.sigmoid()
            x = F.linear(x, bounds[number] * weight / (weight @ rights[number]).norm(), layer.bias)
        theirs.zero_grad()
        F.cross_entropy(x, targets).backward()
        theirs.step()
    (outcome,) = train(an_entry("spectral_norm", epochs=1, dtype="float64", **FIELDS), data)
    last = outcome.checkpoints["last"].params
    for layer, bound, key in zip(layers, bounds, ("1", "3", "5"), strict=True):
        weight = layer.weight.detach()
        expected = bound * weight / torch.linalg.matrix_norm(weight, ord=2)
        torch.testing.assert_close(last[f"{key}.weight"], expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(last[f"{key}.bias"], layer.bias.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("activation", "slope"), [("sigmoid", 0.25), ("relu", 1.0), ("tanh", 1.0)])
def test_a_finished_dense_layer_has_the_largest_singular_value_of_its_bound(activation, slope):
    """The bound is that of layer and activation together, so the weights get bound / slope."""
    net, _ = finished(a_model(widths=(16, 16), activation=activation), lr=0.1)
    expected = [1.5 / slope, 1.5 / slope, 4.0]
    assert norms(net) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def convolutional():
    data = digits(train=32, pairs=0, validation=0)
    options = {"epochs": 1, "batch_size": 16, "lr": 0.01}
    return {
        kind: finished(a_model("madry_cnn"), data, conv_norm=kind, **options)
        for kind in ("operator", "reshaped")
    }


def test_a_finished_convolution_has_the_operator_norm_of_its_bound(convolutional):
    net, _ = convolutional["operator"]
    assert norms(net) == pytest.approx([1.5, 1.5, 1.5, 4.0], rel=1e-4)


def test_the_reshaped_norm_is_that_of_the_kernel_and_bounds_nothing(convolutional):
    """The operator norm of such a convolution is larger, so nothing is claimed."""
    net, method = convolutional["reshaped"]
    for layer in net.layers[:2]:
        kernel = layer.weight.detach().flatten(1).double()
        assert float(torch.linalg.svdvals(kernel)[0]) == pytest.approx(1.5, rel=1e-5)
    assert max(norms(net)[:2]) > 1.5
    assert method.claims(net) is None


def product(net):
    network = as_network(net.module(), net.skeleton.input_shape)
    return load("lipbench.bounds", "product", Bound)().compute(network, Norm(2), None).value


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": "sigmoid"},
        {"activation": "relu"},
        {"activation": "relu", "normalisation": (0.5, 0.25)},
        {"activation": "sigmoid", "output_activation": "sigmoid"},
    ],
    ids=repr,
)
def test_the_claim_is_the_product_bound_in_pixel_units(fields):
    """1.5·1.5·4, times what a normalisation by a standard deviation of ¼ multiplies."""
    net, method = finished(a_model(widths=(8, 8), **fields), lr=0.1)
    claim = method.claims(net)
    scale = 4 if "normalisation" in fields else 1
    assert claim.constant == pytest.approx(9 * scale)
    assert product(net) <= claim.constant * (1 + claim.tolerance)
    assert product(net) == pytest.approx(claim.constant, rel=1e-5)
    assert (claim.norm, claim.domain) == (Norm(2), None)


def test_a_layer_in_two_places_keeps_the_smaller_of_its_bounds():
    twice = nn.Linear(8, 8)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), twice, nn.ReLU(), twice)
    method = a_method("spectral_norm", **FIELDS)
    net = a_net(method.build(module, (1, 8, 8), torch.Generator()), (1, 8, 8))
    net = net.with_params(method.finish(net, {}, digits(), scalars(method)))
    assert norms(net) == pytest.approx([1.5, 1.5, 1.5], rel=1e-5)
    assert product(net) <= method.claims(net).constant


def scalars(method):
    return {name: torch.tensor(getattr(method, name)) for name in FIELDS}


def test_weights_that_cannot_be_set_are_refused():
    module = nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 10)))
    reason = a_method("spectral_norm").refuses(module, digits())
    assert "layer '1' is parametrised" in reason


def test_no_pair_of_inputs_exceeds_the_claim(convolutional):
    net, method = convolutional["operator"]
    rng = torch.Generator().manual_seed(0)
    u = torch.rand(64, 1, 8, 8, generator=rng)
    v = u + 0.1 * torch.randn(64, 1, 8, 8, generator=rng)
    found = (net(u) - net(v)).norm(dim=1) / (u - v).flatten(1).norm(dim=1)
    claim = method.claims(net)
    assert float(found.max()) <= claim.constant * (1 + claim.tolerance)


def test_the_network_starts_as_its_own_normalised_weights():
    module = a_method("spectral_norm", **FIELDS).build(
        initial(digits()), (1, 8, 8), torch.Generator()
    )
    assert norms(a_net(module, (1, 8, 8))) == pytest.approx([6, 6, 4], rel=1e-5)


def test_a_common_factor_of_the_initial_weights_has_no_effect():
    module, larger = initial(digits()), initial(digits())
    with torch.no_grad():
        for layer in larger:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(8)
    method = a_method("spectral_norm", **FIELDS)
    one, other = (method.build(m, (1, 8, 8), torch.Generator()) for m in (module, larger))
    assert same(dict(one.named_parameters()), dict(other.named_parameters()))


@pytest.mark.parametrize("iterations", [1, 5])
def test_training_follows_the_norm_closely(iterations):
    """The accuracy in training is that of nearly the network that is saved."""
    (outcome,) = train(an_entry("spectral_norm", iterations=iterations, **FIELDS))
    net = a_net(initial(digits()), (1, 8, 8))
    outputs = net.with_params(outcome.checkpoints["last"].params)(digits().train.inputs)
    correct = (outputs.argmax(dim=1) == digits().train.targets).float().mean()
    assert outcome.history[-1]["train_accuracy"] == pytest.approx(float(correct), abs=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [("layer_bound", 0.0), ("layer_bound", math.inf), ("last_layer_bound", math.nan)],
)
def test_a_bound_that_is_none_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be positive and finite, got {value}"):
        a_method("spectral_norm", **{field: value})


def test_iterations_must_be_positive():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        a_method("spectral_norm", iterations=0)
