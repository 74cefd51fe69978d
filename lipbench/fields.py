"""The fields of a plugin or a setting as keys of a configuration file, and as JSON."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any


def key(field: str) -> str:
    """Return the key that sets a field: its name without trailing underscores."""
    return field.rstrip("_")


def keys(cls: type) -> dict[str, str]:
    """Return the field that each key of a dataclass sets, for all that its constructor takes."""
    return {key(field.name): field.name for field in dataclasses.fields(cls) if field.init}


def fields_json(value: Any) -> dict[str, Any]:
    """Return all fields of a dataclass, defaults too, under their keys and as plain JSON.

    Infinite numbers become "inf" and "-inf", tuples become lists.
    """
    return {
        key(field.name): plain(getattr(value, field.name)) for field in dataclasses.fields(value)
    }


def non_defaults_json(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are not at their default, as `fields_json` does.

    Of a dataclass in a field, likewise, only what is not at its default. An option that is new
    leaves what is returned as it was.
    """
    cls: type = type(value)
    return {
        key(name): _plain(entry, non_defaults_json)
        for name, default in defaults(cls).items()
        if not _same(entry := getattr(value, name), default)
    }


@cache
def defaults(cls: type) -> dict[str, Any]:
    """Return the default of each field of a dataclass, `MISSING` of dataclasses without one."""
    return {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(cls)
    }


def _same(value: Any, default: Any) -> bool:
    if value is default or default is dataclasses.MISSING:
        return value is default
    if type(value) is type(default) and isinstance(value, int | str):
        return bool(value == default)
    # As text: 0, 0.0, -0.0 and False compare equal, and may lead to other numbers.
    return _text(value) == _text(default)


def _text(value: Any) -> str:
    return json.dumps(plain(value), sort_keys=True)


def plain(value: Any) -> Any:
    """Return a value made of what JSON holds: numbers, strings, lists, dictionaries.

    Raises:
        TypeError: If it contains anything else.
    """
    return _plain(value, fields_json)


def _plain(value: Any, of_dataclass: Callable[[Any], dict[str, Any]]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # float() also strips subclasses such as Norm, which would print as an integer.
        return float(value) if math.isfinite(value) else str(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return of_dataclass(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(entry, of_dataclass) for name, entry in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        entries = [_plain(entry, of_dataclass) for entry in value]
        return sorted(entries) if isinstance(value, frozenset | set) else entries
    raise TypeError(f"a setting must be a number, string, list or table, got {value!r}.")
