"""Certified layer norms against dense matrices and hand-computed values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.convolutions import (
    exact,
    filled,
    random_convolution,
    random_transpose,
    settings_of_convolutions,
    settings_of_transposes,
    step_of,
)
from support.matrices import matrix_norm, matrix_of
from torch import nn

from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.dense_and_convolution import (
    NotConverged,
    converged_norm,
    power_iteration,
    upper_norm,
)
from lipbench.networks.network import as_network, walk
from lipbench.norm import Norm

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
RTOL = 1e-9  # upper bounds carry a slack of 1e-12 per term


@settings(max_examples=40)
@given(settings_of_convolutions, st.sampled_from(NORMS))
def test_no_convolution_exceeds_its_bound(chosen, norm):
    step = random_convolution(**chosen)
    assert exact(step, norm) <= upper_norm(step, norm)


@settings(max_examples=20)
@given(settings_of_convolutions, st.integers(0, 5))
def test_power_iteration_stays_below_and_lanczos_arrives(chosen, iterations):
    step = random_convolution(**chosen)
    start = torch.ones(step.input_shape, dtype=torch.float64)
    truth = exact(step, 2)
    assert float(power_iteration(step, start, iterations).value) <= truth * (1 + 1e-12)
    assert float(converged_norm(step).value) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_dense_norms_are_exact(norm):
    """[[1, 2], [3, -4]]: largest column sum 6, row sum 7, singular value √(15 + √125)."""
    step = step_of(filled(nn.Linear(2, 2), [[1.0, 2.0], [3.0, -4.0]]), 2)
    expected = {1.0: 6.0, 2.0: math.sqrt(15 + math.sqrt(125)), math.inf: 7.0}[float(norm)]
    assert expected <= upper_norm(step, norm) <= expected * (1 + RTOL)


def test_a_row_in_the_infinity_norm_sums_its_entries():
    """The map x ↦ x₁ - x₂ has constant 2 in l-infinity, not the largest entry 1."""
    step = step_of(filled(nn.Linear(2, 1), [[1.0, -1.0]]), 2)
    assert upper_norm(step, Norm(math.inf)) == pytest.approx(2, rel=RTOL)


@pytest.mark.parametrize("size", [3, 5, 8])
def test_ones_kernel_is_bounded_as_an_operator(size):
    """(1 + 2cos(π/(n+1)))² up to 9; the reshaped kernel has norm 3, its Frobenius norm too."""
    step = step_of(filled(nn.Conv2d(1, 1, 3, padding=1), torch.ones(9)), 1, size, size)
    truth = (1 + 2 * math.cos(math.pi / (size + 1))) ** 2
    assert truth <= upper_norm(step, Norm(2.0)) <= 9 * (1 + RTOL)
    assert float(converged_norm(step).value) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_difference_kernel_exceeds_the_circular_norm(size):
    """Zero padding may beat the circular norm of the same size: 2cos(π/(2n+1))."""
    step = step_of(filled(nn.Conv1d(1, 1, 3, padding=1), [-1.0, 1.0, 0.0]), 1, size)
    truth = 2 * math.cos(math.pi / (2 * size + 1))
    assert float(converged_norm(step).value) == pytest.approx(truth, rel=1e-9)
    assert truth <= upper_norm(step, Norm(2.0)) <= 2 * (1 + RTOL)


@pytest.mark.parametrize(("size", "expected"), [(3, 1.7320508), (5, 1.9021130), (4, 2.0)])
def test_circular_norm_is_exact(size, expected):
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
    step = step_of(filled(layer, [-1.0, 1.0, 0.0]), 1, size)
    assert upper_norm(step, Norm(2.0)) == pytest.approx(expected, rel=1e-7)


def test_a_single_tap_scales():
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 2.5
    step = step_of(filled(nn.Conv2d(1, 1, 3, padding=1), kernel), 1, 4, 4)
    assert upper_norm(step, Norm(2.0)) == pytest.approx(2.5, rel=RTOL)


def test_a_pointwise_convolution_is_its_matrix():
    layer = nn.Conv2d(3, 4, 1).double().requires_grad_(False)
    expected = float(torch.linalg.matrix_norm(layer.weight[:, :, 0, 0], ord=2))
    assert upper_norm(step_of(layer, 3, 4, 4), Norm(2.0)) == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("size", [6, 7])
def test_stride_equal_to_the_kernel_is_the_reshaped_matrix(size):
    layer = nn.Conv2d(2, 3, 2, stride=2).double().requires_grad_(False)
    expected = float(torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2))
    assert upper_norm(step_of(layer, 2, size, size), Norm(2.0)) == pytest.approx(expected, rel=RTOL)


def test_groups_take_the_largest_and_not_the_product():
    """Two groups that each halve their input: 1/2, not 1/4."""
    layer = filled(nn.Conv2d(2, 2, 1, groups=2), [0.5, 0.5])
    assert upper_norm(step_of(layer, 2, 4, 4), Norm(2.0)) == pytest.approx(0.5, rel=RTOL)


def test_a_kernel_larger_than_the_period_is_folded():
    """Only the last tap of a 5x5 kernel is set; cutting the kernel to 3x3 would lose it."""
    kernel = torch.zeros(5, 5)
    kernel[4, 4] = 1.0
    layer = filled(nn.Conv2d(1, 1, 5, padding=2, padding_mode="circular"), kernel)
    assert upper_norm(step_of(layer, 1, 3, 3), Norm(2.0)) == pytest.approx(1, rel=RTOL)


def test_circular_rows_that_repeat_are_counted():
    """An even kernel with one extra row: the layer exceeds the norm of the circulant."""
    layer = filled(nn.Conv1d(1, 1, 2, padding=1, padding_mode="circular"), [1.0, 1.0])
    step = step_of(layer, 1, 4)
    assert 2.1 < exact(step, 2) <= upper_norm(step, Norm(2.0)) <= 2 * math.sqrt(2) * (1 + RTOL)


def test_dilation_reaches_the_sum_of_the_taps():
    step = step_of(filled(nn.Conv1d(1, 1, 3, padding=2, dilation=2), [1.0, 1.0, 1.0]), 1, 64)
    assert 2.98 < float(converged_norm(step).value) <= upper_norm(step, Norm(2.0)) <= 3 + RTOL


@pytest.mark.parametrize(("mode", "copies"), [("reflect", 3), ("replicate", 2)])
def test_copied_padding_multiplies_by_the_root_of_its_copies(mode, copies):
    """Of 3 entries padded by 1 the middle one is reflected twice; a single tap adds nothing."""
    layer = filled(nn.Conv2d(1, 1, 1, padding=1, padding_mode=mode), [2.0])
    step = step_of(layer, 1, 3, 3)
    assert exact(step, 2) == pytest.approx(2 * copies)
    assert upper_norm(step, Norm(2.0)) == pytest.approx(2 * copies, rel=RTOL)


@pytest.mark.parametrize("norm", [Norm(1.0), Norm(math.inf)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_padded_norms_are_exact_where_no_taps_cancel(mode, norm):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, (3, 2), padding=(1, 2), stride=2, padding_mode=mode)
    step = step_of(filled(layer, torch.rand(layer.weight.shape)), 2, 4, 5)
    assert upper_norm(step, norm) == pytest.approx(exact(step, norm), rel=RTOL)


def test_taps_that_cancel_beside_a_reflection_are_added():
    """x₁ - x₁ = 0 in the first row: the column of x₁ sums to 1, its absolute taps to 3."""
    step = step_of(
        filled(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"), [1.0, 0.0, -1.0]), 1, 4
    )
    assert exact(step, 1) == pytest.approx(1)
    assert upper_norm(step, Norm(1.0)) == pytest.approx(3, rel=RTOL)


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 2), settings_of_transposes)
def test_a_transposed_convolution_is_read_with_all_its_settings(seed, axes, chosen):
    """Also where the output padding exceeds the padding or reaches the stride."""
    layer, step = random_transpose(seed, axes, **chosen)
    matrix = matrix_of(step.apply, step.input_shape)
    bias = layer.bias.reshape(-1, *[1] * axes)
    expected = matrix_of(lambda basis: layer(basis) - bias, step.input_shape)
    torch.testing.assert_close(matrix, expected)
    torch.testing.assert_close(matrix_of(step.adjoint, step.output_shape), matrix.T)
    for norm in NORMS:
        truth = matrix_norm(matrix, norm)
        upper = upper_norm(step, norm)
        assert truth * (1 - 1e-14) <= upper
        if norm != 2:
            assert upper == pytest.approx(truth, rel=RTOL)


def test_a_transposed_convolution_has_the_norm_of_its_convolution():
    """Blocks of stride 2 that do not overlap: the norm of the flattened kernel, not 2 or 4."""
    layer = filled(nn.ConvTranspose2d(1, 1, 2, stride=2), [1.0, 2.0, 3.0, 4.0])
    step = step_of(layer, 1, 3, 3)
    assert upper_norm(step, Norm(2.0)) == pytest.approx(math.sqrt(30), rel=RTOL)
    assert upper_norm(step, Norm(1.0)) == pytest.approx(10, rel=RTOL)
    assert upper_norm(step, Norm(math.inf)) == pytest.approx(4, rel=RTOL)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.ZeroPad1d((1, 2)),
        nn.ZeroPad2d((1, 0, 2, -1)),
        nn.ReflectionPad1d(2),
        nn.ReflectionPad2d((1, 2, 0, 2)),
        nn.ReflectionPad3d(1),
        nn.ReplicationPad1d((0, 3)),
        nn.ReplicationPad2d((2, 1, 0, 1)),
        nn.ReplicationPad3d(1),
        nn.CircularPad1d((3, 1)),
        nn.CircularPad2d((1, 2, 3, 0)),
    ],
    ids=repr,
)
def test_the_constant_of_padding_is_its_norm(layer, norm):
    shape = (2, 3, 3, 3)[: 1 + int(type(layer).__name__[-2])]
    (step,) = as_network(layer, shape).steps
    truth = matrix_norm(matrix_of(layer, shape), norm)
    assert truth * (1 - 1e-14) <= constant(step, norm) <= truth * (1 + RTOL)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.AvgPool1d(2, 1), (2, 5)),
        (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), (1, 4, 5)),
        (nn.AvgPool2d(2, divisor_override=3), (1, 4, 4)),
        (nn.AdaptiveAvgPool1d(3), (2, 5)),
        (nn.AdaptiveAvgPool2d((2, 3)), (1, 5, 4)),
    ],
    ids=repr,
)
def test_the_constant_of_a_mean_is_no_less_than_its_norm(layer, shape, norm):
    (step,) = as_network(layer, shape).steps
    truth = matrix_norm(matrix_of(layer, shape), norm)
    assert truth * (1 - 1e-14) <= constant(step, norm)
    if norm != 2:
        assert constant(step, norm) == pytest.approx(truth, rel=RTOL)


def test_vectors_of_the_converged_norm_are_singular():
    torch.manual_seed(0)
    step = step_of(nn.Conv2d(2, 3, 3, padding=1), 2, 5, 5)
    value, right, left = converged_norm(step)
    torch.testing.assert_close(step.apply(right.unsqueeze(0))[0], value * left)
    torch.testing.assert_close(step.adjoint(left.unsqueeze(0))[0], value * right, rtol=0, atol=1e-7)


def test_an_iteration_cut_short_raises():
    torch.manual_seed(0)
    step = step_of(nn.Conv2d(2, 3, 3, padding=1), 2, 5, 5)
    with pytest.raises(NotConverged, match="after 2 products"):
        converged_norm(step, iterations=2)


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv1d(3, 2, 2, padding=1)])
def test_a_zero_weight_has_norm_zero(layer):
    step = step_of(
        filled(layer, torch.zeros_like(layer.weight)), *((3, 4)[: layer.weight.ndim - 1])
    )
    assert [upper_norm(step, norm) for norm in NORMS] == [0.0] * 3
    assert float(converged_norm(step).value) == 0.0


def test_the_gradient_of_the_norm_is_the_outer_product():
    """d‖W‖/dW = left·rightᵀ, also for parameters stacked by vmap."""
    torch.manual_seed(0)
    graph = walk(nn.Linear(3, 2, bias=False), (3,))
    weights = torch.randn(4, 2, 3, dtype=torch.float64)

    def value(weight):
        step = graph.bind({"weight": weight}, {}).layers[0]
        return power_iteration(step, torch.ones(3, dtype=torch.float64), 200).value

    gradients = torch.func.vmap(torch.func.grad(value))(weights)
    left, _, right = torch.linalg.svd(weights, full_matrices=False)
    expected = left[:, :, :1] @ right[:, :1]
    torch.testing.assert_close(gradients, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate", bias=False),
        nn.ConvTranspose2d(2, 3, 3, 2, 1, 1, bias=False),
    ],
    ids=repr,
)
def test_power_iteration_follows_stacked_convolutions(layer):
    torch.manual_seed(0)
    graph = walk(layer, (2, 4, 4))
    weights = torch.randn(3, *layer.weight.shape, dtype=torch.float64)

    def value(weight):
        step = graph.bind({"weight": weight}, {}).layers[0]
        return power_iteration(step, torch.ones(2, 4, 4, dtype=torch.float64), 300).value

    gradients, values = torch.func.vmap(torch.func.grad_and_value(value))(weights)
    for weight, norm, gradient in zip(weights, values, gradients, strict=True):
        step = graph.bind({"weight": weight}, {}).layers[0]
        assert float(norm) == pytest.approx(exact(step, 2), rel=1e-3)
        # The norm is homogeneous: its derivative along the weight is the norm itself.
        assert float((gradient * weight).sum()) == pytest.approx(float(norm), rel=1e-9)
