"""The list of installed plugins of a group, the broken ones too."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from lipbench.registry import PluginError, is_family, load, published, resolve, variants

if TYPE_CHECKING:
    from lipbench.training.step_cost import Price

KINDS = {
    "methods": "lipbench.method:Method",
    "attacks": "lipbench.adversary:Attack",
    "bounds": "lipbench.bound:Bound",
    "certificates": "lipbench.certificate:Certificate",
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
    cost: "Price | None" = None
    """What a step of a training method costs, if it was asked for."""


def listing(kind: str) -> list[Listed]:
    """Return the plugins of a kind (a key of `KINDS`), sorted by name, a family by variants."""
    group = f"lipbench.{kind}"
    module, _, base = KINDS[kind].partition(":")
    points = sorted(published(group), key=lambda point: (point.name, point.value))
    cls = getattr(import_module(module), base)
    return [line for point in points for line in _lines(group, point, cls)]


def priced(plugins: list[Listed], device: str = "cpu") -> list[Listed]:
    """Return listed methods with the measured cost of a step each; broken ones have none."""
    from lipbench.method import Method
    from lipbench.training.step_cost import price

    def cost(name: str) -> "Price":
        cls, fixed = resolve("lipbench.methods", name, Method)
        return price(partial(cls, **fixed), device=device)

    return [
        plugin if plugin.broken else replace(plugin, cost=cost(plugin.name)) for plugin in plugins
    ]


def text(plugins: list[Listed]) -> str:
    """Return a table of plugins for a terminal."""
    from tabulate import tabulate

    body = [
        (plugin.name, plugin.distribution, plugin.version, _cut(plugin.summary, plugin.broken))
        for plugin in plugins
    ]
    headers: tuple[str, ...] = ("name", "distribution", "version", "")
    if any(plugin.cost for plugin in plugins):
        headers = ("name", "cost per step", "lowest to highest", "")
        body = [(plugin.name, *_cost(plugin.cost), _note(plugin)) for plugin in plugins]
    return tabulate(body, headers=headers, disable_numparse=True)


def _cost(cost: "Price | None") -> tuple[str, str]:
    if cost is None or cost.ratio is None:
        return "", ""
    return f"{cost.ratio:.2f}", f"{cost.lowest:.2f} to {cost.highest:.2f}"


def _note(plugin: Listed) -> str:
    if plugin.cost is not None and plugin.cost.reason is not None:
        return f"not measured: {plugin.cost.reason}"
    return _cut("", plugin.broken)


def _lines(group: str, point: EntryPoint, base: type[Any]) -> Iterator[Listed]:
    dist, name = point.dist, point.name
    listed = Listed(
        name=name,
        distribution=dist.name if dist else "unknown",
        version=dist.version if dist else "",
    )
    try:
        plugin = load(group, name, base)
        summary = _summary(plugin)
        if not is_family(plugin):
            yield replace(listed, summary=summary)
            return
        for variant in variants(group, name, plugin):
            yield replace(listed, name=f"{name}:{variant}", summary=summary)
    except PluginError as error:
        yield replace(listed, broken=str(error))


def _summary(plugin: type) -> str:
    lines = (plugin.__doc__ or "").strip().splitlines()
    # A dataclass without a docstring gets its own signature for one.
    return "" if not lines or lines[0].startswith(f"{plugin.__name__}(") else lines[0].strip()


def _cut(summary: str, broken: str | None) -> str:
    return f"BROKEN: {' '.join(broken.split())}" if broken else summary
