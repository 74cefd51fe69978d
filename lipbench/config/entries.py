"""The tables of a configuration file that name a plugin.

Each function reports what is wrong at its location, and raises `Invalid` if nothing can be made of
the table even so.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

from lipbench.adversary import Attack
from lipbench.bound import Bound
from lipbench.certificate import Certificate
from lipbench.config.problems import Invalid, Location, attempt
from lipbench.config.settings import AttackEntry, BoundEntry, CertificateEntry, SelectionSettings
from lipbench.config.strict import construct, convert, read_fields, structure
from lipbench.fields import fields_json, keys
from lipbench.method import Method
from lipbench.norm import Norm
from lipbench.registry import GROUPS, PluginError, resolve
from lipbench.training.discrepancy import Discrepancy
from lipbench.training.settings import MethodEntry, TrainingSettings

T = TypeVar("T")
E = TypeVar("E")


def named(raw: Any, what: str, location: Location) -> dict[str, Any]:
    """Return the table that `raw` is or, if it is a string, is short for."""
    table = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(table, dict):
        raise location.report(f"{what} must be a name or a table, got {raw!r}", what)
    if not isinstance(table.get("name"), str):
        raise location.report(f"missing key 'name' of the {what}")
    return table


def plugin(
    group: str,
    base: type[T],
    table: Mapping[str, Any],
    location: Location,
    besides: Collection[str] = (),
) -> T:
    """Return the plugin that a table names, with the fields that it sets.

    Args:
        group: Entry-point group of the plugin.
        base: Class from which the plugins of the group derive.
        table: `name`, fields of the plugin, and perhaps keys that are read elsewhere.
        location: Where the table stands.
        besides: The keys that are read elsewhere.
    """
    try:
        cls, fixed = resolve(group, table["name"], base)
    except PluginError as error:
        raise location.report(str(error), "name") from None
    for hidden in sorted((set(besides) | {"name"}) & set(keys(cls))):
        raise location.report(
            f"{GROUPS[group]} {table['name']!r} cannot be set up: its field {hidden!r} has the "
            "name of a key of lipbench; the plugin must rename it",
            hidden,
        )
    options = {key: value for key, value in table.items() if key not in {"name", *besides}}
    return structure(cls, options, location, fixed, besides)


def attack_entry(table: Mapping[str, Any], location: Location) -> AttackEntry:
    """Return an entry of `evaluation.attack`."""
    return _entry(AttackEntry, "lipbench.attacks", Attack, "attack", table, location)


def bound_entry(table: Mapping[str, Any], location: Location) -> BoundEntry:
    """Return an entry of `evaluation.bound`."""
    return _entry(BoundEntry, "lipbench.bounds", Bound, "bound", table, location)


def certificate_entry(table: Mapping[str, Any], location: Location) -> CertificateEntry:
    """Return an entry of `evaluation.certificate`."""
    return _entry(
        CertificateEntry, "lipbench.certificates", Certificate, "certificate", table, location
    )


def selection(raw: Any, location: Location) -> SelectionSettings | Literal["last"]:
    """Return how the checkpoint is chosen."""
    if raw == "last":
        return "last"
    if not isinstance(raw, dict) or not isinstance(raw.get("attack"), str):
        raise location.report(f'selection must be "last" or a table with an attack, got {raw!r}')
    table = {"name" if key == "attack" else key: value for key, value in raw.items()}
    return _entry(SelectionSettings, "lipbench.attacks", Attack, "attack", table, location)


def method_entry(
    table: Mapping[str, Any], location: Location, training: TrainingSettings | None
) -> MethodEntry:
    """Return an entry of `benchmark.method`.

    Args:
        table: `name`, what the core knows (a target, overrides of `training`), and the fields of
            the method.
        location: Where the table stands.
        training: The settings of the benchmark; None if they are wrong and only the entry's own
            mistakes can be found.

    Raises:
        Invalid: If nothing can be made of the table.
    """
    entry_keys = [key for key in keys(MethodEntry) if key not in ("name", "method", "training")]
    overrides = {key: value for key, value in table.items() if key in keys(TrainingSettings)}
    besides = [*entry_keys, *keys(TrainingSettings)]
    method = attempt(plugin, "lipbench.methods", Method, table, location, besides)
    merged = attempt(_override, overrides, location, training or TrainingSettings(epochs=100))
    discrepancy = attempt(_discrepancy, table, location)
    options = {key: table[key] for key in ("target_accuracy", "path") if key in table}
    stand_in = method or _plain("lipbench.methods", Method, table["name"])
    if stand_in is None or merged is None:
        read_fields(MethodEntry, options, location)
        raise Invalid
    fixed = {"name": table["name"], "method": stand_in, "training": merged}
    entry = structure(MethodEntry, options, location, fixed | {"discrepancy": discrepancy})
    if method is None:
        raise Invalid
    return entry


def _entry(
    cls: type[E], group: str, base: type[T], role: str, table: Mapping[str, Any], location: Location
) -> E:
    """Return an entry whose keys are its own fields and those of the plugin in its `role`.

    Raises:
        Invalid: If there is no such plugin.
    """
    entry_keys = [key for key in keys(cls) if key not in (role, "name")]
    instance = attempt(plugin, group, base, table, location, entry_keys)
    fixed = {role: instance, "name": table["name"]}
    options = {key: value for key, value in table.items() if key in entry_keys}
    is_valid = instance is not None
    if instance is None:
        instance = fixed[role] = _plain(group, base, table["name"])
    if instance is None:
        read_fields(cls, options, location, fixed)
        raise Invalid
    norms: frozenset[Norm] = instance.norms  # type: ignore[attr-defined]
    if "norm" not in options:
        fixed["norm"] = next(iter(norms)) if len(norms) == 1 else Norm(2.0)
    entry = structure(cls, options, location, fixed)
    if not is_valid:
        raise Invalid
    return entry


def _plain(group: str, base: type[T], name: str) -> T | None:
    """Return a plugin with the settings it has by itself, if it can be made without others.

    It stands for one whose own settings are wrong, so that the rest of its entry can be checked.
    """
    try:
        cls, fixed = resolve(group, name, base)
        return cls(**fixed)
    except Exception:  # a stranger's may raise anything, and what is wrong is reported already
        return None


def _discrepancy(table: Mapping[str, Any], location: Location) -> Discrepancy | None:
    if "discrepancy" in table:
        return convert(Discrepancy, table["discrepancy"], "discrepancy", location)
    return Discrepancy() if "target_accuracy" in table else None


def _override(
    overrides: dict[str, Any], location: Location, training: TrainingSettings
) -> TrainingSettings:
    """Return the training settings of a benchmark with those that one of its methods changes."""
    optimizer = overrides.get("optimizer")
    if isinstance(optimizer, dict):
        before = fields_json(training.optimizer)
        # A rate alone changes the rate alone; another optimiser starts from its own defaults.
        if optimizer.get("name", before["name"]) == before["name"]:
            overrides = {**overrides, "optimizer": before | optimizer}
    values = read_fields(TrainingSettings, overrides, location)
    return construct(partial(replace, training), values, location)
