"""Networks as their authors wrote them, with plain functions in the forward pass."""

import math

import pytest
import torch
from support.written import Written, read
from torch import nn
from torch.nn import functional as F

import lipbench
from lipbench.bound import Bound
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.networks.steps import Convolution, Dense, Scale
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load


def kinds(network):
    return [type(step).__name__ for step in network.steps]


def agree(network, forward, *shape, batch=5):
    x = torch.randn(batch, *shape, dtype=torch.float64)
    torch.testing.assert_close(network(x), forward(x.clone()), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(network(x[:1]), forward(x[:1].clone()), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("forward", "copies"),
    [
        (lambda x: x.permute(0, 3, 2, 1), 1),
        (lambda x: torch.permute(x, (0, 3, 1, 2)).contiguous(), 1),
        (lambda x: x.transpose(1, 2), 1),
        (lambda x: x.swapaxes(-1, -2), 1),
        (lambda x: x.movedim(1, -1), 1),
        (lambda x: x[:, 1], 1),
        (lambda x: x[:, None, :, ::2, -1], 1),
        (lambda x: x[..., 1:], 1),
        (lambda x: x[:, [2, 0, 2]], 2),
        (lambda x: x.unsqueeze(1).squeeze(1), 1),
        (lambda x: x.narrow(2, 1, 2), 1),
        (lambda x: x.select(1, 2), 1),
        (lambda x: x.flip(2), 1),
        (lambda x: torch.roll(x, 1, 2), 1),
        (lambda x: x.repeat(1, 2, 1, 1), 2),
        (lambda x: x.repeat_interleave(3, dim=1), 3),
        (lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1), 2),
        (lambda x: x[:, :1].expand(x.size(0), 4, 4, 6), 4),
        (lambda x: F.pad(x, (1, 2)), 1),
        (lambda x: F.pad(x, (-1, 1, 0, 2)), 1),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 4),
        (lambda x: F.pad(x, (1, 1, 0, 0), mode="replicate"), 2),
        (lambda x: F.pixel_shuffle(x, 2), 1),
        (lambda x: F.interpolate(x, scale_factor=2), 4),
        (lambda x: x.unfold(3, 3, 1), 3),
        (lambda x: x.tril(), 1),
        (lambda x: x.chunk(2, 1)[1], 1),
        (lambda x: x.split([1, 3], dim=1)[0], 1),
        (lambda x: torch.split(x, 2, dim=-1)[2], 1),
        (lambda x: torch.unbind(x, 2)[0], 1),
    ],
)
def test_copies_of_entries_have_a_constant(forward, copies):
    shape = 4, 4, 6
    network = read(lambda self, x: forward(x), *shape)
    agree(network, forward, *shape)
    for p in (1, 2, math.inf):
        product = math.prod(constant(step, Norm(p)) for step in network.steps)
        assert product == pytest.approx(copies ** (1 / p), rel=1e-11)
    blocks = as_neuron_blocks(network)
    x = torch.randn(3, *shape, dtype=torch.float64)
    matrix = blocks.output.matrices[0].values
    torch.testing.assert_close(x.flatten(1) @ matrix.T, forward(x).flatten(1))


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.permute(1, 0, 2, 3),
        lambda x: x.transpose(0, 1),
        lambda x: x.flip(0),
        lambda x: x.roll(1),
        lambda x: x[[1, 0, 2]],
        lambda x: x.flip((0, 1)),
        lambda x: F.pad(x, (1, 1), value=1.0),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: x[x[0, 0, 0, 0].long()],
        lambda x: x.unbind(0)[0].unsqueeze(0).expand(3, 3, 4, 6),
        lambda x: torch.split(x, [1, 2])[1].repeat(2, 1, 1, 1)[:3],
    ],
)
def test_what_mixes_samples_or_adds_entries_is_refused(forward):
    # As many channels as the walk has samples, so that shapes do not tell.
    with pytest.raises(Refused):
        read(lambda self, x: forward(x), 3, 4, 6)


