"""A program that was written down against the function it was made of."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import vmap

from lipbench.training.operation_list import Traced

VIEWS = ("view", "_unsafe_view", "expand", "alias", "detach")


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def names(program):
    nodes = program._run.__self__.graph.nodes
    return [node.target.__name__.split(".")[0] for node in nodes if node.op == "call_function"]


def layers(x, first, second):
    return torch.tanh(x @ first.T) @ second.T


def reshaped(x, first, second):
    return x.view(-1, 2).view(x.shape).flatten()[: len(first)] + first[:, 0], second.expand(3, 3)


def detached(x, first, second):
    return x.detach().view(x.shape) * 2, first.expand(first.shape), second.view(second.shape)


@pytest.mark.parametrize(
    ("function", "mapped", "views"),
    [(layers, True, 0), (reshaped, False, 4), (detached, False, 0)],
)
def test_only_views_that_change_shapes_are_kept(function, mapped, views):
    """Products of stacks are written by vmap as views of views: none changes a shape here."""
    arguments = (drawn(6, 4, 4), drawn(6, 5, 4), drawn(6, 3, 5)) if mapped else None
    arguments = arguments or (drawn(4, 4), drawn(5, 4), drawn(1, 3))
    function = vmap(function) if mapped else function
    program = Traced(function, arguments)
    expected, found = function(*arguments), program(*arguments)
    if isinstance(expected, torch.Tensor):
        expected, found = [expected], [found]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    kept = [name for name in names(program) if name in VIEWS]
    assert len(kept) == views, kept


def test_what_nothing_depends_on_is_left_out():
    program = Traced(lambda x, y: (x * 2, (x @ y).sum() * 0 + 1)[0], (drawn(3, 3), drawn(3, 3)))
    assert names(program) == ["mul"]


def test_shapes_are_worked_out_by_one_for_all_operations(monkeypatch):
    """Torch would make a mode for each, and look through the stack for whom."""
    made = []
    start = FakeTensorMode.__init__

    def noted(self, *arguments, **options):
        made.append(self)
        start(self, *arguments, **options)

    monkeypatch.setattr(FakeTensorMode, "__init__", noted)
    few, many = (
        Traced(lambda x, count=count: sum(x + i for i in range(count)), (drawn(3),))
        for count in (2, 20)
    )
    assert len(names(many)) > len(names(few)) + 15
    assert len(made) == 2


def by_one(x, y):
    return x**1 * 1, (y / 1).pow(1.0), torch.mul(torch.arange(3), 1.0)


def squares(x, y):
    return (x @ y).square() + (x @ y).square(), x.sum(0) * 2, x.sum(0) * 2, x.sum(1) * 2


def types(x, y):
    # 1, 1.0 and True are equal in Python.
    numbers = [torch.full((2,), value) for value in (1, 1.0, True)]
    return *numbers, x.add(y, alpha=2), x.add(y, alpha=3)


def changed(x, y):
    own = x * 2
    own.mul_(3)
    return own, x * 2


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (by_one, ["arange", "mul"]),  # an integer times 1.0 is another number
        (squares, ["mm", "pow", "add", "sum", "mul", "sum", "mul"]),
        (types, ["full", "full", "full", "add", "add"]),
        (changed, ["mul", "mul_", "mul"]),
    ],
)
def test_what_is_there_already_is_not_computed_again(function, operations):
    arguments = (drawn(3, 3), drawn(3, 3))
    program = Traced(function, arguments)
    for found, expected in zip(program(*arguments), function(*arguments), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    assert names(program) == operations
