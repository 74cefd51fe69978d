import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import a_net
from torch import nn
from torch.nn.utils import skip_init

from lipbench.lipschitz.lower_bounds.pairs import (
    LEAST_DISTANCE,
    Pairs,
    ascend,
    climb,
    quotients,
    squared_quotients,
)
from lipbench.networks.net import Net
from lipbench.networks.stem import Stem

LEAST = LEAST_DISTANCE[torch.float64]
SEEDS = st.integers(0, 2**32)


def network(seed=0, inputs=12, outputs=3, width=5, gain=2.0):
    # With six pairs of it, its first layer is narrow enough for the short way.
    rng = torch.Generator().manual_seed(seed)
    first = gain * torch.randn(width, inputs, generator=rng, dtype=torch.float64)
    last = torch.randn(width, outputs, generator=rng, dtype=torch.float64)
    return Stem(weight=first, rest=lambda product: product.tanh() @ last)


def plain(stem):
    # The same function, of which nothing is known.
    return lambda x: stem(x)


FIELDS = ("total", "difference", "step")
FORMS = {"plain": plain, "stem": lambda stem: stem}


def some_pairs(seed=0, count=6, shape=(3, 4), apart=0.3, step=0.05):
    rng = torch.Generator().manual_seed(seed)
    u = torch.rand(count, *shape, generator=rng, dtype=torch.float64)
    v = u + apart * torch.randn(count, *shape, generator=rng, dtype=torch.float64)
    return Pairs.of(u, v, torch.full((count,), step, dtype=torch.float64))


def fields(pairs):
    return {"u": pairs.u, "v": pairs.v, "step": pairs.step}


def quotient(function, u, v):
    rise = torch.linalg.vector_norm(function(u[None])[0] - function(v[None])[0])
    return rise / torch.linalg.vector_norm((u - v).flatten())


def naive_ascent(function, pairs, accept, factor=1.3):
    # Algorithm 1, pair by pair; `accept` adds the test of the authors' code.
    moved = []
    for u, v, step in zip(pairs.u, pairs.v, pairs.step, strict=True):
        u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
        before = quotient(function, u, v)
        towards_u, towards_v = torch.autograd.grad(before, (u, v))
        with torch.no_grad():
            new_u = u + step * before * towards_u
            new_v = v + step * before * towards_v
            if accept and quotient(function, new_u, new_v) <= before:
                moved.append((u.detach(), v.detach(), step / factor))
            else:
                moved.append((new_u, new_v, step * factor if accept else step))
    return Pairs.of(*(torch.stack(column) for column in zip(*moved, strict=True)))


def assert_close(pairs, expected, **tolerance):
    for actual, wanted in zip(fields(pairs).values(), fields(expected).values(), strict=True):
        torch.testing.assert_close(actual, wanted, **tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("accept", [True, False])
@given(seed=SEEDS, step=st.sampled_from([0.01, 0.3, 3.0]))
def test_ascent_is_algorithm_1_pair_by_pair(form, accept, seed, step):
    function, pairs = FORMS[form](network(seed)), some_pairs(seed, step=step)
    expected = pairs
    for _ in range(3):
        pairs, _ = ascend(function, pairs, accept=accept)
        expected = naive_ascent(function, expected, accept)
    assert_close(pairs, expected, rtol=1e-7, atol=1e-9)


ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def a_dense_net(seed, widths, activation, shape=(3, 4), outputs=4, gain=3.0, dtype=torch.float64):
    # Flatten and dense layers; gain 1 is torch's own start for the weights.
    layers, sizes = [nn.Flatten()], (math.prod(shape), *widths, outputs)
    for number, (inside, outside) in enumerate(pairwise(sizes)):
        layers += [ACTIVATIONS[activation]()] if number else []
        layers.append(skip_init(nn.Linear, inside, outside, dtype=dtype))
    module, rng = nn.Sequential(*layers), torch.Generator().manual_seed(seed)
    for value in module.parameters():
        limit = gain / math.sqrt(value.shape[-1])
        nn.init.uniform_(value, -limit, limit, generator=rng)
    return a_net(module, shape)


@pytest.mark.parametrize("accept", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(), (5,), (5, 6)])
@settings(max_examples=5)
@given(seed=SEEDS, step=st.sampled_from([0.01, 0.1, 1.0]))
def test_behind_a_dense_layer_the_ascent_is_that_of_u_and_v(widths, activation, accept, seed, step):
    """To 1e-10 after each of four steps, from where the last one led, with its step sizes."""
    net, pairs = a_dense_net(seed, widths, activation).frozen, some_pairs(seed, step=step)
    for _ in range(4):
        expected = naive_ascent(net, pairs, accept)
        pairs, _ = ascend(net.stem, pairs, accept=accept)
        assert_close(pairs, expected, rtol=1e-10, atol=1e-12)


