"""Rows that move, against a loop over them; and what a written-down step may overwrite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recordings import always
from support.training import a_trainer, an_entry, digits, same
from torch.func import grad_and_value, vmap

from lipbench.lipschitz.lower_bounds.pairs import Pairs, ascend
from lipbench.lipschitz.lower_bounds.row_updates import updated_rows
from lipbench.networks.stem import Stem
from lipbench.training.operation_list import Traced

LARGE = "lipbench.lipschitz.lower_bounds.row_updates._LARGE"


def one_by_one(values, moves, along, directions, scale=None):
    rows = []
    for number, value in enumerate(values):
        if moves[number]:
            step = sum(c * row for c, row in zip(along[number], directions, strict=True))
            factor = 1.0 if scale is None else scale[number]
            rows.append(factor * value + step.view_as(value))
        else:
            rows.append(value)
    return torch.stack(rows)


def drawn(seed, networks=3, rows=5, shape=(2, 3), width=4, share=0.5):
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.Size(shape).numel()

    def some(*size):
        return torch.randn(networks, *size, generator=rng, dtype=torch.float64)

    moves = torch.rand(networks, rows, generator=rng) < share
    return some(rows, *shape), moves, some(rows, width), some(width, inputs), some(rows)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("large", [0, 10**9])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_rows_move_as_one_by_one(seed, share, large, scaled):
    values = drawn(seed, share=share)[: None if scaled else 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LARGE, large)
        batched = vmap(updated_rows)(*values)
        alone = [updated_rows(*(value[n] for value in values)) for n in range(3)]
    for n, single in enumerate(alone):
        expected = one_by_one(*(value[n] for value in values))
        torch.testing.assert_close(batched[n], expected, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(single, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("axes", [(1, 0, 2, 0, None), (0, None, 0, None, 0)])
def test_networks_may_lie_along_any_axis_or_share_a_part(axes, monkeypatch):
    monkeypatch.setattr(LARGE, 0)
    values = drawn(1)
    given = [v[0] if a is None else v.movedim(0, a) for v, a in zip(values, axes, strict=True)]
    batched = vmap(updated_rows, in_dims=axes)(*given)
    for n in range(3):
        arguments = [v[0] if a is None else v[n] for v, a in zip(values, axes, strict=True)]
        torch.testing.assert_close(batched[n], one_by_one(*arguments))


@pytest.mark.parametrize("large", [0, 10**9])
def test_values_may_lie_in_any_order_in_memory(large, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    values, *rest = drawn(6)
    turned = values.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not turned.is_contiguous()
    torch.testing.assert_close(vmap(updated_rows)(turned, *rest), vmap(updated_rows)(values, *rest))


@pytest.mark.parametrize("large", [0, 10**9])
def test_rows_that_stay_keep_their_bits_beside_rows_that_are_not_numbers(large, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    values, moves, along, directions, scale = (v[0] for v in drawn(2))
    along = along.masked_fill(~moves.unsqueeze(1), float("nan"))
    scale = scale.masked_fill(~moves, float("inf"))
    before = values.clone()
    after = updated_rows(values, moves, along, directions, scale)
    assert torch.equal(after[~moves], values[~moves])
    assert torch.equal(values, before)


def keeps(values, moves, along, directions, scale):
    return updated_rows(values.detach() * 2.0, moves, along, directions, scale)


def consumes(values, moves, along, directions, scale):
    shadow = values.flatten(1).sum()
    return updated_rows(values, moves, along, directions, scale), shadow


def reads_a_view(values, moves, along, directions, scale):
    view = values.flatten(1)
    return updated_rows(values, moves, along, directions, scale), view.sum()


def hands_it_on(values, moves, along, directions, scale):
    return updated_rows(values, moves, along, directions, scale), values


def moves_twice(values, moves, along, directions, scale):
    first = updated_rows(values, moves, along, directions, scale)
    return first, updated_rows(values, moves, along, directions)


@pytest.mark.parametrize(
    ("function", "overwritten"),
    [(keeps, 0), (consumes, 1), (reads_a_view, 0), (hands_it_on, 0), (moves_twice, 1)],
)
def test_a_program_overwrites_what_nobody_reads_afterwards(function, overwritten, monkeypatch):
    monkeypatch.setattr(LARGE, 0)
    arguments = drawn(3)
    mapped = vmap(function)
    expected = mapped(*arguments)
    given = tuple(value.clone() for value in arguments)
    program = Traced(mapped, given)
    results = program(*given)
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual, wanted)
    changed = [not torch.equal(a, b) for a, b in zip(given, arguments, strict=True)]
    assert changed == [overwritten == 1, False, False, False, False]


def test_arguments_that_share_memory_are_parted(monkeypatch):
    monkeypatch.setattr(LARGE, 0)

    def both(values, untouched, moves, along, directions):
        return updated_rows(values, moves, along, directions), untouched + 0.0

    values, moves, along, directions, _ = drawn(4)
    program = Traced(vmap(both), (values.clone(), values.clone(), moves, along, directions))
    results = program(values, values[:], moves, along, directions)
    assert torch.equal(results[1], drawn(4)[0])
    assert torch.equal(results[0], vmap(updated_rows)(drawn(4)[0], moves, along, directions))


@pytest.mark.parametrize("accept", [True, False])
def test_pairs_climb_alike_whether_rows_that_stay_are_touched_or_not(accept, monkeypatch):
    rng = torch.Generator().manual_seed(5)
    weight = torch.randn(3, 4, 30, generator=rng, dtype=torch.float64)
    u, v = torch.rand(2, 3, 40, 30, generator=rng, dtype=torch.float64)

    def climbed(weight, u, v):
        def value(weight):
            stem = Stem(weight=weight.detach(), rest=torch.tanh)
            pairs = Pairs.of(u, v, torch.full_like(u[:, 0], 0.5))
            reached, quotients = ascend(stem, pairs, accept=accept)
            return (weight * 0).sum(), (reached.u, reached.v, quotients)

        return grad_and_value(value, has_aux=True)(weight)[1][1]

    runs = []
    for large in (0, 10**9):
        monkeypatch.setattr(LARGE, large)
        runs.append(vmap(climbed)(weight, u, v))
    for sparse, dense in zip(*runs, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-13, atol=1e-14)
    assert not torch.equal(runs[0][0], u)


def test_a_trainer_ends_with_the_same_bits_if_rows_are_moved_in_place(monkeypatch):
    always(monkeypatch)
    monkeypatch.setattr(LARGE, 0)
    entry, trained = an_entry("clip", pairs=32, lambda_=0.1), []
    for recorded in (False, True):
        trainer = a_trainer(entry, digits(train=72), seeds=(0, 1), records=True)
        if not recorded:
            trainer.step._record = None
        trained.append(trainer.run(trainer.begin()))
        recordings = [recording for recording, _ in trainer.step._recordings.values()]
        assert all(recording._overwritten for recording in recordings)
        assert len(recordings) == 2 * recorded
    for eager, replayed in zip(*trained, strict=True):
        assert eager.history == replayed.history
        assert same(eager.checkpoints["last"].params, replayed.checkpoints["last"].params)
