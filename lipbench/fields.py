"""The fields of a plugin or a setting as keys of a configuration file, and as JSON."""

import dataclasses
import math
from collections.abc import Mapping
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


def plain(value: Any) -> Any:
    """Return a value made of what JSON holds: numbers, strings, lists, dictionaries.

    Raises:
        TypeError: If it contains anything else.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # float() also strips subclasses such as Norm, which would print as an integer.
        return float(value) if math.isfinite(value) else str(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_json(value)
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        entries = [plain(entry) for entry in value]
        return sorted(entries) if isinstance(value, frozenset | set) else entries
    raise TypeError(f"a setting must be a number, string, list or table, got {value!r}.")
