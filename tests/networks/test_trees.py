import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.networks.trees import flatten, stack, take, tree_map, unflatten

LEAVES = st.integers(-5, 5).map(lambda number: torch.tensor([number, number + 1]))
NAMES = st.text("abc._", max_size=3)
INNER = st.dictionaries(NAMES, LEAVES, min_size=1, max_size=2)
MIDDLE = st.dictionaries(NAMES, LEAVES | INNER, min_size=1, max_size=2)
TREES = st.dictionaries(NAMES, LEAVES | MIDDLE, min_size=1, max_size=3)


def equal(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[name], other[name]) for name in one)
    return torch.equal(one, other)


@given(TREES)
def test_unflatten_undoes_flatten(tree):
    assert equal(unflatten(flatten(tree)), tree)


def test_flat_names_are_paths():
    tree = {"u": torch.zeros(1), "buffers": {"1.mean": torch.ones(1), "none": {}}}
    assert list(flatten(tree)) == ["u", "buffers/1.mean"]


@given(st.lists(LEAVES, min_size=1, max_size=4))
def test_take_undoes_stack(leaves):
    trees = [{"a": leaf, "b": {"c": 2 * leaf, "d": {}}} for leaf in leaves]
    stacked = stack(trees)
    assert all(equal(take(stacked, number), tree) for number, tree in enumerate(trees))


def test_stack_refuses_trees_of_different_form():
    with pytest.raises(KeyError, match="b"):
        stack([{"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.zeros(1)}])


def test_tree_map_joins_partners_in_dictionaries_and_tuples():
    one, two = torch.tensor(1), torch.tensor(2)
    found = tree_map(torch.add, ({"a": one}, two), ({"a": two}, two))
    assert found == ({"a": torch.tensor(3)}, torch.tensor(4))
