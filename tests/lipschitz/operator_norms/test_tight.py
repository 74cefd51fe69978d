"""Layer norms that are exact up to a tolerance, against dense matrices and values by hand."""

import math
from dataclasses import replace

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
from support.matrices import matrix_of
from torch import nn

from lipbench.bound import Bound
from lipbench.lipschitz.operator_norms.cholesky import band_entries, proved_norm
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.dense_and_convolution import (
    NotConverged,
    converged_norm,
    upper_norm,
)
from lipbench.lipschitz.operator_norms.layer_products import convolution
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.soundness import crossings
from lipbench.model import Model
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

L2 = Norm(2)
CENTRE = torch.zeros(3, 3)
CENTRE[1, 1] = 2.5


def bound(**options):
    return load("lipbench.bounds", "tight_layers", Bound)(**options)


def images(seed=0, size=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * (size // 2) ** 2, 3),
    )


def tight(layer, *shape, **options):
    network = as_network(nn.Sequential(layer), shape)
    upper = bound(**options).compute(network, L2, None)
    assert recheck(network, upper) == []
    return upper.value


@pytest.mark.parametrize("size", [3, 5, 8])
def test_the_norm_of_ones_by_hand(size):
    layer = filled(nn.Conv2d(1, 1, 3, padding=1), torch.ones(9))
    truth = (1 + 2 * math.cos(math.pi / (size + 1))) ** 2
    assert truth <= tight(layer, 1, size, size) <= truth * (1 + 2e-9)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_norm_of_differences_by_hand(size):
    layer = filled(nn.Conv1d(1, 1, 3, padding=1), [-1.0, 1.0, 0.0])
    truth = 2 * math.cos(math.pi / (2 * size + 1))
    assert truth <= tight(layer, 1, size) <= truth * (1 + 2e-9)


@pytest.mark.parametrize(
    ("layer", "taps", "shape", "expected"),
    [
        pytest.param(nn.Conv2d(1, 1, 3, padding=1), CENTRE, (1, 4, 4), 2.5, id="one tap"),
        pytest.param(nn.Conv2d(2, 2, 1), [3.0, 0, 4, 0], (2, 3, 3), 5, id="a matrix"),
        pytest.param(nn.Conv1d(1, 1, 2, stride=2), [1.0, 1], (1, 6), 2**0.5, id="a stride"),
        pytest.param(nn.Conv2d(2, 2, 1, groups=2), [0.5, 0.5], (2, 4, 4), 0.5, id="groups"),
        pytest.param(
            # Every other row is a convolution of its own, of length 30.
            nn.Conv1d(1, 1, 3, padding=2, dilation=2),
            [1.0, 1, 1],
            (1, 60),
            1 + 2 * math.cos(math.pi / 31),
            id="dilation",
        ),
        pytest.param(nn.Linear(2, 2), [1.0, 2, 3, -4], (2,), 5.116673, id="dense"),
    ],
)
def test_norms_by_hand(layer, taps, shape, expected):
    layer = filled(layer, taps)
    assert tight(layer, *shape) == pytest.approx(expected, rel=1e-7)
    assert tight(layer, *shape, tolerance=0.0) == pytest.approx(expected, rel=1e-7)


def test_means_have_their_own_constants():
    assert tight(nn.AvgPool2d(2), 1, 4, 4) == pytest.approx(1 / 2)
    assert tight(nn.AdaptiveAvgPool2d(1), 1, 4, 6) == pytest.approx(1 / math.sqrt(24))


def lies_close(step, truth):
    """Return whether the bound of a step is within a millionth of its norm, from above."""
    network = replace(as_network(nn.Identity(), step.input_shape), steps=(step,), output=1)
    upper = bound(tolerance=0.0).compute(network, L2, None)
    return (
        truth * (1 - 1e-14)
        <= upper.value
        <= min(truth * (1 + 1e-6), upper_norm(step, L2) * (1 + 1e-15))
    )


@settings(max_examples=50)
@given(settings_of_convolutions)
def test_every_convolution_has_its_norm(chosen):
    step = random_convolution(**chosen)
    truth = exact(step, L2)
    assert truth == 0 or lies_close(step, truth)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 2), settings_of_transposes)
def test_every_transposed_convolution_has_its_norm(seed, axes, chosen):
    _, step = random_transpose(seed, axes, **chosen)
    truth = exact(step, L2)
    assert truth == 0 or lies_close(step, truth)


@settings(max_examples=40)
@given(settings_of_convolutions, st.floats(-6, -1), st.sampled_from([1e-200, 1, 1e200]))
def test_a_claim_is_proved_where_a_dense_factorisation_proves_it(chosen, share, scale):
    """The naive twin: s²I - WᵀW written out, whose eigenvalues LAPACK finds."""
    step = random_convolution(**chosen)
    step = replace(step, weight=step.weight / step.weight.abs().max())
    matrix = matrix_of(step.apply, step.input_shape)
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    scaled = replace(step, weight=step.weight * scale)
    for claim in (truth * (1 - 10**share), truth * (1 + 10**share)):
        eye = torch.eye(matrix.shape[1], dtype=torch.float64)
        definite = torch.linalg.eigvalsh(claim**2 * eye - matrix.T @ matrix)[0] > 0
        proved = proved_norm(scaled, claim * scale)
        assert math.isfinite(proved) == bool(definite)
        assert not definite or proved == pytest.approx(claim * scale, rel=1e-9)


def test_a_convolution_in_three_dimensions_has_its_norm():
    torch.manual_seed(0)
    step = step_of(nn.Conv3d(2, 3, 2, padding=1, stride=(1, 2, 1)).double(), 2, 3, 4, 3)
    assert lies_close(step, exact(step, L2))


