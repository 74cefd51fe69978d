"""The global random generators: seeded for one call of a plugin, and put back after it."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_LARGEST = 2**32
"""Beyond numpy's largest seed."""


@contextmanager
def private_generators(seed: int | None) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python, and put them back at the end.

    So a plugin that draws from them draws the same again, and nobody else draws otherwise.

    Args:
        seed: Of all of them; None begins where they stand.
    """
    before = global_state()
    try:
        if seed is not None:
            _seed(seed % _LARGEST)
        yield
    finally:
        _put_back(before)


def global_state() -> list[object]:
    """Return where all global generators stand."""
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [random.getstate(), np.random.get_state(), torch.get_rng_state(), on_devices]


def moved_since(before: list[object]) -> list[str]:
    """Return the libraries whose global generators moved since `global_state` was asked."""
    python, numpy, cpu, on_devices = global_state()
    old_python, old_numpy, old_cpu, old_devices = before
    pairs = {
        "random": python == old_python,
        "numpy.random": all(map(np.array_equal, numpy, old_numpy)),  # type: ignore[call-overload]
        "torch": _equal([cpu], [old_cpu]) and _equal(on_devices, old_devices),
    }
    if "beartype" in sys.modules:  # its checks of types look at random entries
        pairs["random"] = True
    return [name for name, is_same in pairs.items() if not is_same]


def _equal(states: object, others: object) -> bool:
    assert isinstance(states, list)
    assert isinstance(others, list)
    if len(states) != len(others):
        return False
    return all(torch.equal(a, b) for a, b in zip(states, others, strict=True))


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _put_back(state: list[object]) -> None:
    python, numpy, cpu, on_devices = state
    assert isinstance(cpu, Tensor)
    assert isinstance(on_devices, list)
    random.setstate(python)  # type: ignore[arg-type]
    np.random.set_state(numpy)  # type: ignore[arg-type]
    torch.set_rng_state(cpu)
    if on_devices:
        torch.cuda.set_rng_state_all(on_devices)
