"""Layer norms by Gram iteration and from samples, against dense matrices and values by hand."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bounds import bound
from support.convolutions import exact, random_convolution, settings_of_convolutions, step_of
from support.nets import random_network
from torch import nn
from torch.nn import functional as F

from lipbench.lipschitz.operator_norms.dense_and_convolution import upper_norm
from lipbench.lipschitz.operator_norms.gram import gram_norms, kernel_norm
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import Network, as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

L2 = Norm(2)
BOUNDS = ["gram", "gram_lattice", "lipbound"]


def sedghi(layer, *shape):
    """Return the norm that the bound gives a layer, None if it refuses."""
    network, method = network_of(layer, *shape), bound("sedghi")
    reason = method.refuses(network, L2, None)
    if reason is None:
        return method.compute(network, L2, None).value
    with pytest.raises(Refused, match=re.escape(reason)):
        method.compute(network, L2, None)
    return None


def filled(layer, taps):
    with torch.no_grad():
        layer.double().weight.copy_(torch.as_tensor(taps).double().reshape(layer.weight.shape))
    return layer


def norm_of(step, name, **options):
    """Return the norm that a bound gives a single step."""
    alone = Network(input_shape=step.input_shape, steps=(replace(step, inputs=(0,)),), output=1)
    return bound(name, **options).compute(alone, L2, None).value


def network_of(layer, *shape):
    return as_network(nn.Sequential(layer), shape)


@pytest.mark.parametrize(
    ("iterations", "expected"), [(0, 5**0.5), (1, 17**0.25), (2, 257**0.125), (3, 65537**0.0625)]
)
def test_gram_iteration_of_a_diagonal_by_hand(iterations, expected):
    matrix = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)).unsqueeze(0)
    assert float(gram_norms(matrix, iterations)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("iterations", range(4))
def test_gram_iteration_of_an_identity_by_hand(iterations):
    norm = gram_norms(torch.eye(4, dtype=torch.float64).unsqueeze(0), iterations)
    assert float(norm) == pytest.approx(4 ** (0.5 ** (iterations + 1)))


def test_zero_is_no_obstacle():
    assert gram_norms(torch.zeros(2, 3, 4, dtype=torch.float64), 3).tolist() == [0, 0]
    assert kernel_norm(torch.zeros(2, 2, 3, 3, dtype=torch.float64), 3) == 0


@given(
    st.integers(0, 999),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1e-200, 1e-150, 1, 1e200]),
)
def test_gram_iteration_falls_to_the_norm_at_any_scale(seed, rows, columns, scale):
    rng = torch.Generator().manual_seed(seed)
    real, imaginary = torch.randn(2, 3, rows, columns, generator=rng, dtype=torch.float64)
    matrices = scale * torch.complex(real, imaginary)
    norms = torch.linalg.matrix_norm(matrices, 2)
    bounds = [gram_norms(matrices, count) for count in (0, 1, 3, 6, 12)]
    for earlier, later in pairwise(bounds):
        assert (later <= earlier * (1 + 1e-12)).all()
        assert (later >= norms * (1 - 1e-12)).all()
    torch.testing.assert_close(bounds[-1], norms, rtol=1e-3, atol=0)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_kernels_times_themselves_by_the_letter(seed, results, channels, iterations):
    """The naive twin: the paper's correlations, with full padding, of the taps themselves."""
    rng = torch.Generator().manual_seed(seed)
    kernel = torch.randn(results, channels, 2, 3, generator=rng, dtype=torch.float64)
    squared = kernel if results <= channels else kernel.transpose(0, 1)
    for _ in range(iterations):
        squared = F.conv2d(squared, squared, padding=[k - 1 for k in squared.shape[2:]])
    expected = float(squared.abs().sum(dim=(1, 2, 3)).max()) ** (0.5**iterations)
    assert kernel_norm(kernel, iterations) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_kernels_of_any_scale_have_a_norm(scale):
    kernel = torch.tensor([[[-1.0, 1.0]]], dtype=torch.float64)
    assert kernel_norm(scale * kernel, 1) == pytest.approx(2 * scale, rel=1e-12)


def test_the_smallest_kernel_needs_an_iteration():
    """Row sums of [[1], [1]] are 1 and its norm is the root of 2: no Gram matrix, no bound."""
    kernel = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    assert kernel_norm(kernel, 1) == pytest.approx(2**0.5)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bound("gram_lattice", iterations=0)


