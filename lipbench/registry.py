"""Find plugins by name.

A plugin is a class that some installed distribution publishes as an entry point. lipbench
publishes its own plugins in the same way, so they enjoy no privilege.

A name may have a part after a colon (`torchattacks:PGD`): the part before it is the entry point,
a family of plugins whose field `variant` is the part after it.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from lipbench.failure import pass_signals, text_of, wording

GROUPS = {
    "lipbench.methods": "method",
    "lipbench.attacks": "attack",
    "lipbench.bounds": "bound",
    "lipbench.certificates": "certificate",
    "lipbench.datasets": "data set",
    "lipbench.models": "model",
}
"""The entry-point groups, and what a plugin of each is called in a message."""

T = TypeVar("T")


class PluginError(Exception):
    """A plugin is missing, ambiguous, broken, or not what its group promises."""


def published(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group.

    The distributions are read once, and again when a folder on the path changes, as it does
    where one is installed or removed.
    """
    return _published(tuple((place, _changed(place)) for place in sys.path), group)


def names(group: str) -> list[str]:
    """Return the names of all plugins that are published in `group`, sorted."""
    return sorted({plugin.name for plugin in published(group)})


def load(group: str, name: str, base: type[T]) -> type[T]:
    """Import the plugin called `name`.

    Args:
        group: Entry-point group, such as "lipbench.methods".
        name: Name under which the plugin is published, without a variant.
        base: Class from which every plugin of the group derives.

    Returns:
        The plugin's class.

    Raises:
        PluginError: If no distribution publishes `name`, if several do, if its import fails, or
            if the published object is not a subclass of `base`.
    """
    point = find(group, name)
    try:
        plugin = point.load()
    except BaseException as error:  # whatever a stranger's module does at import
        pass_signals(error)
        raise PluginError(
            f"{_kind(group)} {name!r} of {source(point)} is broken: {wording(error)}"
        ) from error
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise PluginError(
            f"{_kind(group)} {name!r} of {source(point)} must be a subclass of "
            f"{base.__name__}, got {plugin!r}."
        )
    return plugin


def resolve(group: str, name: str, base: type[T]) -> tuple[type[T], dict[str, str]]:
    """Import the plugin that `name`, perhaps with a variant, stands for.

    Returns:
        The class, and the fields that the name fixes: `{"variant": ...}` or none.

    Raises:
        PluginError: As `load`, and if the plugin has no such variant or needs one.
    """
    family, colon, variant = name.partition(":")
    plugin = load(group, family, base)
    if not is_family(plugin):
        if colon:
            raise PluginError(
                f"{_kind(group)} {family!r} has no variants: write {family!r} for {name!r}."
            )
        return plugin, {}
    known = variants(group, family, plugin)
    if variant not in known:
        full = [f"{family}:{one}" for one in known]
        raise PluginError(f"{_kind(group)} {name!r} is not known{_choice(name, full)}")
    return plugin, {"variant": variant}


def is_family(plugin: type) -> bool:
    """Return whether a class stands for several plugins, told apart by its field `variant`."""
    return is_dataclass(plugin) and any(field.name == "variant" for field in fields(plugin))


def variants(group: str, name: str, plugin: type) -> tuple[str, ...]:
    """Return the variants of a family, as its class method `variants` tells them.

    Raises:
        PluginError: If they cannot be told, for example because an extra is not installed.
    """
    family: Any = plugin
    try:
        return tuple(family.variants())
    except BaseException as error:
        pass_signals(error)
        raise PluginError(f"{_kind(group)} {name!r} cannot be used: {text_of(error)}") from error


def find(group: str, name: str) -> EntryPoint:
    """Return the one entry point called `name`, without importing it.

    Raises:
        PluginError: If no distribution publishes `name`, or if several do.
    """
    found = [plugin for plugin in published(group) if plugin.name == name]
    if not found:
        raise PluginError(f"{_kind(group)} {name!r} is not installed{_choice(name, names(group))}")
    if len(found) > 1:
        sources = " and ".join(sorted(f"{source(one)} ({one.value})" for one in found))
        raise PluginError(
            f"{_kind(group)} {name!r} is published by {sources}: uninstall all but one."
        )
    return found[0]


def distribution(group: str, name: str) -> tuple[str, str]:
    """Return name and version of the distribution that publishes a plugin."""
    dist = find(group, name.partition(":")[0]).dist
    return (dist.name, dist.version) if dist else ("unknown", "")


def source(point: EntryPoint) -> str:
    """Return the distribution of an entry point as "name version"."""
    dist = point.dist
    return f"{dist.name} {dist.version}" if dist else "an unknown distribution"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known word nearest to `word`, or nothing."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@lru_cache(maxsize=len(GROUPS))
def _published(places: tuple[tuple[str, int], ...], group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _changed(place: str) -> int:
    try:
        return os.stat(place or os.curdir).st_mtime_ns
    except OSError:  # absent: whatever is there later counts as a change
        return 0


def _choice(word: str, known: list[str]) -> str:
    hint = did_you_mean(word, known) or "."
    return f"{hint} Installed: {', '.join(known) or 'none'}."


def _kind(group: str) -> str:
    return GROUPS.get(group, f"{group} plugin")