def test_behind_a_dense_layer_refused_pairs_keep_their_bits():
    """Six pairs, ten steps: some moves are accepted, some refused."""
    net, pairs = a_dense_net(3, (5,), "tanh").frozen, some_pairs(step=1.0)
    refusals = 0
    for _ in range(10):
        moved, _ = ascend(net.stem, pairs, accept=True)
        refused = moved.step < pairs.step
        assert torch.equal(moved.total[refused], pairs.total[refused])
        assert torch.equal(moved.difference[refused], pairs.difference[refused])
        assert (moved.difference != pairs.difference).flatten(1).any(dim=1)[~refused].all()
        refusals += int(refused.sum())
        pairs = moved
    assert 10 <= refusals <= 50


@dataclass(frozen=True, kw_only=True, eq=False)
class WatchedStem(Stem):
    seen: list = field(default_factory=list)

    def first(self, inputs):
        self.seen.append(len(inputs))
        return super().first(inputs)


@pytest.mark.parametrize(("count", "expected"), [(6, [6, 6]), (3, [6, 6])])
def test_the_accept_test_needs_no_product_with_the_inputs(count, expected):
    """Six pairs pass once, as sums and differences; three are too few to pay, and pass twice."""
    stem = network()
    watched = WatchedStem(weight=stem.weight, rest=stem.rest)
    ascend(watched, some_pairs(count=count), accept=True)
    assert watched.seen == expected


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_float32_the_quotient_is_known_to_one_part_in_100000(activation):
    """784-64-64-10, 64 pairs, 30 steps that grow and shrink; measured afresh in float64."""
    net = a_dense_net(0, (64, 64), activation, (28, 28), 10, gain=2.0, dtype=torch.float32)
    rng = torch.Generator().manual_seed(1)
    u = torch.rand(64, 28, 28, generator=rng)
    v = u + 0.1 * torch.rand(64, 28, 28, generator=rng)
    pairs = Pairs.of(u, v, torch.full((64,), 30.0))
    refused = torch.zeros(64, dtype=torch.bool)
    for _ in range(30):
        moved, values = ascend(net.frozen.stem, pairs, accept=True)
        pairs, refused = moved, refused | (moved.step < pairs.step)
    assert refused.any()
    exact = net.with_params({name: value.double() for name, value in net.params.items()})
    double = Pairs(pairs.total.double(), pairs.difference.double(), pairs.step.double())
    error = (values.double() / quotients(exact, double) - 1).abs()
    assert float(error.max()) <= 1e-5


