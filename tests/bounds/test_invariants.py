"""What must hold of every bound that is installed: no crossings, and what a value must not see.

All registered bounds take part, also those of strangers.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import random_network
from torch import nn

import lipbench
from lipbench import registry
from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

L1, L2, INF = map(Norm, (1.0, 2.0, math.inf))
SEARCHES = ["jacobian", "pair_ascent"]
SECONDS = 0.05
"""By its own estimate no bound takes longer on the networks here."""
SDP = 2e-3
"""Share by which values of one program may differ."""
CURVES = [
    nn.ReLU,
    nn.Tanh,
    nn.GELU,
    nn.Softplus,
    lambda: nn.LeakyReLU(-0.5),
    lambda: nn.LeakyReLU(2.0),
    lambda: nn.PReLU(init=-3.0),
    nn.Hardtanh,
    lipbench.MaxMin,
]


def installed():
    for name in registry.names("lipbench.bounds"):
        bound = registry.load("lipbench.bounds", name, Bound)()
        if bound.side != "estimate":
            yield name, bound


def values(network, norm, domain, chosen=None, seconds=SECONDS):
    """Return what all bounds find that are not refused, each for itself."""
    results = {}
    for name, bound in installed():
        if norm not in bound.norms or (chosen and name not in chosen):
            continue
        if bound.refuses(network, norm, domain) is not None:
            continue
        bound = bound.within(network, norm, domain, seconds)
        if name in SEARCHES and bound is not None:
            bound = replace(bound, points=4)
        if bound is None:
            continue
        try:
            results[name] = bound.compute(network, norm, domain)
        except Refused:
            continue
    return results


def uppers(network, norm=L2, domain=None):
    results = values(network, norm, domain)
    return {
        name: result.value for name, result in results.items() if result.side in ("upper", "exact")
    }


# Crossings.


@st.composite
def convolutional(draw):
    channels, size = draw(st.integers(1, 2)), draw(st.integers(3, 5))
    padding = draw(st.integers(0, 2))
    options = {
        "kernel_size": draw(st.integers(1, 3)),
        "stride": draw(st.integers(1, 2)),
        "padding": padding,
        "padding_mode": draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        "groups": draw(st.sampled_from([1, channels])),
        "bias": draw(st.booleans()),
    }
    layers = [
        nn.Conv2d(channels, 2 * channels, **options),
        draw(st.sampled_from(CURVES))(),
        *draw(st.sampled_from([[], [nn.MaxPool2d(2, ceil_mode=True)], [nn.AvgPool2d(1)]])),
        nn.Flatten(),
    ]
    shape = (channels, max(size, padding + 1), max(size, padding + 1))
    width = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    return [*layers, nn.Linear(width, draw(st.integers(1, 3)))], shape


@st.composite
def dense(draw):
    widths = draw(st.lists(st.sampled_from([2, 4, 6]), min_size=2, max_size=4))
    layers = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), draw(st.sampled_from(CURVES))()]
    return layers[:-1], (widths[0],)


def drawn(model, seed, spread):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "weight" in name and tensor.ndim > 1:
                tensor.normal_(std=spread, generator=rng)
    return model.eval()


def no_crossing(layers_and_shape, seed, spread, norm, domain, chosen):
    layers, shape = layers_and_shape
    network = as_network(drawn(nn.Sequential(*layers), seed, spread), shape)
    results = values(network, norm, domain, {"product", "jacobian", *chosen})
    assert {"product", "jacobian"} <= set(results)
    assert crossings(results.values()) == []
    assert [fault for value in results.values() for fault in recheck(network, value)] == []


NETWORKS = (
    st.one_of(dense(), convolutional()),
    st.integers(0, 9999),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.sampled_from([L1, L2, INF]),
    st.sampled_from([None, (0.0, 1.0), (-0.1, 0.1)]),
    st.sets(st.sampled_from([name for name, _ in installed()]), min_size=2, max_size=4),
)


@given(*NETWORKS)
@settings(max_examples=50)
def test_no_bound_crosses_another(network, seed, spread, norm, domain, chosen):
    no_crossing(network, seed, spread, norm, domain, chosen)


@pytest.mark.slow
@given(*NETWORKS)
@settings(max_examples=500)
def test_no_bound_crosses_another_in_many_draws(network, seed, spread, norm, domain, chosen):
    no_crossing(network, seed, spread, norm, domain, chosen)


# What does not change a function's constant.


@pytest.fixture(name="model")
def _model():
    return random_network(7, (3, 4, 3, 2), nn.ReLU).double()


def changed(model, change):
    copy = random_network(7, (3, 4, 3, 2), nn.ReLU).double()
    with torch.no_grad():
        change(*(layer for layer in copy if isinstance(layer, nn.Linear)))
    return copy


def same(first, second, names=None, factor=1.0):
    names = names or first.keys() | second.keys()
    for name in names:
        assert second[name] == pytest.approx(factor * first[name], rel=SDP), name


@pytest.mark.parametrize("norm", [L1, L2, INF])
@pytest.mark.parametrize("domain", [None, (-0.5, 0.5)])
def test_every_value_grows_with_the_last_layer(model, norm, domain):
    def triple(first, second, last):
        last.weight *= 3
        last.bias *= 3

    before = uppers(as_network(model, (3,)), norm, domain)
    after = uppers(as_network(changed(model, triple), (3,)), norm, domain)
    same(before, after, factor=3.0)


def test_every_value_grows_with_any_layer_and_the_biases_behind_it(model):
    def triple(first, second, last):
        second.weight *= 3
        second.bias *= 3
        last.bias *= 3

    before = uppers(as_network(model, (3,)))
    same(before, uppers(as_network(changed(model, triple), (3,))), factor=3.0)


def test_no_value_sees_the_sign_of_the_outputs(model):
    def negate(first, second, last):
        last.weight *= -1
        last.bias *= -1

    before = uppers(as_network(model, (3,)))
    same(before, uppers(as_network(changed(model, negate), (3,))))


@pytest.mark.parametrize("norm", [L1, L2, INF])
def test_no_value_sees_the_order_of_neurons_and_inputs(model, norm):
    def permute(first, second, last):
        order, inputs = torch.tensor([3, 0, 2, 1]), torch.tensor([2, 0, 1])
        first.weight.copy_(first.weight[order][:, inputs])
        first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])

    before = uppers(as_network(model, (3,)), norm)
    same(before, uppers(as_network(changed(model, permute), (3,)), norm))


def test_a_rotation_of_the_inputs_leaves_the_exact_constant(model):
    def rotate(first, second, last):
        rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
        first.weight.copy_(first.weight @ rotation)

    before = uppers(as_network(model, (3,)))
    after = uppers(as_network(changed(model, rotate), (3,)))
    same(before, after, ["lipbab", "lipsdp_neuron", "liplt", "product", "eclipse_fast"])


def test_a_layer_of_the_identity_changes_nothing(model):
    identity = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        identity.weight.copy_(torch.eye(2))
    before = uppers(as_network(model, (3,)))
    after = uppers(as_network(nn.Sequential(model, identity), (3,)))
    same(
        before,
        after,
        ["eclipse_fast", "fastlip", "liplt", "lipsdp_layer", "lipsdp_neuron", "product"],
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_l2_constant_is_at_most_the_root_of_the_others(seed):
    network = as_network(random_network(seed, (3, 4, 3, 2), nn.ReLU), (3,))
    exact = registry.load("lipbench.bounds", "lipbab", Bound)()
    l1, l2, linf = (exact.compute(network, norm, None).value for norm in (L1, L2, INF))
    assert l2 <= math.sqrt(l1 * linf) * (1 + 1e-9)
    assert linf <= math.sqrt(3) * l2 * (1 + 1e-9)
    assert l1 <= math.sqrt(2) * l2 * (1 + 1e-9)


@pytest.mark.parametrize("norm", [L1, L2, INF])
def test_values_of_float32_weights_are_computed_in_float64(norm):
    model = random_network(2, (3, 4, 3, 2), nn.ReLU)
    before = uppers(as_network(model, (3,)), norm)
    after = uppers(as_network(model.double(), (3,)), norm)
    assert before == pytest.approx(after, rel=1e-12)


def test_an_identity_as_activation_is_multiplied_out():
    model = random_network(0, (4, 6, 6, 3), lambda: nn.LeakyReLU(1.0)).double()
    weights = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    exact = float(torch.linalg.matrix_norm(weights[2] @ weights[1] @ weights[0], 2))
    constants = uppers(as_network(model, (4,)))
    for name in ("liplt", "lipsdp_neuron", "lipsdp_layer"):
        assert constants[name] == pytest.approx(exact, rel=1e-9), name


@pytest.mark.parametrize("norm", [L1, L2, INF])
@pytest.mark.parametrize("domain", [None, (-0.5, 0.5)])
def test_every_upper_value_says_what_was_not_proved_of_its_network(norm, domain):
    """Such as an explanation of a layer, which is tested and no more."""
    network = as_network(random_network(0, (3, 4, 2), nn.ReLU), (3,))
    results = values(replace(network, flags=("explained",)), norm, domain, seconds=1.0)
    found = {name: value.flags for name, value in results.items() if value.side != "lower"}
    assert {"lipbab", "product"} <= set(found)
    assert ("lipmip" in found) == (norm != L2 and domain is not None)
    assert {name for name, flags in found.items() if "explained" not in flags} == set()
