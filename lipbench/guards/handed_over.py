"""What a plugin is handed: remembered, compared afterwards, and put back."""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_WHOLE = (int, float, complex, str, bytes, bool, type(None), Enum)
"""Values that are compared as such; of all else it counts which object it is."""
_OF_MODULES = tuple(key for key, part in vars(nn.Module()).items() if isinstance(part, dict))
_SHOWN = 4
_ROOT = "\0"
"""Stands in names between what was given and the place in it."""
_GLOBAL_HOOKS = {
    name: value
    for name, value in vars(torch_module).items()
    if name.startswith("_global_") and isinstance(value, dict)
}
"""Hooks of all modules of the process."""


class HandedOver:
    """Objects and all they consist of, as they were when this was made.

    It looks into dataclasses, modules, containers, and what functions enclose. Containers that a
    module or a function keeps for itself are its own affair, but not the tensors in them.
    """

    def __init__(self, given: dict[str, object]) -> None:
        self._seen: set[int] = set()
        self._tensors: list[tuple[str, Tensor, Tensor, bool, Tensor | None]] = []
        self._arrays: list[tuple[str, np.ndarray, np.ndarray]] = []
        self._holders: list[_Holder] = []
        for name, value in (given | {"hooks of all modules": _GLOBAL_HOOKS}).items():
            self._remember(f"{name}{_ROOT}", value)

    def put_back(self, changed_by_itself: Callable[[], object] = lambda: None) -> list[str]:
        """Put back what changed.

        Args:
            changed_by_itself: What may change attributes of modules without anybody's doing.

        Returns:
            The names of what changed.
        """
        exchanged = [place for holder in self._holders for place in holder.exchanged()]
        doubted = [place for place in exchanged if place.is_attribute_of_module]
        if doubted:
            with suppress(Exception):  # of a network that a plugin may have broken
                changed_by_itself()
        own = [place for place in doubted if place.is_changed_again()]
        changed = [place for place in exchanged if place not in own]
        for place in changed:
            place.put_back()
        names = [place.name for place in changed]
        names += [entry[0] for entry in self._tensors if _put_back(*entry[1:])]
        for name, array, value in self._arrays:
            if array.tobytes() != value.tobytes():
                names.append(name)
                array[...] = value
        return _grouped(names)

    def _remember(self, name: str, value: Any, is_inside: bool = False) -> None:
        if id(value) in self._seen or isinstance(value, (*_WHOLE, type, torch.Generator)):
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            kept = value.detach().clone()
            gradient = value.grad if value.is_leaf else None
            self._tensors.append((name, value, kept, value.requires_grad, gradient))
        elif isinstance(value, np.ndarray):
            self._arrays.append((name, value, value.copy()))
        else:
            self._look_into(name, value, is_inside)

    def _look_into(self, name: str, value: Any, is_inside: bool) -> None:
        is_module = isinstance(value, nn.Module)
        is_container = isinstance(value, dict | list) or is_dataclass(value)
        if is_module or (is_container and not is_inside):
            self._holders.append(_Holder(name, value))
        if is_module:
            # What torch keeps of a module itself: parameters, buffers, modules and hooks.
            kept = [(f".{key}", vars(value).get(key)) for key in _OF_MODULES]
            self._holders += [_Holder(f"{name}{k}", p) for k, p in kept if isinstance(p, dict)]
        inside = is_inside or is_module or isinstance(value, types.FunctionType)
        for part, inner in _parts(value):
            self._remember(f"{name}{part}", inner, inside)


