"""What is installed: every plugin of a group, the broken ones too."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lipbench.registry import PluginError, is_family, load, variants

KINDS = {
    "methods": "lipbench.method:Method",
    "attacks": "lipbench.adversary:Attack",
    "bounds": "lipbench.bound:Bound",
    "datasets": "lipbench.dataset:Dataset",
    "models": "lipbench.model:Model",
}
"""What can be listed, and the class that its plugins derive from."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One plugin as `lipbench ls` shows it."""

    name: str
    distribution: str
    version: str
    summary: str = ""
    broken: str | None = None
    """Why the plugin cannot be used, None if it can."""


def listing(kind: str) -> list[Listed]:
    """Return the plugins of a kind (a key of `KINDS`), sorted by name, a family by variants."""
    group = f"lipbench.{kind}"
    module, _, base = KINDS[kind].partition(":")
    published = sorted(entry_points(group=group), key=lambda one: (one.name, one.value))
    cls = getattr(import_module(module), base)
    return [line for one in published for line in _lines(group, one, cls)]


def text(plugins: list[Listed]) -> str:
    """Return a table of plugins for a terminal."""
    from tabulate import tabulate

    body = [
        (one.name, one.distribution, one.version, _cut(one.summary, one.broken)) for one in plugins
    ]
    return tabulate(body, headers=("name", "distribution", "version", ""), disable_numparse=True)


def _lines(group: str, published: EntryPoint, base: type[Any]) -> Iterator[Listed]:
    dist = published.dist
    origin = {
        "distribution": dist.name if dist else "unknown",
        "version": dist.version if dist else "",
    }
    name = published.name
    try:
        plugin = load(group, name, base)
        summary = _summary(plugin)
        if not is_family(plugin):
            yield Listed(name=name, summary=summary, **origin)
            return
        for variant in variants(group, name, plugin):
            yield Listed(name=f"{name}:{variant}", summary=summary, **origin)
    except PluginError as error:
        yield Listed(name=name, broken=str(error), **origin)


def _summary(plugin: type) -> str:
    lines = (plugin.__doc__ or "").strip().splitlines()
    # A dataclass without a docstring gets its own signature for one.
    return "" if not lines or lines[0].startswith(f"{plugin.__name__}(") else lines[0].strip()


def _cut(summary: str, broken: str | None) -> str:
    return f"BROKEN: {' '.join(broken.split())}" if broken else summary
