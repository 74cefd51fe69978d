"""Where lower bounds begin to search when there are no data."""

import pytest
import torch
from torch import nn

from lipbench.bound import Bound
from lipbench.lipschitz.lower_bounds.unsaturated_points import of_several_sizes, unsaturated
from lipbench.lipschitz.lower_bounds.witness import points_of, starting_points
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load


def rng():
    return torch.Generator().manual_seed(0)


def saturated(inputs, weight, bias, hidden=5):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.Sigmoid(), nn.Linear(hidden, 2)).double()
    with torch.no_grad():
        net[0].weight.mul_(weight)
        net[0].bias.fill_(bias)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(("inputs", "weight", "bias"), [(1, 1.0, 50.0), (3, 1e4, 3e3), (8, 1, 99)])
def test_one_neuron_of_each_point_reads_about_0(inputs, weight, bias):
    net = saturated(inputs, weight, bias)
    points = torch.randn(40, inputs, generator=rng(), dtype=torch.float64)
    moved = unsaturated(as_network(net, (inputs,)), points, rng())
    nearest = net[0](moved).abs().amin(dim=1)
    assert nearest.max() < 0.5
    assert net[0](points).abs().amin(dim=1).median() > 1


def test_neurons_of_later_layers_read_about_0_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh()).double()
    points = torch.randn(60, 4, generator=rng(), dtype=torch.float64)
    moved = unsaturated(as_network(net, (4,)), points, rng())
    reads = [net[0](moved), net[:3](moved)]
    assert (reads[0][::2].abs().amin(dim=1) < 0.5).all()
    assert (reads[1][1::2].abs().amin(dim=1) < 0.5).all()


def test_where_nothing_moves_a_point_it_stays():
    net = saturated(2, 0.0, 1.0)
    points = torch.randn(8, 2, generator=rng(), dtype=torch.float64)
    assert torch.equal(unsaturated(as_network(net, (2,)), points, rng()), points)
    linear = as_network(nn.Linear(2, 2), (2,))
    assert torch.equal(unsaturated(linear, points, rng()), points)


@pytest.mark.parametrize(
    ("domain", "data"),
    [(None, torch.rand(30, 3)), ((0.0, 0.5), torch.rand(30, 3)), ((-1.0, 2.0), None)],
)
def test_data_and_samples_of_a_box_are_begun_with_as_they_are(domain, data):
    network = as_network(saturated(3, 1e4, 3e3), (3,))
    points = starting_points(network, domain, data, 9, rng())
    assert torch.equal(points, points_of((3,), domain, data, 9, rng()))


def test_half_of_the_samples_of_all_of_space_stay():
    network = as_network(saturated(3, 1e4, 3e3), (3,))
    points, normal = (
        starting_points(network, None, None, 64, rng()),
        points_of((3,), None, None, 64, rng()),
    )
    same = (points == normal).all(dim=1)
    assert same[::2].all()
    assert not same[1::2].any()


@pytest.mark.parametrize(
    "net", [nn.Sequential(nn.Flatten()), nn.Sequential(nn.Tanh()), saturated(2, 0.0, 1.0)]
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_network_has_as_many_starts_as_were_asked_for(net, count):
    points = starting_points(as_network(net, (2,)), None, None, count, rng())
    assert points.shape == (count, 2)
    assert points.isfinite().all()
    assert not points.requires_grad


def test_sizes_spread_over_orders_of_magnitude():
    points = of_several_sizes(torch.zeros(400, 6, dtype=torch.float64), rng())
    sizes = points.abs().amax(dim=1)
    assert sizes.min() < 0.3
    assert sizes.max() > 30


@pytest.mark.parametrize(
    ("inputs", "weight", "bias"), [(1, 1.0, 50.0), (1, 1e4, 3e3), (1, 1e-4, -3.0), (2, 1e4, 3e3)]
)
def test_steep_places_are_found_wherever_they_are(inputs, weight, bias):
    net = nn.Sequential(nn.Linear(inputs, 1), nn.Sigmoid()).double().eval().requires_grad_(False)
    net[0].weight.fill_(weight)
    net[0].bias.fill_(bias)
    network, constant = as_network(net, (inputs,)), weight * inputs**0.5 / 4
    sampled, climbed = (
        load("lipbench.bounds", f"jacobian{end}", Bound)() for end in ("", "_ascent")
    )
    for bound in (sampled, climbed):
        assert 0.99 * constant <= bound.compute(network, Norm(2), None).value <= constant
    # Pairs that climb keep a distance from each other, in which the steepest place may vanish.
    pairs = load("lipbench.bounds", "pair_ascent", Bound)()
    assert pairs.compute(network, Norm(2), None).value > 0.5 * constant


@pytest.mark.parametrize(
    ("name", "activation", "seed"),
    [
        ("jacobian", nn.Tanh, 0),
        ("jacobian", nn.Tanh, 1),
        ("jacobian", nn.ReLU, 1),
        ("jacobian", nn.GELU, 1),
    ],
)
def test_all_of_space_is_searched_no_worse_than_boxes(name, activation, seed):
    torch.manual_seed(seed)
    widths = [nn.Linear(8, 40), activation(), nn.Linear(40, 40), activation(), nn.Linear(40, 3)]
    network = as_network(nn.Sequential(*widths).eval(), (8,))
    bound = load("lipbench.bounds", name, Bound)()
    whole = bound.compute(network, Norm(2), None).value
    boxes = [bound.compute(network, Norm(2), (-size, size)).value for size in (1.0, 5.0, 50.0)]
    assert whole >= max(boxes)
