import math

import pytest
import runs
import torch

from lipbench.anatomy import layers, numbers_per_sample, samples_at_once, samples_that_fit
from lipbench.config import parse

CPU = torch.device("cpu")


def the_benchmark(model):
    return parse(runs.config("standard", model=model)).benchmarks[0]


def parts(model):
    benchmark = the_benchmark(model)
    return benchmark.model, benchmark.dataset


def test_the_numbers_of_a_sample_are_its_input_and_what_the_layers_give():
    """64 pixels, 16 hidden units, 10 classes; 32 and 64 channels of 8x8 and 4x4 pixels."""
    assert numbers_per_sample(*parts({"name": "mlp", "widths": [16]})) == 64 + 16 + 10
    convolutional = 64 + 32 * 64 + 64 * 16 + 1024 + 10
    assert numbers_per_sample(*parts("madry_cnn")) == convolutional
    assert samples_that_fit(*parts("madry_cnn"), CPU) == 2**22 // convolutional


def test_layers_come_in_order():
    shapes = [layer.output_shape for layer in layers(*parts("madry_cnn"))]
    assert [math.prod(shape) for shape in shapes] == [2048, 1024, 1024, 10]


@pytest.mark.parametrize(
    ("widths", "expected"), [([16], 10_000), ([4000], 2**22 // 4074), ([50_000], 500)]
)
def test_larger_networks_are_asked_about_fewer_samples(widths, expected):
    assert samples_at_once(the_benchmark({"name": "mlp", "widths": widths}), CPU) == expected