def test_a_difference_filter_by_hand():
    """The taps -1, 1 double what alternates, on an endless grid."""
    layer = nn.Conv1d(1, 1, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[-1.0, 1.0]]]))
    norm = kernel_norm(layer.weight.detach(), 1)
    assert norm == pytest.approx(2)  # (1 + 2 + 1)^(1/2)
    assert bound("lipbound", samples=2000).compute(network_of(layer, 1, 9), L2, None).value == (
        pytest.approx(2, rel=1e-3)
    )


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("mode", ["circular", "replicate", "reflect"])
def test_padding_with_copies_counts(name, mode):
    """Two taps of 1 per axis expand by 2 between zeros, and by more where rows come twice."""
    layer = nn.Conv2d(1, 1, 2, padding=1, padding_mode=mode, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
    step = step_of(layer, 1, 2, 2)
    assert exact(step, L2) > 2.01
    assert norm_of(step, name) >= exact(step, L2)


@pytest.mark.parametrize("axes", [1, 2])
def test_what_lies_between_the_samples_counts(axes):
    """1, -0.2, 1 expand most at a frequency that five samples miss, along each axis."""
    taps = torch.tensor([1.0, -0.2, 1.0], dtype=torch.float64)
    layer = {1: nn.Conv1d, 2: nn.Conv2d}[axes](1, 1, 3, padding=1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(taps if axes == 1 else torch.outer(taps, taps))
    truth = (0.2 + 2 * math.cos(math.pi / 13)) ** axes  # of the 12 rows along an axis
    step = step_of(layer, 1, *[12] * axes)
    assert exact(step, L2) == pytest.approx(truth)
    sampled = (0.2 + 2 * math.cos(math.pi / 5)) ** axes
    norm = norm_of(step, "lipbound", samples=5)
    assert norm == pytest.approx(sampled / 0.6 ** (axes / 2))
    # With the factor of one axis fewer it would be no bound.
    assert norm * 0.6**0.5 < truth < norm


@settings(max_examples=60)
@given(settings_of_convolutions, st.sampled_from(BOUNDS))
def test_no_convolution_exceeds_a_bound(chosen, name):
    step = random_convolution(**chosen)
    assert norm_of(step, name) >= exact(step, L2) * (1 - 1e-12)


@settings(max_examples=20)
@given(settings_of_convolutions)
def test_gram_iteration_on_the_grid_falls_to_the_largest_singular_value(chosen):
    step = random_convolution(**chosen)
    many = norm_of(step, "gram", iterations=14)
    assert many == pytest.approx(upper_norm(step, L2), rel=1e-3)


def test_a_transposed_convolution_has_the_norm_of_its_adjoint():
    torch.manual_seed(0)
    step = step_of(nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), 3, 5, 5)
    for name in BOUNDS:
        assert norm_of(step, name) >= exact(step, L2)


SINGLE = torch.zeros(5, 5)
SINGLE[4, 4] = 1
CENTRE = torch.zeros(3, 3)
CENTRE[1, 1] = 2.5
CIRCULAR = {"padding": 1, "padding_mode": "circular", "bias": False}


@pytest.mark.parametrize(
    ("layer", "taps", "shape", "expected"),
    [
        pytest.param(nn.Conv2d(1, 1, 3, **CIRCULAR), [1.0] * 9, (1, 5, 5), 9, id="ones"),
        pytest.param(nn.Conv1d(1, 1, 3, **CIRCULAR), [-1.0, 1, 0], (1, 3), 3**0.5, id="row of 3"),
        pytest.param(nn.Conv1d(1, 1, 3, **CIRCULAR), [-1.0, 1, 0], (1, 5), 1.902113, id="row of 5"),
        pytest.param(nn.Conv1d(1, 1, 3, **CIRCULAR), [-1.0, 1, 0], (1, 4), 2, id="row of 4"),
        pytest.param(nn.Conv2d(1, 1, 3, **CIRCULAR), CENTRE, (1, 4, 4), 2.5, id="one tap"),
        pytest.param(
            nn.Conv2d(2, 2, 1), [3.0, 0, 4, 0], (2, 3, 3), 5, id="a matrix, not its entries"
        ),
        pytest.param(
            nn.Conv2d(2, 2, 1), [1.0, 0, 0, 1], (2, 3, 3), 1, id="a matrix, not Frobenius"
        ),
        pytest.param(nn.Conv1d(1, 1, 2, stride=2), [1.0, 1], (1, 6), 2**0.5, id="a stride"),
        pytest.param(nn.Conv2d(2, 2, 1, groups=2), [0.5, 0.5], (2, 4, 4), 0.5, id="groups"),
        pytest.param(
            nn.Conv2d(1, 1, 5, padding=2, padding_mode="circular"),
            SINGLE,
            (1, 3, 3),
            1,
            id="taps beyond the image",
        ),
        pytest.param(
            nn.Conv1d(1, 1, 3, padding=2, dilation=2, padding_mode="circular"),
            [1.0, 1, 1],
            (1, 8),
            3,
            id="dilation",
        ),
    ],
)
def test_circular_norms_by_hand(layer, taps, shape, expected):
    layer = filled(layer, taps)
    assert sedghi(layer, *shape) == pytest.approx(expected, rel=1e-6)
    assert exact(step_of(layer, *shape), L2) == pytest.approx(expected, rel=1e-6)


def test_the_transform_of_the_paper():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, **CIRCULAR).double()
    symbol = np.fft.fft2(layer.weight.detach().numpy(), (6, 6)).transpose(2, 3, 0, 1)
    expected = np.linalg.svd(symbol, compute_uv=False).max()
    assert sedghi(layer, 3, 6, 6) == pytest.approx(expected, rel=1e-9)