@pytest.mark.parametrize("accept", [True, False])
def test_a_distance_that_cancels_is_not_believed(accept):
    """An isotropic map has slope 0, in two terms; a long step blows up both and their rounding."""
    stem = Stem(weight=3 * torch.eye(12)[:5], rest=lambda product: product)
    rng = torch.Generator().manual_seed(0)
    u, v = torch.zeros(2, 40, 12).index_copy(
        2, torch.arange(5), torch.rand(2, 40, 5, generator=rng)
    )
    pairs = Pairs.of(u, v, torch.full((40,), 1e5))
    moved, values = ascend(stem, pairs, accept=accept)
    torch.testing.assert_close(values, torch.full((40,), 3.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(moved.u, pairs.u)


@pytest.mark.parametrize("form", FORMS)
@given(seed=SEEDS, step=st.floats(1e-3, 100))
def test_with_the_accept_test_no_quotient_falls(form, seed, step):
    """Up to the rounding of a quotient that is computed in another order."""
    function, pairs = FORMS[form](network(seed)), some_pairs(seed, step=step)
    before = quotients(function, pairs)
    moved, values = ascend(function, pairs, accept=True)
    after = quotients(function, moved)
    assert (after >= before * (1 - 1e-12)).all()
    torch.testing.assert_close(values, after)


@given(seed=SEEDS)
def test_a_small_step_raises_each_quotient_by_tau_L_times_the_squared_slope(seed):
    """To first order, as x moves by tau·L·∇L: dL = tau·L·‖∇L‖²."""
    function, tau = plain(network(seed)), 1e-6
    pairs = some_pairs(seed, step=tau)
    u, v = pairs.u.requires_grad_(), pairs.v.requires_grad_()
    before = quotients(function, Pairs.of(u, v, pairs.step))
    slopes = torch.autograd.grad(before.sum(), (u, v))
    squared = sum(slope.flatten(1).square().sum(dim=1) for slope in slopes)
    moved, reported = ascend(function, pairs, accept=False)
    rise = quotients(function, moved) - before.detach()
    expected = tau * before.detach() * squared
    torch.testing.assert_close(rise, expected, rtol=0.02, atol=1e-12)
    torch.testing.assert_close(reported, before.detach())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 3e-6])
@pytest.mark.parametrize("measure", [quotients, squared_quotients])
def test_gradients_are_those_of_finite_differences_also_close_together(measure, apart, form):
    """Differences over a hundredth of the distance; in float64 the quotient keeps six digits."""
    function = FORMS[form](network(inputs=4))
    pairs = some_pairs(count=3, shape=(4,), apart=apart)
    u, v = pairs.u.requires_grad_(), pairs.v
    (slope,) = torch.autograd.grad(measure(function, Pairs.of(u, v, pairs.step)).sum(), u)
    h = 1e-2 * float(pairs.run.sqrt().min())
    for axis in range(4):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[axis] = h
        moved = [Pairs.of(u.detach() + s, v, pairs.step) for s in (shift, -shift)]
        high, low = (measure(function, each) for each in moved)
        numeric = (high - low) / (2 * h)
        scale = float(slope.abs().max())
        torch.testing.assert_close(slope[:, axis], numeric, rtol=1e-3, atol=2e-3 * scale)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("measure", [quotients, squared_quotients])
def test_at_equal_points_the_quotient_is_0_and_its_gradient_finite(measure, form):
    """Up to rounding: a matrix product may round equal rows differently."""
    pairs = some_pairs()
    u = pairs.u.requires_grad_()
    values = measure(FORMS[form](network()), Pairs.of(u, u.detach().clone(), pairs.step))
    (slope,) = torch.autograd.grad(values.sum(), u)
    assert float(values.detach().max()) < 1e-8
    assert slope.isfinite().all()


def test_a_constant_function_has_quotient_and_gradient_0():
    pairs = some_pairs()
    u = pairs.u.requires_grad_()
    values = quotients(lambda x: 0 * x.flatten(1), Pairs.of(u, pairs.v, pairs.step))
    (slope,) = torch.autograd.grad(values.sum(), u)
    assert not values.any()
    assert not slope.any()


def test_pairs_that_are_too_close_are_measured_as_if_apart():
    """The quotient of x ↦ 3x at half the least distance counts as half: never too large."""
    u = torch.zeros(1, 1, dtype=torch.float64)
    values = quotients(lambda x: 3 * x, Pairs.of(u, u + LEAST / 2, torch.ones(1).double()))
    assert float(values) == pytest.approx(1.5)


