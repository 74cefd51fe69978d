"""Trees of tensors: nested dictionaries, stacked along a trial axis, and stored flat."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""A tensor, or a dictionary or tuple of trees."""


def tree_map(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Return the tree of `function` applied to each tensor, with its partners in `others`."""
    if isinstance(tree, dict):
        return {
            key: tree_map(function, value, *(other[key] for other in others))
            for key, value in tree.items()
        }
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *branches) for branches in zip(tree, *others, strict=True))
    return function(tree, *others)


def leaves(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree, in its order."""
    if isinstance(tree, dict | tuple):
        branches = tree.values() if isinstance(tree, dict) else tree
        return [leaf for branch in branches for leaf in leaves(branch)]
    return [tree]


def memory(value: Tensor) -> int:
    """Return where the memory of a tensor begins, which it shares with its views."""
    return value.untyped_storage().data_ptr()


def stack(trees: Sequence[Tree]) -> Tree:
    """Return the trees joined along a new leading axis."""
    return tree_map(lambda *values: torch.stack(values), *trees)


def take(tree: Tree, trial: int) -> Tree:
    """Return one trial of a stacked tree; its tensors are views."""
    return tree_map(lambda value: value[trial], tree)


def flatten(tree: Tree, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors under names joined by slashes, as a file stores them.

    Raises:
        ValueError: If a name contains a slash itself.
    """
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        if "/" in key:
            raise ValueError(f"a tree's names must not contain a slash, got {key!r}.")
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: dict[str, Tensor]) -> Tree:
    """Return the tree that `flatten` turned into `flat`; empty dictionaries are gone."""
    tree: dict[str, Tree] = {}
    for name, value in flat.items():
        *parents, key = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return tree
