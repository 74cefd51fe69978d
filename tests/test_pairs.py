import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.pairs import LEAST_DISTANCE, Pairs, ascend, quotients, squared_quotients

LEAST = LEAST_DISTANCE[torch.float64]
SEEDS = st.integers(0, 2**32)


def network(seed=0, inputs=4, outputs=3, width=8, gain=2.0):
    rng = torch.Generator().manual_seed(seed)
    first = gain * torch.randn(inputs, width, generator=rng, dtype=torch.float64)
    last = torch.randn(width, outputs, generator=rng, dtype=torch.float64)
    return lambda x: (x.flatten(1) @ first).tanh() @ last


def some_pairs(seed=0, count=5, shape=(2, 2), apart=0.3, step=0.05):
    rng = torch.Generator().manual_seed(seed)
    u = torch.rand(count, *shape, generator=rng, dtype=torch.float64)
    v = u + apart * torch.randn(count, *shape, generator=rng, dtype=torch.float64)
    return Pairs(u, v, torch.full((count,), step, dtype=torch.float64))


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
    return Pairs(*(torch.stack(part) for part in zip(*moved, strict=True)))


@pytest.mark.parametrize("accept", [True, False])
@given(seed=SEEDS, step=st.sampled_from([0.01, 0.3, 3.0]))
def test_ascent_is_algorithm_1_pair_by_pair(accept, seed, step):
    function, pairs = network(seed), some_pairs(seed, step=step)
    expected = pairs
    for _ in range(3):
        pairs, _ = ascend(function, pairs, accept=accept)
        expected = naive_ascent(function, expected, accept)
    for part in ("u", "v", "step"):
        found, wanted = getattr(pairs, part), getattr(expected, part)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@given(seed=SEEDS, step=st.floats(1e-3, 100))
def test_with_the_accept_test_no_quotient_falls(seed, step):
    function, pairs = network(seed), some_pairs(seed, step=step)
    before = quotients(function, pairs.u, pairs.v)
    moved, values = ascend(function, pairs, accept=True)
    after = quotients(function, moved.u, moved.v)
    assert (after >= before).all()
    torch.testing.assert_close(values, after)


@given(seed=SEEDS)
def test_a_small_step_raises_each_quotient_by_tau_L_times_the_squared_slope(seed):
    """To first order, as x moves by tau·L·∇L: dL = tau·L·‖∇L‖²."""
    function, tau = network(seed), 1e-6
    pairs = some_pairs(seed, step=tau)
    u, v = pairs.u.requires_grad_(), pairs.v.requires_grad_()
    before = quotients(function, u, v)
    slopes = torch.autograd.grad(before.sum(), (u, v))
    squared = sum(slope.flatten(1).square().sum(dim=1) for slope in slopes)
    moved, reported = ascend(function, Pairs(u.detach(), v.detach(), pairs.step), accept=False)
    rise = quotients(function, moved.u, moved.v) - before.detach()
    expected = tau * before.detach() * squared
    torch.testing.assert_close(rise, expected, rtol=0.02, atol=1e-12)
    torch.testing.assert_close(reported, before.detach())


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 3e-6])
@pytest.mark.parametrize("measure", [quotients, squared_quotients])
def test_gradients_are_those_of_finite_differences_also_close_together(measure, apart):
    """Differences over a hundredth of the distance; in float64 the quotient keeps six digits."""
    function = network()
    pairs = some_pairs(count=3, shape=(4,), apart=apart)
    u = pairs.u.requires_grad_()
    (slope,) = torch.autograd.grad(measure(function, u, pairs.v).sum(), u)
    run = (pairs.u - pairs.v).detach().norm(dim=1).min()
    h = 1e-2 * float(run)
    for axis in range(4):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[axis] = h
        high, low = (measure(function, u.detach() + s, pairs.v) for s in (shift, -shift))
        found = (high - low) / (2 * h)
        scale = float(slope.abs().max())
        torch.testing.assert_close(slope[:, axis], found, rtol=1e-3, atol=2e-3 * scale)