@pytest.mark.parametrize("form", FORMS)
@given(seed=SEEDS, apart=st.floats(0.1, 10), step=st.floats(1e-3, 1e3))
def test_no_pair_comes_closer_than_the_least_distance(form, seed, apart, step):
    pairs = some_pairs(seed, apart=apart * LEAST, step=step)
    moved, _ = ascend(FORMS[form](network(seed)), pairs, accept=False)
    far = (moved.u - moved.v).flatten(1).norm(dim=1) >= LEAST * (1 - 1e-9)
    stayed = (moved.u == pairs.u).flatten(1).all(dim=1) & (moved.v == pairs.v).flatten(1).all(dim=1)
    assert (far | stayed).all()


@given(seed=SEEDS)
def test_a_linear_map_gives_its_slope_along_each_pair(seed):
    matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs = some_pairs(seed, shape=(4,))
    offset = pairs.u - pairs.v
    expected = (offset @ matrix.T).norm(dim=1) / offset.norm(dim=1)
    torch.testing.assert_close(quotients(lambda x: x @ matrix.T, pairs), expected)


def test_the_ascent_finds_the_norm_of_a_linear_map_and_never_exceeds_it():
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.1], dtype=torch.float64))
    pairs = some_pairs(shape=(4,), step=0.01)
    for _ in range(200):
        pairs, values = ascend(lambda x: x @ matrix.T, pairs, accept=True)
    assert float(values.max()) == pytest.approx(3, abs=1e-4)
    assert float(values.max()) <= 3 * (1 + 1e-12)


def test_the_box_holds_the_moved_points():
    free = some_pairs(step=100.0)
    held = Pairs.of(free.u.clamp(0, 1), free.v.clamp(0, 1), free.step, (0.0, 1.0))
    pairs, _ = ascend(network(), held, accept=False)
    moved = torch.cat([pairs.u, pairs.v])
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


