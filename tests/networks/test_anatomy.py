import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from support import runs

from lipbench.config.file import parse
from lipbench.model import Model

CPU = torch.device("cpu")


def the_benchmark(model):
    return parse(runs.config("standard", model=model)).benchmarks[0]


def sizes(model):
    return the_benchmark(model).anatomy


def test_the_numbers_of_a_sample_are_its_input_and_what_the_layers_give():
    """64 pixels, 16 hidden units, 10 classes; 32 and 64 channels of 8x8 and 4x4 pixels."""
    assert sizes({"name": "mlp", "widths": [16]}).numbers_per_sample == 64 + 16 + 10
    convolutional = 64 + 32 * 64 + 64 * 16 + 1024 + 10
    assert sizes("madry_cnn").numbers_per_sample == convolutional
    assert sizes("madry_cnn").samples_that_fit(CPU) == 2**22 // convolutional


def test_weights_and_products_are_those_of_linear_layers():
    """Filters of 5 x 5 pixels; biases are not counted."""
    dense, convolutional = sizes({"name": "mlp", "widths": [16]}), sizes("madry_cnn")
    assert dense.is_dense
    assert not convolutional.is_dense
    assert dense.weights == dense.forward_products == 64 * 16 + 16 * 10
    filters, rest = (25 * 32, 25 * 32 * 64), 64 * 2 * 2 * 1024 + 1024 * 10
    assert convolutional.weights == sum(filters) + rest
    assert convolutional.forward_products == filters[0] * 64 + filters[1] * 16 + rest


def test_a_model_whose_settings_are_a_list_has_sizes():
    """It has no hash."""

    @dataclass(frozen=True, kw_only=True)
    class Wide(Model):
        widths: list[int]

        def build(self, input_shape, outputs, rng):
            sides = [math.prod(input_shape), *self.widths, outputs]
            dense = (torch.nn.Linear(*pair) for pair in pairwise(sides))
            return torch.nn.Sequential(torch.nn.Flatten(), *dense)

    own = the_benchmark({"name": "mlp", "widths": [16]})
    found = [replace(own, model=Wide(widths=[width])).anatomy.weights for width in (3, 4, 3)]
    assert found == [64 * width + width * 10 for width in (3, 4, 3)]


@pytest.mark.parametrize(
    ("widths", "expected"), [([16], 10_000), ([4000], 2**22 // 4074), ([50_000], 500)]
)
def test_larger_networks_are_asked_about_fewer_samples(widths, expected):
    assert sizes({"name": "mlp", "widths": widths}).samples_at_once(CPU) == expected


def test_one_network_is_built_for_all_that_ask(monkeypatch):
    benchmark = the_benchmark({"name": "mlp", "widths": [16]})
    built = []
    build = type(benchmark.model).build
    monkeypatch.setattr(type(benchmark.model), "build", lambda *a: built.append(a) or build(*a))
    assert [benchmark.anatomy.weights for _ in range(3)] == [1184] * 3
    assert len(built) == 1
