"""MaxMin and GroupSort in the plain code of other people, and what only looks like them."""

import math

import pytest
import torch
from support.written import Written, read
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from lipbench.bound import Bound
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load


def product(network, p=2):
    """Return the constant that steps prove, each by itself."""
    return composed(network, [constant(step, Norm(p)) for step in network.steps], Norm(p))


def expansion(forward, *shape, pairs=4000, p=2.0, seed=0):
    """Return the largest quotient of pairs that were drawn, close ones and distant ones."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(pairs, *shape, generator=rng, dtype=torch.float64)
    distances = 10 ** torch.linspace(-4, 1, pairs, dtype=torch.float64)
    sparse = torch.rand(x.shape, generator=rng, dtype=torch.float64) < 0.3
    moves = torch.randn(x.shape, generator=rng, dtype=torch.float64) * sparse
    y = x + moves * distances.view(-1, *[1] * len(shape))
    rise, run = (
        torch.linalg.vector_norm(ends.flatten(1), p, dim=1)
        for ends in (forward(x) - forward(y), x - y)
    )
    return float((rise[run > 0] / run[run > 0]).max())


def agree(network, forward, *shape):
    x = 3 * torch.randn(50, *shape, dtype=torch.float64)
    x[:5] = x[:5].round()  # where numbers are equal
    torch.testing.assert_close(network(x), forward(x.clone()), rtol=1e-12, atol=1e-12)


def pairs_of(x):
    return x.view(x.shape[0], -1, 2, *x.shape[2:])


def minimum_first(x):
    z = pairs_of(x)
    return torch.cat([z.min(2, keepdim=True)[0], z.max(2, keepdim=True)[0]], 2).view(x.shape)


def stacked(x):
    z = pairs_of(x)
    return torch.stack([z.max(2)[0], z.min(2)[0]], 2).view(x.shape)


def all_maxima_first(x):
    z = pairs_of(x)
    return torch.cat([z.amax(2), z.amin(dim=[2])], dim=1)


def by_values(x):
    z = pairs_of(x)
    return torch.cat((z.max(dim=2).values, z.min(dim=2).values), 1)


def by_halves(x):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(a, b), torch.min(b, a)], 1)


def by_slices(x):
    half = x.shape[1] // 2
    return torch.cat([x[:, :half].max(x[:, half:]), x[:, :half].min(x[:, half:])], 1)


def by_strides(x):
    a, b = x[:, ::2], x[:, 1::2]
    return torch.stack([torch.maximum(a, b), torch.minimum(a, b)], dim=2).flatten(1, 2)


def by_unbind(x):
    a, b = pairs_of(x).unbind(2)
    return torch.stack((a.minimum(b), a.maximum(b)), 2).reshape(x.shape)


def by_relu(x):
    a, b = x.chunk(2, 1)
    return torch.cat([b + F.relu(a - b), a - torch.relu(a - b)], 1)


def by_distances(x):
    a, b = x[:, ::2], x[:, 1::2]
    return torch.cat([(a + b + (a - b).abs()) / 2, 0.5 * (a + b) - abs(a - b) / 2], 1)


def by_the_rest(x):
    a, b = x.chunk(2, 1)
    larger = torch.max(a, b)
    return torch.cat([larger, a + b - larger], 1)


def by_signs(x):
    a, b = x.split(x.shape[1] // 2, 1)
    return torch.hstack([torch.max(a, b), -torch.max(-a, -b)])


def by_a_negative_sort(x):
    z = -pairs_of(x)
    return -torch.cat([z.amax(2), z.amin(2)], 1)


def both_ends(x):
    least, most = torch.aminmax(pairs_of(x), dim=2)
    return torch.cat([least, most], 1)


def parts_of_a_sort(x):
    ordered = pairs_of(x).sort(2)[0]
    return torch.cat([ordered[:, :, 1], ordered[:, :, 0]], 1)


def parts_of_the_tops(x):
    ordered = x.view(x.shape[0], -1, 4, *x.shape[2:]).topk(4, dim=2).values
    return torch.cat(ordered.unbind(2), 1)


def permuted_between(x):
    z = pairs_of(x)
    joined = torch.cat([z.amax(2, keepdim=True), z.amin(2, keepdim=True)], 2)
    return joined.transpose(1, 2).reshape(x.shape).flip(1)


def by_chosen_columns(x):
    order = torch.arange(x.shape[1]).view(-1, 2).T.flatten()
    a, b = x[:, order].chunk(2, 1)
    return torch.cat([torch.max(a, b), torch.min(a, b)], 1)[:, order.argsort()]


def only_the_ends(x):
    z = x.view(x.shape[0], -1, 4, *x.shape[2:])
    return torch.cat([z.max(2)[0], z.min(2)[0]], 1)


def scaled_and_back(x):
    return minimum_first(2 * x) / 2


def smaller_negated(x):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(a, b), -torch.min(a, b)], 1)


def nothing_sorted(x):
    return torch.cat([x[:, 1::2], x[:, ::2].flip(1)], 1)


def parts_in_another_order(x):
    return torch.cat(torch.stack(x.chunk(2, 1)[::-1], 2).split(1, dim=2), 1)


FORMS = [
    *(minimum_first, stacked, all_maxima_first, by_values, by_halves, by_slices, by_strides),
    *(by_unbind, by_relu, by_distances, by_the_rest, by_signs, by_a_negative_sort, both_ends),
    *(parts_of_a_sort, parts_of_the_tops, permuted_between, by_chosen_columns, only_the_ends),
    *(smaller_negated, nothing_sorted, parts_in_another_order),
]


@pytest.mark.parametrize("forward", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("shape", [(8,), (8, 2, 3)], ids=["vector", "image"])
def test_sorted_pairs_do_not_expand_however_they_are_written(forward, shape):
    network = read(lambda self, x: forward(x), *shape)
    agree(network, forward, *shape)
    assert [product(network, p) for p in (1, 2, math.inf)] == pytest.approx([1.0] * 3, abs=1e-9)
    assert network.is_chain


def test_pooled_pairs_do_not_expand():
    def forward(x):
        larger, smaller = F.max_pool1d(x, 2), -F.max_pool1d(-x, 2)
        return torch.cat([larger, smaller], 2)

    network = read(lambda self, x: forward(x), 3, 8)
    agree(network, forward, 3, 8)
    assert product(network) == 1.0


def test_orthogonal_layers_between_sorted_pairs_are_known():
    torch.manual_seed(0)
    activations = [Written(lambda self, x, f=f: f(x)) for f in (minimum_first, by_strides, by_relu)]
    layers = [(orthogonal(nn.Linear(8, 8)), activation) for activation in activations]
    model = nn.Sequential(*[layer for pair in layers for layer in pair]).eval()
    network = as_network(model, (8,))
    for name in ("product", "lipsdp_layer", "lipsdp_neuron"):
        bound = load("lipbench.bounds", name, Bound)()
        assert bound.compute(network, Norm(2), None).value <= 1 + 1e-5


def test_an_exported_network_of_sorted_pairs_is_known():
    torchlip = pytest.importorskip("deel.torchlip")
    torch.manual_seed(0)
    model = torchlip.Sequential(
        torchlip.SpectralLinear(16, 16),
        torchlip.GroupSort2(),
        torchlip.SpectralLinear(16, 16),
        torchlip.GroupSort(4),
        torchlip.SpectralLinear(16, 16),
        torchlip.FullSort(),
        torchlip.SpectralLinear(16, 4),
    )
    exported = model.vanilla_export().eval()
    assert product(as_network(exported, (16,))) <= 1 + 1e-3


def test_layers_between_keep_their_own_constants():
    torch.manual_seed(0)
    first, second, last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(12, 2)

    def forward(self, x):
        a, b = self.first(x), self.second(x)
        return self.last(torch.cat([torch.max(a, b), torch.min(a, b)], 1))

    network = read(forward, 4, first=first, second=second, last=last)
    norms = [
        float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
        for layer in (first, second, last)
    ]
    whole = math.hypot(*norms[:2]) * norms[2]
    assert product(network) == pytest.approx(whole, rel=1e-5)
    x = torch.randn(20, 4, dtype=torch.float64)
    model = Written(forward, first=first, second=second, last=last).double()
    torch.testing.assert_close(network(x), model(x), rtol=1e-12, atol=1e-12)


def twice_the_larger(x):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(a, b), torch.max(b, a)], 1)


def of_other_pairs(x):
    a, b, c, d = x.chunk(4, 1)
    return torch.cat([torch.max(a, b), torch.min(b, c), torch.max(c, d), torch.min(d, a)], 1)


def of_overlapping_groups(x):
    z = x.unfold(1, 3, 1)
    return torch.cat([z.amax(2), z.amin(2)], 1)


def along_other_axes(x):
    z = x.view(x.shape[0], 2, -1)
    return torch.cat([z.max(1)[0], z.view(x.shape[0], -1, 2).min(2)[0]], 1)


def scaled_halves(x):
    a, b = x.chunk(2, 1)
    return torch.cat([2 * torch.max(a, b), 0.5 * torch.min(a, b)], 1)


def sum_beside_the_larger(x):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(a, b), a + b], 1)


def almost_the_rest(x):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(a, b), 0.75 * (a + b) - torch.max(a, b)], 1)


def leaky_differences(x):
    a, b = x.chunk(2, 1)
    return torch.cat([b + F.leaky_relu(a - b, -0.5), a - F.leaky_relu(a - b, -0.5)], 1)


def shifted_differences(x):
    a, b = x.chunk(2, 1)
    return torch.cat([b + F.relu(a - b + 1), a - F.relu(a - b - 1)], 1)


def of_itself(x):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(a, a), torch.min(a, b)], 1)


def of_padded_numbers(x):
    a, b = F.pad(x, (1, 0)), F.pad(x, (0, 1))
    return torch.cat([torch.max(a, b), torch.min(a, b)], 1)


def of_scaled_numbers(x):
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(3 * a, b), torch.min(3 * a, b)], 1)


LOOKALIKES = [
    *(twice_the_larger, of_other_pairs, of_overlapping_groups, along_other_axes, scaled_halves),
    *(sum_beside_the_larger, almost_the_rest, leaky_differences, shifted_differences, of_itself),
    *(of_padded_numbers, of_scaled_numbers),
]


@pytest.mark.parametrize("forward", LOOKALIKES, ids=lambda form: form.__name__)
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_what_looks_like_sorted_pairs_is_read_as_it_is(forward, p):
    network = read(lambda self, x: forward(x), 8)
    agree(network, forward, 8)
    least = expansion(forward, 8, p=float(p))
    assert product(network, p) >= least * (1 - 1e-9)
    if p == 2:
        assert least > 1.01