@pytest.mark.parametrize("accept", [True, False])
@settings(max_examples=30)
@given(seed=SEEDS, apart=st.floats(0.01, 0.5))
def test_behind_a_dense_layer_pairs_that_are_too_close_move_as_in_the_plain_form(
    accept, seed, apart
):
    """At a distance that counts as the least one, only the images push them apart."""
    stem, pairs = network(seed), some_pairs(seed, apart=apart * LEAST, step=0.3)
    moved, values = ascend(stem, pairs, accept=accept)
    expected, wanted = ascend(plain(stem), pairs, accept=accept)
    torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(moved.step, expected.step)
    # The images keep seven digits of such a distance, and their slope moves the pair far away.
    size = float(expected.difference.abs().max())
    torch.testing.assert_close(moved.difference, expected.difference, rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("form", FORMS)
def test_pairs_do_not_feel_each_other(form):
    """The ascent follows the gradient of the sum of squares, not of the square of the sum."""
    function, pairs = FORMS[form](network()), some_pairs()
    together, _ = ascend(function, pairs, accept=False)
    first = Pairs(pairs.total[:1], pairs.difference[:1], pairs.step[:1])
    alone, _ = ascend(function, first, accept=False)
    torch.testing.assert_close(together.u[:1], alone.u, rtol=1e-12, atol=1e-14)


@given(st.permutations(list(range(6))), st.integers(1, 6))
def test_top_takes_the_pairs_with_the_largest_values(order, count):
    pairs, values = some_pairs(count=6), torch.tensor(order, dtype=torch.float64)
    chosen = sorted(range(6), key=lambda row: -order[row])[:count]
    top = pairs.top(values, count)
    assert torch.equal(top.u, pairs.u[chosen])
    assert torch.equal(top.v, pairs.v[chosen])


@pytest.mark.parametrize("accept", [True, False])
@pytest.mark.parametrize("form", ["plain", "stem"])
def test_a_stack_equals_its_members(form, accept):
    """Three networks with their pairs, inside the gradient of the weights as in training."""
    members = [(a_dense_net(seed, (5, 6), "sigmoid"), some_pairs(seed)) for seed in range(3)]
    skeleton = members[0][0].skeleton

    def once(params, total, difference, step):
        def objective(params):
            frozen = Net(skeleton, params).frozen
            function = frozen.stem if form == "stem" else frozen
            pairs, values = ascend(function, Pairs(total, difference, step), accept=accept)
            return quotients(Net(skeleton, params), pairs).sum(), (*fields(pairs).values(), values)

        return torch.func.grad(objective, has_aux=True)(params)

    alone = [once(net.params, p.total, p.difference, p.step) for net, p in members]
    weights = {
        name: torch.stack([n.params[name] for n, _ in members]) for name in members[0][0].params
    }
    columns = [torch.stack([getattr(p, field) for _, p in members]) for field in FIELDS]
    slopes, stacked = torch.func.vmap(once)(weights, *columns)
    for number, (wanted_slopes, wanted_rows) in enumerate(alone):
        for actual, wanted in zip(stacked, wanted_rows, strict=True):
            torch.testing.assert_close(actual[number], wanted, rtol=1e-10, atol=1e-12)
        for name, slope in wanted_slopes.items():
            torch.testing.assert_close(slopes[name][number], slope, rtol=1e-9, atol=1e-11)


def test_a_function_without_an_answer_is_not_taken_for_a_flat_one():
    """A quotient of NaN stays NaN: 0 would be a constant that nobody measured."""
    pairs = some_pairs()
    values = quotients(lambda x: x.flatten(1) * math.nan, pairs)
    assert values.isnan().all()


def test_behind_a_dense_layer_a_pair_without_an_answer_stays():
    """Its neighbours move."""
    stem, pairs = network(), some_pairs()
    pairs.total[2] = math.inf
    moved, _ = ascend(stem, pairs, accept=True)
    assert torch.equal(moved.total[2], pairs.total[2])
    assert torch.equal(moved.difference[2], pairs.difference[2])
    moving = [0, 1, 3, 4, 5]
    rest = Pairs(pairs.total[moving], pairs.difference[moving], pairs.step[moving])
    expected, _ = ascend(plain(stem), rest, accept=True)
    torch.testing.assert_close(moved.total[moving], expected.total)


def test_climbing_in_sum_and_difference_is_climbing_in_u_and_v():
    """Half a step along each end's own gradient of L²."""
    function, pairs = plain(network()), some_pairs()
    u, v = pairs.u.requires_grad_(), pairs.v.requires_grad_()
    slopes = torch.autograd.grad(
        squared_quotients(function, Pairs.of(u, v, pairs.step)).sum(), (u, v)
    )
    moved = climb(pairs, (slopes[0] + slopes[1]) / 2, (slopes[0] - slopes[1]) / 2)
    for end, start, slope in zip((moved.u, moved.v), (u, v), slopes, strict=True):
        torch.testing.assert_close(end, start.detach() + 0.05 / 2 * slope)


@pytest.mark.parametrize("box", [(0.0, 1.0), (-0.1, 0.7), (0.1, 0.3)])
@given(seed=SEEDS)
def test_ends_are_in_the_box_to_the_last_bit(box, seed):
    rng = torch.Generator().manual_seed(seed)
    ends = torch.rand(2, 50, 3, generator=rng).clamp(*box)
    pairs = Pairs.of(*ends, torch.ones(50), box)
    assert box[0] <= float(torch.minimum(pairs.u, pairs.v).min())
    assert float(torch.maximum(pairs.u, pairs.v).max()) <= torch.tensor(box[1])
    torch.testing.assert_close(torch.stack([pairs.u, pairs.v]), ends)


def test_no_pair_climbs_to_where_the_quotient_overflows():
    """There it is the largest of all, and says nothing."""
    pairs = some_pairs(apart=0.02)
    for _ in range(30):
        pairs, values = ascend(
            lambda x: torch.where(x.flatten(1) > 1.1, torch.inf, x.flatten(1).square()),
            pairs,
            accept=True,
        )
    assert bool(values.isfinite().all())