@pytest.mark.parametrize("measure", [quotients, squared_quotients])
def test_at_equal_points_the_quotient_is_0_and_its_gradient_finite(measure):
    """Up to rounding: a matrix product may round equal rows differently."""
    u = some_pairs().u.requires_grad_()
    values = measure(network(), u, u.detach().clone())
    (slope,) = torch.autograd.grad(values.sum(), u)
    assert float(values.detach().max()) < 1e-8
    assert slope.isfinite().all()


def test_a_constant_function_has_quotient_and_gradient_0():
    pairs = some_pairs()
    u = pairs.u.requires_grad_()
    values = quotients(lambda x: 0 * x.flatten(1), u, pairs.v)
    (slope,) = torch.autograd.grad(values.sum(), u)
    assert not values.any()
    assert not slope.any()


def test_pairs_that_are_too_close_are_measured_as_if_apart():
    """The quotient of x ↦ 3x at half the least distance counts as half: never too large."""
    u = torch.zeros(1, 1, dtype=torch.float64)
    found = quotients(lambda x: 3 * x, u, u + LEAST / 2)
    assert float(found) == pytest.approx(1.5)


@given(seed=SEEDS, apart=st.floats(0.1, 10), step=st.floats(1e-3, 1e3))
def test_no_pair_comes_closer_than_the_least_distance(seed, apart, step):
    pairs = some_pairs(seed, apart=apart * LEAST, step=step)
    moved, _ = ascend(network(seed), pairs, accept=False)
    far = (moved.u - moved.v).flatten(1).norm(dim=1) >= LEAST * (1 - 1e-9)
    stayed = (moved.u == pairs.u).flatten(1).all(dim=1) & (moved.v == pairs.v).flatten(1).all(dim=1)
    assert (far | stayed).all()


@given(seed=SEEDS)
def test_a_linear_map_gives_its_slope_along_each_pair(seed):
    matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs = some_pairs(seed, shape=(4,))
    offset = pairs.u - pairs.v
    expected = (offset @ matrix.T).norm(dim=1) / offset.norm(dim=1)
    torch.testing.assert_close(quotients(lambda x: x @ matrix.T, pairs.u, pairs.v), expected)


def test_the_ascent_finds_the_norm_of_a_linear_map_and_never_exceeds_it():
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.1], dtype=torch.float64))
    pairs = some_pairs(shape=(4,), step=0.01)
    for _ in range(200):
        pairs, values = ascend(lambda x: x @ matrix.T, pairs, accept=True)
    assert float(values.max()) == pytest.approx(3, abs=1e-4)
    assert float(values.max()) <= 3 * (1 + 1e-12)


def test_the_box_holds_the_moved_points():
    pairs, _ = ascend(network(), some_pairs(step=100.0), accept=False, box=(0.0, 1.0))
    moved = torch.cat([pairs.u, pairs.v])
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


def test_pairs_do_not_feel_each_other():
    """The ascent follows the gradient of the sum of squares, not of the square of the sum."""
    function, pairs = network(), some_pairs()
    together, _ = ascend(function, pairs, accept=False)
    first = Pairs(pairs.u[:1], pairs.v[:1], pairs.step[:1])
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
def test_a_stack_equals_its_members(accept):
    members, function = [some_pairs(seed) for seed in range(3)], network()

    def once(u, v, step):
        pairs, values = ascend(function, Pairs(u, v, step), accept=accept)
        return pairs.u, pairs.step, values

    columns = [torch.stack([getattr(m, part) for m in members]) for part in ("u", "v", "step")]
    stacked = torch.func.vmap(once)(*columns)
    for number, member in enumerate(members):
        alone = once(member.u, member.v, member.step)
        for one, other in zip(stacked, alone, strict=True):
            torch.testing.assert_close(one[number], other)


def test_a_function_without_an_answer_is_not_taken_for_a_flat_one():
    """A quotient of NaN stays NaN: 0 would be a constant that nobody measured."""
    pairs = some_pairs()
    found = quotients(lambda x: x.flatten(1) * math.nan, pairs.u, pairs.v)
    assert found.isnan().all()
