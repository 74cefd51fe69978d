"""Strict structuring of tables into dataclasses: unknown keys and wrong types are errors."""

import dataclasses
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lipbench.config.problems import Invalid, Location
from lipbench.fields import keys
from lipbench.registry import did_you_mean

T = TypeVar("T")


def structure(
    cls: type[T],
    table: Mapping[str, Any],
    location: Location,
    fixed: Mapping[str, Any] | None = None,
    besides: Collection[str] = (),
) -> T:
    """Return the dataclass that a table describes, and report everything wrong with it.

    A field that is wrong is left at its default, so that what depends on it can be checked too:
    the result counts only if nothing was reported.

    Args:
        cls: The dataclass; its fields are the keys, without trailing underscores.
        table: Keys and values.
        location: Where the table stands.
        fixed: Fields that are known already and that the table may not set.
        besides: Keys that are read elsewhere; they only serve to correct a misspelt one.

    Raises:
        Invalid: If the table cannot make the dataclass even so.
    """
    values = read_fields(cls, table, location, fixed or {}, besides) | dict(fixed or {})
    needed = [key for key, name in keys(cls).items() if _required(cls, name)]
    for key in needed:
        if key not in table and keys(cls)[key] not in values:
            location.report(f"missing key {key!r}")
    if any(keys(cls)[key] not in values for key in needed):
        raise Invalid
    return construct(cls, values, location)


def read_fields(
    cls: type,
    table: Mapping[str, Any],
    location: Location,
    fixed: Collection[str] = (),
    besides: Collection[str] = (),
) -> dict[str, Any]:
    """Return the fields of a dataclass that a table sets correctly, and report the others."""
    by_key = {key: name for key, name in keys(cls).items() if name not in fixed}
    hints = get_type_hints(cls)
    values = {}
    for key, value in table.items():
        if key not in by_key:
            hint = did_you_mean(key, [*by_key, *besides])
            listed = hint or f"; known keys: {', '.join(sorted([*by_key, *besides])) or 'none'}"
            location.report(f"unknown key {key!r}{listed}", key)
            continue
        try:
            values[by_key[key]] = convert(hints[by_key[key]], value, key, location)
        except Invalid:
            continue
    return values


def construct(make: Callable[..., T], values: Mapping[str, Any], location: Location) -> T:
    """Return `make(**values)`; what its own checks find is reported, a line for each problem.

    Raises:
        Invalid: If the values are refused.
    """
    try:
        return make(**values)
    except Exception as error:  # a plugin may raise anything
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        for line in text.splitlines() or [repr(error)]:
            location.report(line, key=line.split(maxsplit=1)[0].rstrip(":"))
        raise Invalid from error


def convert(kind: Any, value: Any, key: str, location: Location) -> Any:
    """Return a value of the type `kind`, which the key `key` of a table has been set to.

    A value of another type is reported and raises `Invalid`; nothing is converted but an int
    where a float is due.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        inner = location.at(key)
        if isinstance(value, str) and "name" in keys(kind):
            value = {"name": value}
        if not isinstance(value, dict):
            raise location.report(f"{key} must be a table, got {value!r}", key)
        return structure(kind, value, inner)
    try:
        return _plain(kind, value)
    except _Mismatch as error:
        raise location.report(f"{key} must be {error}, got {_shown(value)}", key) from None
    except ValueError as error:  # of a number of a special kind, such as Norm
        raise location.report(str(error), key) from None


def _required(cls: Any, name: str) -> bool:
    field = cls.__dataclass_fields__[name]
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


class _Mismatch(Exception):
    """A value is not of a type; the message says what it should be."""


def _plain(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(kind, arguments, value)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _Mismatch(_called(kind))
    if origin is tuple:
        return _tuple(kind, arguments, value)
    if origin in (dict, Mapping) or kind is dict:
        if not isinstance(value, dict):
            raise _Mismatch(_called(kind))
        inner = arguments[1] if arguments else Any
        return {name: _plain(inner, entry) for name, entry in value.items()}
    if kind is type(None):
        if value == "none":
            return None
        raise _Mismatch(_called(kind))
    return _scalar(kind, value)


def _scalar(kind: Any, value: Any) -> Any:
    if kind in (bool, int, float, str) and type(value) is kind:
        return value
    if isinstance(kind, type) and issubclass(kind, float) and type(value) in (int, float):
        return kind(float(value))
    raise _Mismatch(_called(kind))


def _union(kind: Any, choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        try:
            return _plain(choice, value)
        except _Mismatch:
            continue
    raise _Mismatch(_called(kind))


def _tuple(kind: Any, entries: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _Mismatch(_called(kind))
    kinds = (entries[0],) * len(value) if entries[-1] is Ellipsis else entries
    if len(kinds) != len(value):
        raise _Mismatch(_called(kind))
    try:
        return tuple(
            _plain(inner_kind, entry) for inner_kind, entry in zip(kinds, value, strict=True)
        )
    except _Mismatch:
        raise _Mismatch(_called(kind)) from None


def _called(kind: Any) -> str:
    """Return how a type is called in "must be ..."."""
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        type(None): '"none"',
    }
    if kind in names:
        return names[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_called(choice) for choice in arguments)
    if origin is tuple:
        inner = _called(arguments[0])
        each = inner.removeprefix("a ") + "s" if inner.startswith("a ") else f"({inner})"
        return f"a list of {each if arguments[-1] is Ellipsis else f'{len(arguments)} {each}'}"
    if origin in (dict, Mapping) or kind is dict:
        return "a table"
    if isinstance(kind, type) and issubclass(kind, float):
        return "a number"
    return f"of type {getattr(kind, '__name__', kind)}, which no configuration file can hold"


def _shown(value: Any) -> str:
    # As TOML writes it: a person compares it with the file.
    return str(value).lower() if isinstance(value, bool) else repr(value)
