"""Constants that training follows, against those of the steps' own matrices."""

import re
from dataclasses import replace

import pytest
import torch
from support.matrices import matrix_norm, matrix_of
from support.training import a_model, a_net
from torch import nn

from lipbench.layers.explanations import Residual
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.method_families import differentiable_constant
from lipbench.networks.steps import Linear
from lipbench.norm import Norm


class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = x - 0.5 * torch.tanh(self.inner(x))
        return self.last(torch.cat([x, y], dim=1))


def convolutional():
    norm = nn.BatchNorm2d(3)
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, stride=2, padding=1), norm, nn.LeakyReLU(0.1), nn.MaxPool2d(2, 1)),
        *(nn.AvgPool2d(2, 1, padding=1), nn.Flatten(), nn.Linear(48, 4), nn.Sigmoid()),
        nn.Linear(4, 3),
    )


NETWORKS = {
    "dense": (
        lambda: a_model(widths=(7, 5), activation="sigmoid", normalisation=(0.5, 0.25)).build(
            (6,), 3, torch.Generator().manual_seed(0)
        ),
        (6,),
    ),
    "convolutional": (convolutional, (2, 8, 8)),
    "branched": (Branched, (6,)),
    "linear": (lambda: nn.Linear(6, 3), (6,)),
}


def a_network(name):
    torch.manual_seed(1)
    make, shape = NETWORKS[name]
    return a_net(make().double().eval(), shape).steps


def exact(network):
    # From the singular values of every linear step as a matrix, and the core's rule for the rest.
    def own(step):
        if isinstance(step, Linear):
            return matrix_norm(matrix_of(step.detach().apply, step.input_shape), 2)
        return constant(step, Norm(2))

    return composed(network, [own(step) for step in network.steps], Norm(2))


def vectors_of(network):
    return differentiable_constant.start(network, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_constant_is_the_product_of_the_norms_of_matrices(name):
    network = a_network(name)
    vectors = vectors_of(network)
    trunk, _ = differentiable_constant.split(network)
    for part in (network, trunk):
        found, _ = differentiable_constant.constant(part, vectors)
        assert float(found) == pytest.approx(exact(part), rel=1e-3)
        assert float(found) <= exact(part) * (1 + 1e-9)


def test_many_more_iterations_do_not_change_a_converged_constant():
    trunk, _ = differentiable_constant.split(a_network("dense"))
    vectors = vectors_of(trunk)
    one, many = (
        float(differentiable_constant.constant(trunk, vectors, count)[0]) for count in (1, 100)
    )
    assert one == pytest.approx(many, rel=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_constant_of_a_difference_covers_the_rows_and_the_matrix(name):
    network = a_network(name)
    vectors = vectors_of(network)
    trunk, last = differentiable_constant.split(network)
    by_rows, _ = differentiable_constant.gaps(network, vectors)
    by_matrix, _ = differentiable_constant.gaps(network, vectors, by_rows=False)
    for i in range(3):
        for j in range(3):
            rows = float((last.weight[i] - last.weight[j]).norm())
            assert float(by_rows[i, j]) == pytest.approx(exact(trunk) * rows, rel=1e-3)
            both = 2**0.5 * exact(network) * (i != j)
            assert float(by_matrix[i, j]) == pytest.approx(both, rel=1e-3)
    # Not for branches, which are added before the last layer reads them.
    assert bool((by_rows <= by_matrix * (1 + 1e-3)).all())


def test_the_slope_in_the_weights_is_that_of_the_norms():
    module = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4), nn.ReLU()).double()
    network = a_net(nn.Sequential(module, nn.Linear(4, 2).double()), (6,))
    trunk, _ = differentiable_constant.split(network.steps)
    vectors = vectors_of(trunk)

    def found(params):
        return differentiable_constant.constant(
            differentiable_constant.split(network.with_params(params).steps)[0], vectors
        )[0]

    def expected(params):
        norms = [torch.linalg.matrix_norm(params[f"0.{key}.weight"], ord=2) for key in (0, 2)]
        return norms[0] * norms[1] / 4

    one, other = (torch.func.grad(each)(network.params) for each in (found, expected))
    for name, slope in one.items():
        torch.testing.assert_close(slope, other[name], rtol=1e-2, atol=1e-2)
    assert not any("1.weight" in name and slope.any() for name, slope in one.items())


def test_equal_rows_have_distance_0_and_a_slope():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    layer = a_net(nn.Linear(2, 3), (2,)).layers[0]

    def total(weight):
        return differentiable_constant.row_distances(replace(layer, weight=weight)).sum()

    assert float(total(rows)) == pytest.approx(4.0)
    assert torch.func.grad(total)(rows).isfinite().all()


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,), "must end with a dense layer"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), (1, 4, 4), "must end with a dense layer"),
        (nn.Linear(4, 3), (2, 4), "must end with a dense layer"),
        (nn.Sequential(), (4,), "must end with a dense layer"),
        (
            nn.Sequential(Residual(torch.eye(4), 2 * torch.ones(4)), nn.Linear(4, 3)),
            (4,),
            r"'0' \(Contraction\) has no constant",
        ),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1), nn.Linear(3, 2)), (4,), "Softmax"),
    ],
)
def test_what_cannot_be_followed_has_a_reason(module, shape, reason):
    found = differentiable_constant.why_not(module, shape)
    assert found is not None
    assert re.search(reason, found)
    assert not found.endswith(".")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_can_be_followed_has_none(name):
    make, shape = NETWORKS[name]
    assert differentiable_constant.why_not(make(), shape) is None
