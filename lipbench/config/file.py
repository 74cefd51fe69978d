"""Read a configuration file into values that cannot change; find all its mistakes at once."""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lipbench.config.entries import (
    attack_entry,
    bound_entry,
    certificate_entry,
    method_entry,
    named,
    plugin,
    selection,
)
from lipbench.config.problems import ConfigError, Invalid, Location, attempt
from lipbench.config.settings import Benchmark, Config, EvaluationSettings, Heading, NoiseEntry
from lipbench.config.strict import construct, convert, structure
from lipbench.dataset import Dataset
from lipbench.model import Model
from lipbench.training.settings import MethodEntry, TrainingSettings

T = TypeVar("T")

_TABLES = ("dataset", "model", "training", "selection", "evaluation", "method")


def read(path: Path | str) -> Config:
    """Return what a configuration file says.

    Raises:
        ConfigError: If the file cannot be read, or with all its mistakes.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not a text in UTF-8: {error}"]) from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"at line (\d+)", str(error))
        line = int(match.group(1)) if match else len(text.splitlines())
        raise ConfigError([f"{path}:{line}: cannot be read as TOML: {error}"]) from error
    return parse(table, str(path), text)


def parse(table: Mapping[str, Any], source: str = "configuration", text: str = "") -> Config:
    """Return what the tables of a configuration say.

    Args:
        table: The tables, as `tomllib` reads them.
        source: How messages call the configuration.
        text: The text that was read, so that messages can give lines.

    Raises:
        ConfigError: With all mistakes.
    """
    lines = tuple(text.splitlines())
    location = Location(source=source, lines=lines, span=range(len(lines)))
    settings = {key: value for key, value in table.items() if key != "benchmark"}
    head = attempt(structure, Config, settings, location, {"benchmarks": ()}, ["benchmark"])
    seeds = head.seeds if head else (0,)
    benchmarks = _list(table, "benchmark", location, lambda raw, at: _benchmark(raw, at, seeds))
    taken: set[str] = set()
    for benchmark in benchmarks:
        if benchmark.name in taken:
            location.report(f"benchmark {benchmark.name!r} is there twice: give each its own name")
        taken.add(benchmark.name)
    if not table.get("benchmark"):
        location.report("there is no [[benchmark]]")
    if location.problems or head is None:
        raise ConfigError(location.problems)
    return Config(benchmarks=benchmarks, schema=head.schema, seeds=head.seeds, device=head.device)


def _benchmark(table: Mapping[str, Any], location: Location, seeds: tuple[int, ...]) -> Benchmark:
    fields = {"seeds": list(seeds)} | {key: table[key] for key in table if key not in _TABLES}
    heading = attempt(structure, Heading, fields, location, {}, _TABLES)
    dataset = attempt(_required_plugin, "lipbench.datasets", Dataset, "dataset", table, location)
    model = attempt(_required_plugin, "lipbench.models", Model, "model", table, location)
    training = attempt(_training, table, location)
    chosen = attempt(selection, table.get("selection", "last"), location.at("selection"))
    evaluation = attempt(_evaluation, table.get("evaluation", {}), location.at("evaluation"))
    methods = attempt(_methods, table, location, training)
    tables = {
        "dataset": dataset,
        "model": model,
        "training": training,
        "selection": chosen,
        "evaluation": evaluation,
        "methods": methods,
    }
    if heading is None or None in tables.values():
        raise Invalid
    names = {f"{key}_name": _name(table[key]) for key in ("dataset", "model")}
    fields = {"name": heading.name, "seeds": heading.seeds}
    return construct(Benchmark, {**fields, **names, **tables}, location)


def _required_plugin(
    group: str, base: type[T], key: str, table: Mapping[str, Any], location: Location
) -> T:
    if key not in table:
        raise location.report(f"missing key {key!r}")
    inside = location.at(key)
    return plugin(group, base, named(table[key], key, inside), inside)


def _training(table: Mapping[str, Any], location: Location) -> TrainingSettings:
    if "training" not in table:
        raise location.report("missing key 'training'")
    settings: TrainingSettings = convert(TrainingSettings, table["training"], "training", location)
    return settings


def _evaluation(raw: Any, location: Location) -> EvaluationSettings:
    if not isinstance(raw, dict):
        raise location.report(f"evaluation must be a table, got {raw!r}")
    lists = {
        "noise": _list(raw, "noise", location, lambda entry, at: structure(NoiseEntry, entry, at)),
        "attack": _list(raw, "attack", location, attack_entry),
        "bound": _list(raw, "bound", location, bound_entry),
        "certificate": _list(raw, "certificate", location, certificate_entry),
    }
    fields = {key: value for key, value in raw.items() if key not in lists}
    return structure(EvaluationSettings, fields, location, lists, lists)


def _methods(
    table: Mapping[str, Any], location: Location, training: TrainingSettings | None
) -> tuple[MethodEntry, ...]:
    if not table.get("method"):
        raise location.report("there is no [[benchmark.method]]")
    return _list(table, "method", location, lambda raw, at: method_entry(raw, at, training))


def _list(
    table: Mapping[str, Any],
    key: str,
    location: Location,
    make: Callable[[dict[str, Any], Location], T],
) -> tuple[T, ...]:
    """Make an entry of each table of a list, and report those that are invalid.

    Returns:
        The entries, without the invalid ones.
    """
    raws = table.get(key, [])
    if not isinstance(raws, list):
        location.report(f"{key} must be a list of tables, got {raws!r}", key)
        return ()
    spans = _spans(location, key)
    entries: list[T] = []
    valid: dict[int, T] = {}
    for number, raw in enumerate(raws, 1):
        span = spans[number - 1] if len(spans) == len(raws) else None
        inside = location.at(_label(key, number, raw), span)
        known = len(location.problems)
        entry = attempt(_entry, key, raw, inside, make)
        if entry is not None:
            entries.append(entry)
        if entry is not None and len(location.problems) == known:
            twins = [earlier for earlier, twin in valid.items() if twin == entry]
            if twins:
                inside.report(f"is the same as {key} {twins[0]}: leave one out")
            valid[number] = entry
    return tuple(entries)


def _entry(
    key: str, raw: Any, location: Location, make: Callable[[dict[str, Any], Location], T]
) -> T:
    if key in ("method", "attack", "bound", "certificate"):
        raw = named(raw, key, location)
    elif not isinstance(raw, dict):
        raise location.report(f"{key} must be a table, got {raw!r}")
    return make(raw, location)


def _label(key: str, number: int, raw: Any) -> str:
    name = _name(raw)
    if key == "benchmark":
        return f"benchmark {name!r}" if name else f"benchmark {number}"
    return f"{key} {number} ({name})" if name else f"{key} {number}"


def _name(raw: Any) -> str:
    name = raw.get("name", "") if isinstance(raw, dict) else raw
    return name if isinstance(name, str) else ""


def _spans(location: Location, key: str) -> list[range]:
    """Return the lines of the tables whose headers end with `key`, or of its inline list."""
    header = re.compile(rf"^\s*\[\[(\s*benchmark\s*\.)?\s*{key}\s*\]\]")
    starts = [number for number in location.span if header.search(location.lines[number])]
    if not starts:
        return location.entries(key)
    stops = [*starts[1:], location.span.stop][: len(starts)]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
