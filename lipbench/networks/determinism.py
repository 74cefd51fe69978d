"""Determinism: whether a network is a function, which answers an input in one way.

A bound speaks of a function. A network that counts its calls, draws random numbers or looks at what
else is in the batch is none, and what was read of it at one moment proves nothing of the next. That
cannot be excluded; but a few calls show most of it, and what a network keeps between two equal
calls shows it before any answer differs.
"""

import itertools
import math
import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.adversary import Classifier

_SAMPLES = 4
"""Inputs that are tried: they are answered four times."""
_BATCHED = 1e-3
"""Share of its size by which rounding may change an answer in another batch; less in float64."""
_SUMS = 16
"""Units of rounding by which threads may change an answer on the CPU, if at all."""
_MOST = 1000
"""Entries of a container that are looked at."""
_OF_TORCH = frozenset(vars(nn.Module()))
"""What every module has: `training`, and its parameters, buffers, modules and hooks."""


def irregularity(model: Classifier, inputs: Float[Tensor, "batch *shape"]) -> str | None:
    """Return what shows that a model is no function of single inputs, None if nothing does.

    It draws random numbers, changes what it keeps between two equal calls, answers the same inputs
    differently when asked again, or depends on what else is in the batch.

    Args:
        model: The model, in the mode in which it is to be judged.
        inputs: Inputs on its device, of which a few are tried.
    """
    inputs = inputs[:_SAMPLES].detach()
    if not len(inputs):
        return None
    with torch.no_grad():
        drawn, first = _drawn(), model(inputs.clone())
        kept, again = dict(_kept(model)), model(inputs.clone())
        if _drawn() != drawn:
            return "its forward draws random numbers"
        for name, value in _kept(model):
            if kept.get(name) != value:
                return f"its forward changes its own {name!r} with every call"
        if not isinstance(first, Tensor) or not isinstance(again, Tensor):
            return None
        if not same_answers(first, again):
            return "it answers the same inputs differently when asked again"
        if not _is_of_each(model, inputs, first):
            return "its answer to an input depends on others in the batch"
    return None


def same_answers(first: Tensor, again: Tensor) -> bool:
    """Return whether two answers to the same batch are the same, but for the order of sums."""
    if first.device.type != "cpu" or not first.is_floating_point():
        return _same(first, again, _BATCHED if first.is_floating_point() else 0.0)
    return _same(first, again, _SUMS * torch.finfo(first.dtype).eps)


def _is_of_each(model: Classifier, inputs: Tensor, answers: Tensor) -> bool:
    """Return whether other batches of the same inputs are answered alike, up to rounding."""
    tolerance = _tolerance(answers)
    if not _same(answers, model(inputs.flip(0)).flip(0), tolerance):
        return False
    try:
        alone = model(inputs[:1].clone())
    except Exception:  # it wants a batch: what it makes of one was seen
        return True
    return _same(answers[:1].flatten(), alone.flatten(), tolerance)


def _tolerance(outputs: Tensor) -> float:
    eps = torch.finfo(outputs.dtype).eps if outputs.is_floating_point() else 0.0
    return math.sqrt(eps) if outputs.dtype == torch.float64 else max(_BATCHED, 16 * eps)


def _same(first: Tensor, other: Tensor, tolerance: float) -> bool:
    if first.shape != other.shape:
        return False
    if torch.equal(first, other):
        return True
    first, other = first.double().nan_to_num(), other.double().nan_to_num()
    return float((first - other).abs().max()) <= tolerance * (1 + float(first.abs().max()))


def _drawn() -> tuple[Any, ...]:
    """Return the state of the generators that all code shares."""
    name, keys, *rest = np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = [torch.default_generator.get_state(), *devices]
    numbers = (name, np.asarray(keys).tobytes(), *rest)
    # The checks of types by beartype look at random entries: then Python's generator says nothing.
    python = None if "beartype" in sys.modules else random.getstate()
    return python, numbers, [state.numpy().tobytes() for state in states]


def _kept(model: Classifier) -> Iterator[tuple[str, Any]]:
    """Yield what a model keeps beside tensors, by name: plain values, and generators."""
    if not isinstance(model, nn.Module):
        yield from _of_function("", model)
        return
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for owner in (module, *_classes(module)):
            for name, value in vars(owner).items():
                if name not in _OF_TORCH and not name.startswith("__"):
                    yield prefix + name, _plain(value)
        if _classes(module):
            yield from _of_function(prefix, module.forward)


def _classes(module: nn.Module) -> list[type]:
    """Return the classes of a module that are not torch's own."""
    library = ("torch.", "builtins", "abc", "typing")
    return [owner for owner in type(module).__mro__ if not owner.__module__.startswith(library)]


def _of_function(prefix: str, function: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function may keep: defaults, what it closes over, and globals that it names."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return
    for number, value in enumerate(function.__defaults__ or ()):
        yield f"{prefix}{function.__name__}, default {number}", _plain(value)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing is in it yet
            yield f"{prefix}{name}", _plain(cell.cell_contents)
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"{prefix}{name}", _plain(function.__globals__[name])


def _plain(value: Any, depth: int = 3) -> Any:
    """Return a copy of a plain value that can be compared, None of what is none."""
    if isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, itertools.count):
        return repr(value)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, dict) and depth:
        items = itertools.islice(value.items(), _MOST)
        return len(value), [(repr(key), _plain(entry, depth - 1)) for key, entry in items]
    if isinstance(value, list | tuple | set | frozenset) and depth:
        entries = itertools.islice(value, _MOST)
        return len(value), [_plain(entry, depth - 1) for entry in entries]
    return None