def max_min(x, axis=1):
    a, b = x.split(x.size(axis) // 2, axis)
    return torch.cat([torch.max(a, b), torch.min(a, b)], dim=axis)


def min_max_by_chunks(x):
    a, b = torch.chunk(x, 2, dim=1)
    return torch.cat((torch.minimum(b, a), torch.maximum(a, b)), 1)


def group_sort(x, groups=2, axis=1):
    size = list(x.size())
    size[axis] = -1
    size.insert(axis + 1, x.size(axis) // groups)
    ordered, _ = x.view(*size).sort(dim=axis + 1)
    return ordered.view(*list(x.shape))


def full_sort(x):
    return torch.sort(x, 1, descending=True)[0]


@pytest.mark.parametrize("forward", [max_min, min_max_by_chunks, group_sort, full_sort])
@pytest.mark.parametrize("shape", [(6,), (6, 2, 3)])
def test_sorting_keeps_lengths_however_it_is_written(forward, shape):
    network = read(lambda self, x: forward(x), *shape)
    agree(network, forward, *shape)
    assert kinds(network).count("GroupSort") == 1
    assert math.prod(constant(step, Norm(2)) for step in network.steps) == 1.0
    assert as_network(Written(lambda self, x: forward(x)), shape)


@pytest.mark.parametrize(
    ("forward", "bound"),
    [
        (lambda x: torch.max(x[:, :3], x[:, 3:]), math.sqrt(2)),
        (lambda x: torch.minimum(x[:, :3], x[:, 3:]), math.sqrt(2)),
        (lambda x: x.view(-1, 3, 2).max(1)[0], 1.0),
        (lambda x: x.min(dim=1, keepdim=True).values, 1.0),
        (lambda x: x.view(-1, 2, 3).amax(1), 1.0),
        (lambda x: torch.amin(x.view(x.shape[0], 3, 2), dim=[2], keepdim=True), 1.0),
        (lambda x: x.clamp(min=0), 1.0),
        (lambda x: torch.clamp(x, -0.5, 0.5), 1.0),
    ],
)
def test_extremes_are_read(forward, bound):
    network = read(lambda self, x: forward(x), 6)
    agree(network, forward, 6)
    assert math.prod(constant(step, Norm(2)) for step in network.steps) <= bound * (1 + 1e-12)


def test_a_larger_beside_the_smaller_of_other_values_takes_some_twice():
    def forward(x):
        a, b, c = x.chunk(3, 1)
        return torch.cat([torch.max(a, b), torch.min(a, c)], 1)

    network = read(lambda self, x: forward(x), 6)
    agree(network, forward, 6)
    product = math.prod(constant(step, Norm(2)) for step in network.steps)
    assert product == pytest.approx(math.sqrt(2))

    def halves_of_another_axis(x):
        a, b = x.chunk(2, 2)
        return torch.cat([torch.max(a, b), torch.min(a, b)], 1)

    agree(read(lambda self, x: halves_of_another_axis(x), 2, 4), halves_of_another_axis, 2, 4)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x.sort(0)[0], "samples of a batch"),
        (lambda x: x.sort(1)[1], "places"),
        (lambda x: x.max(1).indices, "places"),
        (lambda x: x.max(), "'max'.*two values"),
        (lambda x: torch.max(x, x.new_zeros(6)), "'new_zeros'"),
        (lambda x: x.clamp(max=1), "'clamp'.*two numbers"),
    ],
)
def test_other_comparisons_are_refused(forward, message):
    with pytest.raises(Refused, match=message):
        read(lambda self, x: forward(x), 6)


