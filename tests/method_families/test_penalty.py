import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad

from lipbench.method_families.penalty import parameter_penalty

HAND = {"0.weight": torch.tensor([[3.0, 0.0]]), "0.bias": torch.tensor([4.0])}
NUMBERS = st.floats(-3, 3).filter(lambda value: value == 0 or abs(value) > 1e-3)


@pytest.mark.parametrize(
    ("power", "biases", "expected"), [(1, True, 5), (2, True, 12.5), (1, False, 3), (2, False, 4.5)]
)
def test_hand_computed_norms(power, biases, expected):
    assert parameter_penalty(HAND, power=power, biases=biases) == pytest.approx(expected)


@given(st.lists(NUMBERS, min_size=2, max_size=6), st.booleans())
def test_gradient_of_the_square_is_the_parameter_itself(numbers, biases):
    theta = {"w": torch.tensor(numbers[:-1]).double(), "bias": torch.tensor(numbers[-1:]).double()}
    slopes = grad(lambda params: parameter_penalty(params, power=2, biases=biases))(theta)
    assert torch.equal(slopes["w"], theta["w"])
    assert torch.equal(slopes["bias"], theta["bias"] if biases else torch.zeros(1).double())


@given(st.lists(NUMBERS, min_size=1, max_size=6))
def test_gradient_of_the_norm_is_the_unit_vector_or_0(numbers):
    theta = torch.tensor(numbers).double()
    slope = grad(lambda w: parameter_penalty({"w": w}, power=1, biases=True))(theta)
    length = math.hypot(*numbers)
    expected = theta / length if length else torch.zeros_like(theta)
    torch.testing.assert_close(slope, expected)