@pytest.mark.parametrize("claim", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_claim_is_not_proved(claim):
    assert proved_norm(step_of(nn.Conv1d(1, 1, 3), 1, 5), claim) == math.inf


@pytest.mark.parametrize(
    ("layer", "shape", "terms"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8), 4 * 9),
        (nn.Conv1d(1, 1, 2, padding=2000, padding_mode="replicate"), (1, 3), 4000),
    ],
    ids=["many taps", "many copies"],
)
def test_a_claim_is_raised_by_more_than_its_proof_can_be_wrong_by(layer, shape, terms):
    """Of the factors (b + 2)u‖|L||L|ᵀ‖, and of the matrix as many roundings as it has terms."""
    step = step_of(filled(layer, torch.linspace(-1, 0.8, layer.weight.numel())), *shape)
    matrix = matrix_of(step.apply, step.input_shape)
    matrix = matrix.reshape(-1, shape[0], math.prod(shape[1:])).mT.flatten(1)  # channels last
    claim = float(converged_norm(step).value) * (1 + 1e-9)
    gram = matrix.T @ matrix
    factor = torch.linalg.cholesky(claim**2 * torch.eye(len(gram), dtype=torch.float64) - gram)
    rows, columns = gram.nonzero().T
    band, unit = int((rows - columns).max()), torch.finfo(torch.float64).eps / 2
    of_factors = (band + 2) * unit * torch.linalg.matrix_norm(factor.abs() @ factor.abs().T, 2)
    of_matrix = terms * unit * torch.linalg.matrix_norm(matrix.abs(), 2) ** 2
    raised = proved_norm(step, claim) ** 2 - claim**2
    assert float(of_factors + of_matrix) < raised < 1e-9 * claim**2


@pytest.mark.parametrize("seed", range(3))
def test_a_network_is_the_product_of_its_layers(seed):
    network = as_network(images(seed), (2, 6, 6))
    upper = bound().compute(network, L2, None)
    truth = math.prod(exact(layer, L2) for layer in network.layers)
    product = load("lipbench.bounds", "product", Bound)().compute(network, L2, None)
    lower = load("lipbench.bounds", "jacobian", Bound)(points=8).compute(network, L2, None)
    assert truth <= upper.value <= truth * (1 + 1e-7)
    assert upper.value < product.value * 0.99
    assert recheck(network, upper) == []
    assert crossings([lower, upper]) == []


def test_a_lowered_value_and_a_lowered_claim_are_caught():
    network = as_network(images(), (2, 6, 6))
    upper = bound().compute(network, L2, None)
    claims = upper.proof["claims"]
    lowered = upper.value * (1 - 1e-6)
    first = torch.tensor([1 - 1e-6, *[1.0] * (len(claims) - 1)], dtype=torch.float64)
    for value in (
        replace(upper, value=lowered),
        replace(upper, value=lowered, proof={"claims": claims * first}),
        replace(upper, value=lowered, proof={"claims": claims * math.nan}),
        replace(upper, value=lowered, proof={"claims": -claims}),
        replace(upper, value=lowered, proof={"claims": claims[1:]}),
    ):
        assert "the norms claimed of its layers prove" in recheck(network, value)[0].message


def test_a_claim_on_a_dense_layer_counts_for_nothing():
    network = as_network(nn.Linear(3, 2), (3,))
    upper = bound().compute(network, L2, None)
    half = replace(upper, value=upper.value / 2, proof={"claims": upper.proof["claims"] / 2})
    assert len(recheck(network, half)) == 1


def test_the_norm_on_the_padded_grid_stands_where_nothing_is_proved():
    network = as_network(images(), (2, 6, 6))
    upper = bound(iterations=1).compute(network, L2, None)
    expected = [constant(step, L2) for step in network.steps]
    assert upper.proof["claims"].tolist() == expected
    assert (
        upper.value == load("lipbench.bounds", "product", Bound)().compute(network, L2, None).value
    )
    assert recheck(network, upper) == []


def test_a_norm_that_is_not_converged_says_how_far_it_came():
    torch.manual_seed(0)
    step = step_of(nn.Conv2d(2, 3, 3, padding=1), 2, 5, 5)
    with pytest.raises(NotConverged) as caught:
        converged_norm(step, iterations=3)
    assert 0.5 * exact(step, L2) < caught.value.value <= exact(step, L2)


def test_a_layer_that_is_too_large_is_refused_by_name():
    """6 rows of 6 pixels and 2 channels, each beside 2 more: 6·3·12² entries."""
    network = as_network(images(), (2, 6, 6))
    assert band_entries(network.layers[0]) == 2592
    reason = bound(most_entries=2591).refuses(network, L2, None)
    assert reason == (
        "layer '0': its Gram matrix has a band of 2592 entries, more than 2591: raise most_entries."
    )
    assert bound(most_entries=2592).refuses(network, L2, None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tolerance": -1.0}, "at least 0, got -1"), ({"iterations": 0}, "at least 1, got 0")],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bound(**options)


def test_the_cost_grows_with_the_image():
    costs = [
        bound().cost(as_network(nn.Conv2d(4, 4, 3, padding=1), (4, n, n)), L2, None)
        for n in (8, 64)
    ]
    assert costs[0] < 0.5 < costs[1] < 60


@pytest.mark.slow
def test_the_convolutions_of_madry_have_their_norms():
    model = load("lipbench.models", "madry_cnn", Model)()
    network = as_network(
        model.build((1, 28, 28), 10, torch.Generator().manual_seed(0)), (1, 28, 28)
    )
    upper = bound().compute(network, L2, None)
    assert recheck(network, upper) == []
    least = math.prod(
        float(converged_norm(layer, 1e-6).value) if convolution(layer) else constant(layer, L2)
        for layer in network.layers
    )
    assert least < upper.value < least * (1 + 1e-6)
