import copy

import pytest
import torch
from support.training import a_model
from torch import nn

from lipbench.networks.network import as_network
from lipbench.registry import names

SHAPES = {"mlp": [(1, 8, 8), (3,)], "madry_cnn": [(1, 28, 28), (3, 9, 6)]}
BUILT_IN = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


def built(name, shape, seed=0, outputs=5, **fields):
    return a_model(name, **fields).build(shape, outputs, torch.Generator().manual_seed(seed))


def same(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def test_all_built_in_models_are_tested_here():
    assert set(SHAPES) <= set(names("lipbench.models"))


@pytest.mark.parametrize(("name", "shape"), BUILT_IN)
def test_a_model_maps_any_batch_to_its_outputs(name, shape):
    model = built(name, shape)
    for count in (1, 3):
        assert model(torch.rand(count, *shape)).shape == (count, 5)


@pytest.mark.parametrize(("name", "shape"), BUILT_IN)
def test_one_seed_gives_one_start_and_another_seed_another(name, shape):
    assert same(built(name, shape, seed=1), built(name, shape, seed=1))
    assert not same(built(name, shape, seed=1), built(name, shape, seed=2))


@pytest.mark.parametrize("name", SHAPES)
def test_the_start_does_not_depend_on_the_global_generator(name):
    shape = SHAPES[name][0]
    torch.manual_seed(1)
    one = built(name, shape)
    torch.manual_seed(2)
    assert same(one, built(name, shape))


@pytest.mark.parametrize("name", SHAPES)
def test_the_global_generator_is_left_alone(name):
    before = torch.get_rng_state()
    built(name, SHAPES[name][0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "shape"), BUILT_IN)
def test_every_built_in_model_can_be_bounded(name, shape):
    """The network of primitive steps is the same function, in float64."""
    model = built(name, shape).double().eval()
    inputs = torch.rand(2, *shape, dtype=torch.float64)
    found = as_network(copy.deepcopy(model), shape)(inputs)
    torch.testing.assert_close(found, model(inputs))


def test_the_mlp_has_the_stated_layers():
    model = built("mlp", (1, 4, 4), widths=(7, 6), activation="tanh", output_activation="sigmoid")
    sizes = [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)]
    assert sizes == [(16, 7), (7, 6), (6, 5)]
    kinds = [type(m) for m in model if not isinstance(m, nn.Linear)]
    assert kinds == [nn.Flatten, nn.Tanh, nn.Tanh, nn.Sigmoid]


def test_the_mlp_starts_uniformly_within_one_over_the_root_of_its_inputs():
    weight = built("mlp", (1, 8, 8), widths=(400,))[1].weight.detach()
    assert float(weight.abs().max()) <= 1 / 8
    assert float(weight.std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.02)


def test_a_normalising_mlp_takes_pixel_units():
    plain = built("mlp", (1, 2, 2), widths=())
    scaled = built("mlp", (1, 2, 2), widths=(), normalisation=(0.5, 0.25))
    inputs = torch.rand(3, 1, 2, 2)
    torch.testing.assert_close(scaled(inputs), plain((inputs - 0.5) / 0.25))


def test_the_cnn_has_the_published_number_of_weights():
    """784 pixels: 832 + 51,264 + 3,212,288 + 10,250."""
    model = built("madry_cnn", (1, 28, 28), outputs=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_274_634


def test_the_cnn_starts_from_a_truncated_normal_and_constant_biases():
    model = built("madry_cnn", (1, 28, 28))
    for layer in (layer for layer in model if hasattr(layer, "weight")):
        assert float(layer.weight.detach().abs().max()) <= 0.2
        assert (layer.bias == 0.1).all()
    # Cut at two standard deviations, a normal of 0.1 keeps one of 0.088.
    assert float(model[7].weight.detach().std()) == pytest.approx(0.088, rel=0.01)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mlp", {"widths": (4, 0)}, r"widths must be at least 1, got \[4, 0\]"),
        ("mlp", {"normalisation": (0.1, 0.0)}, "std of normalisation must be positive, got 0.0"),
        ("madry_cnn", {"init_std": 0.0}, "init_std must be positive, got 0.0"),
    ],
)
def test_a_number_out_of_range_is_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        a_model(name, **fields)


@pytest.mark.parametrize("shape", [(64,), (1, 3, 28)])
def test_the_cnn_refuses_inputs_that_are_no_images(shape):
    with pytest.raises(ValueError, match=r"at least 4x4 pixels, got \("):
        built("madry_cnn", shape)
