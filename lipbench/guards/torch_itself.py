"""The functions of torch and numpy that everybody computes with: noticed if they are replaced."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

_OWNERS: tuple[Any, ...] = (
    *(torch, torch.Tensor, torch.linalg, torch.special, torch.fft, torch.func, torch.autograd),
    *(torch.nn, torch.nn.functional, torch.nn.init, torch.nn.Module, torch.nn.Parameter),
    *(np, np.linalg, np.random, np.ndarray, math, random),
    *{kind for kind in vars(nn).values() if isinstance(kind, type)},
)


def _callables(owner: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(owner).items()
        if callable(value) or isinstance(value, property | classmethod | staticmethod)
    }


_HOMES = tuple(str(Path(str(library.__file__)).parent) for library in (torch, np))
_NOTHING: frozenset[str] = frozenset()
_INHERITED = {
    owner: frozenset(dir(owner)) - frozenset(vars(owner))
    for owner in _OWNERS
    if isinstance(owner, type)
}
"""Names that a class does not define itself: who sets them hides those of its bases."""
_BEFORE = [(owner, _callables(owner)) for owner in _OWNERS]


def remember_torch() -> None:
    """Take the functions of torch, numpy, math and random as they are for the right ones."""
    for owner, functions in _BEFORE:
        present = vars(owner)
        if not functions.items() <= present.items():
            functions.update({n: present[n] for n in functions if n in present})


def put_back_torch() -> list[str]:
    """Put back functions of torch, numpy, math and random that were replaced since remembered.

    Returns:
        The names of those that had been.
    """
    replaced = []
    for owner, functions in _BEFORE:
        if not functions.items() <= vars(owner).items():
            replaced += _put_back(owner, functions)
        if not _INHERITED.get(owner, _NOTHING).isdisjoint(vars(owner)):
            replaced += _uncover(owner)
    return replaced


def _uncover(owner: Any) -> list[str]:
    names = _INHERITED[owner] & set(vars(owner)) - {"__abstractmethods__"}
    for name in names:
        delattr(owner, name)
    return [f"{_named(owner)}.{name}" for name in sorted(names)]


def _put_back(owner: Any, functions: dict[str, Any]) -> list[str]:
    replaced = []
    for name, function in functions.items():
        present = vars(owner).get(name)
        if present is function:
            continue
        if _is_wrapped_by_itself(name, present):
            functions[name] = present
        else:
            setattr(owner, name, function)
            replaced.append(f"{_named(owner)}.{name}")
    return replaced


def _is_wrapped_by_itself(name: str, function: Any) -> bool:
    """Return whether a library wrapped its own function, as torch does when its compiler loads."""
    file = getattr(getattr(function, "__code__", None), "co_filename", "")
    return getattr(function, "__name__", "") == name and file.startswith(_HOMES)


def _named(owner: Any) -> str:
    return f"{owner.__module__}.{owner.__name__}" if isinstance(owner, type) else owner.__name__


def computes_otherwise() -> bool:
    """Return whether torch gives other bits for a small computation than at first.

    It finds what cannot be put back, such as kernels that were replaced below Python.
    """
    return _known_bits() != _BITS


def _known_bits() -> bytes:
    x = torch.linspace(-1, 1, 24, dtype=torch.float32, device="cpu").reshape(4, 6)
    y = (x @ x.T).relu().exp() + nn.functional.conv1d(x[None], x[:, :, None][:, :4]).amax()
    z = x.double().softmax(1).cumsum(0).sin() * 1e-310
    return y.numpy().tobytes() + z.numpy().tobytes()


_BITS = _known_bits()
