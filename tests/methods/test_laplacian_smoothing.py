import math

import pytest
import torch
from support.objectives import (
    SETTINGS,
    a_batch,
    a_dense_net,
    assert_is,
    is_standard,
    setting,
    step,
    trained,
)
from support.training import a_method, digits
from torch import nn

from lipbench.method_families.neighbour_graph import nearest
from lipbench.seeds import stream

NAME = "laplacian_smoothing"
DATA = digits(dtype=torch.float64)


def graph(count):
    rng = torch.Generator().manual_seed(3)
    rows = torch.randint(128, (128, count), generator=rng)
    return {
        "buffers": {},
        "neighbours": rows,
        "multipliers": torch.rand(128, count, generator=rng, dtype=torch.float64),
    }


def excess(net, own, other, bound):
    x, y = DATA.train.inputs[own], DATA.train.inputs[other]
    rise = (net(x[None]) - net(y[None])).square().sum()
    return rise - bound**2 * (x - y).square().sum()


@pytest.mark.parametrize("kind", SETTINGS)
def test_value_and_multipliers_are_those_of_the_formula_edge_by_edge(kind):
    net, batch = setting(kind)
    size, state = len(batch.inputs), graph(2)
    edges = [(i, k, int(state["neighbours"][i, k])) for i in range(size) for k in range(2)]
    bound = 0.05
    found = step(a_method(NAME, bound=bound, step=0.7, neighbours=2), net, batch, state)

    def expected(now):
        terms = [state["multipliers"][i, k] * excess(now, i, j, bound) for i, k, j in edges]
        return torch.stack(terms).sum() / size

    assert_is(found, expected, net, rtol=1e-8, atol=1e-10)
    risen = state["multipliers"].clone()
    for i, k, j in edges:
        risen[i, k] = (risen[i, k] + 0.7 * excess(net, i, j, bound)).clamp(min=0)
    torch.testing.assert_close(found[2]["multipliers"], risen)
    assert torch.equal(found[2]["neighbours"], state["neighbours"])


def test_multipliers_of_edges_with_room_fall_to_0_and_the_others_rise():
    net, batch, state = a_dense_net(), a_batch(), graph(3)
    for bound, steepens in ((100.0, False), (1e-3, True)):
        method = a_method(NAME, bound=bound, step=1.0, neighbours=3)
        after = step(method, net, batch, state)[2]["multipliers"][:20]
        before = state["multipliers"][:20]
        assert bool((after > before).all() if steepens else (after == 0).all())


def test_a_sample_has_edges_to_its_nearest_others():
    net, rng = a_dense_net(), stream(0, "method")
    state = a_method(NAME).start(net, DATA, rng)
    assert torch.equal(state["neighbours"], nearest(DATA.train.inputs, 4))
    assert not state["multipliers"].any()
    some = a_method(NAME, among=30).start(net, DATA, rng)["neighbours"]
    assert some.shape == (128, 4)
    assert 20 <= len(some.unique()) <= 30
    drawn = a_method(NAME, graph="random").start(net, DATA, rng)["neighbours"]
    assert len(drawn.unique()) > 100
    assert not (drawn == torch.arange(128).unsqueeze(1)).any()


def test_multipliers_that_stay_at_0_are_standard_training_bit_for_bit():
    assert is_standard(NAME, step=0.0)


def test_a_smaller_bound_leaves_smaller_quotients_on_the_edges():
    nets = trained(NAME, "bound", (20.0, 1.0, 0.1), epochs=11, step=0.05)
    rows = nearest(DATA.train.inputs, 4)
    ends = DATA.train.inputs, DATA.train.inputs[rows[:, 0]]
    sizes = [float((net(ends[0]) - net(ends[1])).norm()) for net in nets]
    assert sizes[0] > 1.2 * sizes[1] > 1.2**2 * sizes[2]


def test_it_claims_nothing():
    assert a_method(NAME).claims(a_dense_net()) is None


def test_too_few_samples_are_refused():
    assert a_method(NAME, neighbours=127).refuses(nn.Identity(), DATA) is None
    reason = a_method(NAME, neighbours=128).refuses(nn.Identity(), DATA)
    assert reason == "each of 128 samples has fewer than 128 others"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bound": 0.0}, r"bound must be positive and finite, got 0\.0"),
        ({"bound": math.inf}, "bound must be positive and finite, got inf"),
        ({"step": -1.0}, r"step must be at least 0 and finite, got -1\.0"),
        ({"neighbours": 0}, "neighbours must be at least 1, got 0"),
        ({"among": 4}, "among must be more than neighbours = 4, got 4"),
    ],
)
def test_a_number_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        a_method(NAME, **fields)