def test_beside_zeros_the_frequencies_of_the_image_bound_nothing():
    """The taps -1, 1 expand by 2cos(π/7) = 1.802, where these frequencies give 1.732."""
    layer = filled(nn.Conv1d(1, 1, 3, padding=1, bias=False), [-1.0, 1, 0])
    assert exact(step_of(layer, 1, 3), L2) == pytest.approx(1.801938)
    assert sedghi(layer, 1, 3) is None


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
def test_other_padding_is_refused_by_name(mode):
    network = network_of(nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode), 1, 3, 3)
    reason = bound("sedghi").refuses(network, L2, None)
    assert f"layer '0' has padding_mode '{mode}'" in reason


def test_a_transposed_convolution_is_refused_where_it_is_cut():
    assert sedghi(nn.ConvTranspose2d(2, 1, 3, padding=1), 2, 4, 4) is None
    layer = nn.ConvTranspose2d(2, 1, 3, stride=2)
    assert sedghi(layer, 2, 4, 4) >= exact(step_of(layer, 2, 4, 4), L2)


@settings(max_examples=40)
@given(settings_of_convolutions)
def test_circular_norms_are_exact_where_as_much_comes_out_as_goes_in(chosen):
    reach = (chosen["kernel"] - 1) * chosen["dilation"]
    for padding in {chosen["padding"], reach // 2}:
        step = random_convolution(**{**chosen, "padding": padding, "mode": "circular"})
        norm, truth = norm_of(step, "sedghi"), exact(step, L2)
        assert norm >= truth * (1 - 1e-12)
        if 2 * padding == reach and step.input_shape[1] % chosen["stride"] == 0:
            assert norm == pytest.approx(truth, rel=1e-9)


def test_too_few_samples_are_refused():
    network = network_of(nn.Conv2d(1, 1, 5), 1, 8, 8)
    reason = bound("lipbound", samples=4).refuses(network, L2, None)
    assert reason == "layer '0' has 5 taps along an axis: raise samples."
    assert bound("lipbound", samples=5).refuses(network, L2, None) is None


def test_kernels_that_grow_too_large_are_refused():
    """5 taps become 65 along both axes, for 32 times 32 channels."""
    network = network_of(nn.Conv2d(32, 64, 5, padding=2), 32, 14, 14)
    reason = bound("gram_lattice", most_entries=4_326_399).refuses(network, L2, None)
    assert reason.startswith("layer '0': 4 iterations give a kernel of 4326400 entries")
    assert bound("gram_lattice").refuses(network, L2, None) is None


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_network_is_the_product_of_its_layers(name, seed):
    torch.manual_seed(seed)
    images = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    for model, shape in ((images, (2, 8, 8)), (random_network(seed, (5, 7, 3), nn.ReLU), (5,))):
        network = as_network(model, shape)
        upper = bound(name).compute(network, L2, None)
        product = bound("product").compute(network, L2, None)
        lower = bound("jacobian").compute(network, L2, None)
        assert recheck(network, upper) == []
        assert not crossings([lower, upper])
        assert product.value <= upper.value * (1 + 1e-9) <= 4 * product.value
        assert math.prod(upper.proof["constants"].tolist()) == pytest.approx(upper.value)