class _Holder:
    """An object whose parts can be exchanged: a dictionary, a list, or one with attributes."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self.kind = name, value, type(value)
        self.before: dict[Any, Any] = dict(self.present())

    def present(self) -> dict[Any, Any]:
        """Return the parts by their keys; of a dictionary or an object, these themselves."""
        if isinstance(self.value, list):
            return dict(enumerate(self.value))
        return self.value if isinstance(self.value, dict) else _attributes(self.value)

    def exchanged(self) -> "list[_Place]":
        """Return the places whose part was exchanged, added or removed."""
        present = self.present()
        keys = [key for key in self.before if key not in present]
        keys += [key for key, value in present.items() if not self._is_as_before(key, value)]
        if type(self.value) is not self.kind:
            keys.append("__class__")
        return [_Place(self, key) for key in keys]

    def _is_as_before(self, key: Any, value: Any) -> bool:
        if key not in self.before:
            # The first reading of a cached property adds it.
            return isinstance(_of_class(self.value, key), functools.cached_property)
        return _is_same(value, self.before[key])


class _Place:
    """A place of a holder at which there is something else than before."""

    def __init__(self, holder: _Holder, key: Any) -> None:
        self._holder, self._key = holder, key
        self._found = holder.present().get(key)
        is_attribute = not isinstance(holder.value, dict | list)
        self.name = f"{holder.name}.{key}" if is_attribute else f"{holder.name}[{key!r}]"
        if key == "training" and is_attribute:
            self.name = f"{holder.name.partition(_ROOT)[0]}{_ROOT}the training mode"
        self.is_attribute_of_module = isinstance(holder.value, nn.Module) and key != "training"

    def is_changed_again(self) -> bool:
        """Return whether there is something else now than when the change was noticed."""
        return not _is_same(self._holder.present().get(self._key), self._found)

    def put_back(self) -> None:
        """Put back what was there, or remove what was added."""
        holder, key = self._holder, self._key
        if key == "__class__":
            holder.value.__class__ = holder.kind
        elif isinstance(holder.value, list):
            holder.value[:] = holder.before.values()
        elif isinstance(holder.value, dict):
            # All of it, in the order that it had.
            holder.value.clear()
            holder.value.update(holder.before)
        elif key in holder.before:
            holder.present()[key] = holder.before[key]
        else:
            holder.present().pop(key, None)


def _grouped(names: list[str]) -> list[str]:
    """Return for each thing that was given its name and the places in it, the first ones."""
    places: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        root, _, place = name.partition(_ROOT)
        places.setdefault(root, []).append(place.lstrip("."))
    return [_listed(root, list(filter(None, found))) for root, found in places.items()]


def _listed(root: str, places: list[str]) -> str:
    if not places:
        return root
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return f"{root}: {', '.join(places[:_SHOWN])}{more}"


def _is_same(value: Any, other: Any) -> bool:
    is_plain = type(value) is type(other) and isinstance(value, _WHOLE)
    return value is other or (is_plain and (value == other or value != value))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object consists of, each with what is to be appended to its name."""
    if isinstance(value, nn.Module):
        yield from ((f".{key}", part) for key, part in value._parameters.items())
        yield from ((f".{key}", part) for key, part in value._buffers.items())
        yield from ((f".{key}", part) for key, part in value._modules.items())
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("", part) for part in (value.func, value.args, value.keywords))
    elif isinstance(value, types.MethodType):
        yield "", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from (("", part) for part in _enclosed(value))
    elif is_dataclass(value) or isinstance(value, nn.Module):
        yield from ((f".{key}", part) for key, part in _attributes(value).items())


def _enclosed(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is empty
            continue


def _attributes(value: Any) -> dict[str, Any]:
    found = getattr(value, "__dict__", {})
    return found if isinstance(found, dict) else {}


def _of_class(value: Any, key: Any) -> Any:
    return getattr(type(value), key, None) if isinstance(key, str) else None


def _put_back(tensor: Tensor, value: Tensor, requires_grad: bool, gradient: Tensor | None) -> bool:
    """Put a tensor back if its content, shape, type or need of a gradient is another.

    Returns:
        Whether it was. A gradient that was left in it is removed in silence.
    """
    is_changed = tensor.requires_grad != requires_grad
    if is_changed and tensor.is_leaf:
        tensor.requires_grad_(requires_grad)
    if tensor.grad is not gradient:
        tensor.grad = gradient
    if same_bits(tensor, value):
        return is_changed
    with torch.no_grad():
        if (tensor.shape, tensor.dtype) == (value.shape, value.dtype):
            tensor.detach().copy_(value)
        if not same_bits(tensor, value):
            tensor.data = value.clone()
    return True


def same_bits(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal to the last bit; a NaN equals itself."""
    if (tensor.shape, tensor.dtype, tensor.device) != (other.shape, other.dtype, other.device):
        return False
    if tensor.is_meta or torch.equal(tensor, other):
        # Zeros of both signs are equal numbers.
        return tensor.is_meta or not tensor.is_floating_point() or _same_signs(tensor, other)
    return (
        tensor.is_floating_point()
        and torch.equal(tensor.isnan(), other.isnan())
        and (torch.equal(tensor.nan_to_num(), other.nan_to_num()))
    )


def _same_signs(tensor: Tensor, other: Tensor) -> bool:
    return torch.equal(tensor.signbit(), other.signbit())