class ByHand(nn.Module):
    """Weights, statistics and normalised weights in plain code."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)

        def some(*shape):
            return nn.Parameter(torch.randn(*shape, generator=rng))

        self.kernel, self.first, self.last = some(4, 1, 3, 3), some(5, 16), some(5, 3)
        self.shift = some(4, 1, 1)
        self.register_buffer("mean", torch.tensor([0.5]).view(1, 1, 1, 1))
        self.register_buffer("std", torch.tensor([0.25]).view(1, 1, 1, 1))

    def forward(self, x, scale=2.0, *, hidden=False):
        x = (x - self.mean) / self.std
        x = F.relu(F.conv2d(x, self.kernel, stride=2) * self.shift)
        x = x.reshape(x.size(0), -1)
        if hidden:
            return x
        weight = self.first / self.first.norm(dim=1, keepdim=True)
        for _ in range(2):
            weight = 1.5 * weight - 0.5 * weight @ weight.t() @ weight
        return scale * (F.linear(x, weight).relu() @ self.last + 1.0)


def test_weights_may_be_tensors_and_made_of_tensors():
    model = ByHand()
    network = as_network(model, (1, 5, 5))
    agree(network, model.double(), 1, 5, 5)
    found = [step for step in network.steps if isinstance(step, Dense | Convolution | Scale)]
    assert [type(step) for step in found] == [Scale, Scale, Convolution, Scale, Dense, Dense]
    assert found[2].weight_name == "kernel"
    assert found[3].weight_name == "shift"
    bounds = [load("lipbench.bounds", name, Bound)() for name in ("jacobian", "product")]
    lower, upper = (bound.compute(network, Norm(2), None).value for bound in bounds)
    assert 0 < lower <= upper < math.inf


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.t - x,
        lambda self, x: x + self.t,
        lambda self, x: torch.sub(x, self.t),
        lambda self, x: x * self.t,
        lambda self, x: self.t * x,
        lambda self, x: x / self.t,
        lambda self, x: x / self.t.abs().max(),
        lambda self, x: torch.matmul(x, self.m.t()),
        lambda self, x: F.linear(x, self.m, bias=self.m[:, 0]),
    ],
)
def test_arithmetic_with_tensors_is_affine(forward):
    tensors = {"t": torch.tensor([0.5, -2.0, 3.0]), "m": torch.randn(4, 3)}
    model = Written(forward)
    for name, value in tensors.items():
        model.register_parameter(name, nn.Parameter(value))
    network = as_network(model, (3,))
    agree(network, model.double(), 3)
    assert len(network.steps) == 1


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: self.t / x, "quotient by a value"),
        (lambda self, x: x + torch.add(x, self.t, alpha=2), "one value and one tensor"),
        (lambda self, x: x.unsqueeze(1) * torch.stack([self.t, self.t]), "another shape"),
        (lambda self, x: F.linear(x, torch.outer(x[0], x[0])), "depend on the input|'getitem'"),
        (lambda self, x: x @ x.t(), "depend on the input"),
        (lambda self, x: x * self.t.mul_(1.0), "changes the tensor 't'"),
        (lambda self, x: x * torch.rand_like(self.t), "draws random numbers"),
        (lambda self, x: x if self.t.sum() > 0 else -x, "cannot be traced"),
        (lambda self, x: F.pad(x, self.t), "cannot be traced"),
    ],
)
def test_other_uses_of_tensors_are_refused(forward, message):
    model = Written(forward)
    model.register_parameter("t", nn.Parameter(torch.ones(3)))
    with pytest.raises(Refused, match=message):
        as_network(model, (3,))


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x * (1 + x[x > 1e6].numel()),
        lambda x: x * (1 + len(torch.nonzero(x > 1e6))),
        lambda x: x * (1 + torch.masked_select(x, x > 1e6).size(0)),
        lambda x: x * (1 + x.clamp(0, 1e9).max().item()),
        lambda x: x if x.abs().max() < 1e6 else 2 * x,
        lambda x: x if x.shape[0] < 100 else 2 * x,
        lambda x: x if x.size()[0] != 100 else 2 * x,
        lambda x: x if 3 * x.size(0) + 1 < 300 else 2 * x,
        lambda x: x if len(x) < 100 else 2 * x,
        lambda x: x if x.shape[0] // 100 == 0 else 2 * x,
        lambda x: x if x.numel() < 300 else 2 * x,
    ],
)
def test_sizes_that_depend_on_values_are_no_numbers(forward):
    """None of them differs from x at any input that a comparison would try."""
    with pytest.raises(Refused, match="cannot be traced"):
        read(lambda self, x: forward(x), 3)


def test_tensors_may_be_made_where_the_input_is():
    def forward(self, x):
        return x + torch.ones(3, device=x.device, dtype=x.dtype)

    agree(read(forward, 3), lambda x: x + 1, 3)


def test_what_the_output_does_not_take_needs_no_rule():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Softmin(1)

        def forward(self, x):
            x = F.relu(self.body(x))
            self.other(x)
            torch.exp(x)
            return self.head(x)

    network = as_network(Heads(), (3,))
    assert kinds(network) == ["Dense", "Slope", "Dense"]


def test_an_unused_call_that_changes_a_value_in_place_is_noticed():
    def forward(self, x):
        y = x * 2.0
        y[:, 0].mul_(3.0)
        return y

    with pytest.raises(Refused, match="after it changed in place"):
        read(forward, 3)


def test_copies_stand_for_what_they_copy_in_a_bracket():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), lipbench.MaxMin(), nn.Linear(8, 2))

    def forward(self, x):
        x = self.first(x).view(x.shape[0], 4, 2)
        larger, smaller = x.max(2)[0], x.min(2)[0]
        return self.last(torch.stack((larger, smaller), 2).flatten(1))

    def by_halves(self, x):
        order = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2)])
        x = max_min(self.first(x)[:, order])
        return self.last(x[:, order.argsort()])

    layers = {"first": plain[0], "last": plain[2]}
    models = [plain, Written(by_halves, **layers), Written(forward, **layers)]
    bound = load("lipbench.bounds", "lipsdp_neuron", Bound)()
    one, *others = (bound.compute(as_network(model, (4,)), Norm(2), None).value for model in models)
    assert others == pytest.approx([one, one], rel=1e-3)
