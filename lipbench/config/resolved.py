"""A configuration with every default written out."""

from typing import Any

from lipbench.config.settings import Benchmark, Config
from lipbench.fields import fields_json, plain
from lipbench.training.settings import MethodEntry


def resolved(config: Config) -> dict[str, Any]:
    """Return the configuration as JSON in the shape of its file, every default written out.

    Infinity is "inf" and an absent value null; apart from these, `lipbench.config.file.parse` gives
    the same configuration again.
    """
    return {
        "schema": config.schema,
        "seeds": list(config.seeds),
        "device": config.device,
        "benchmark": [_benchmark(benchmark) for benchmark in config.benchmarks],
    }


def plugin_json(name: str, plugin: Any) -> dict[str, Any]:
    """Return name and fields of a plugin; a variant is part of the name and no field."""
    values = fields_json(plugin)
    if ":" in name:
        values.pop("variant", None)
    return {"name": name, **values}


def method_json(entry: MethodEntry) -> dict[str, Any]:
    """Return a method's entry: its fields, its target or path, and how it is trained."""
    entry_fields = {
        "target_accuracy": entry.target_accuracy,
        "path": plain(entry.path),
        "discrepancy": plain(entry.discrepancy),
    }
    return {**plugin_json(entry.name, entry.method), **entry_fields, **fields_json(entry.training)}


def _benchmark(benchmark: Benchmark) -> dict[str, Any]:
    evaluation = benchmark.evaluation
    selection = benchmark.selection
    return {
        "name": benchmark.name,
        "seeds": list(benchmark.seeds),
        "dataset": plugin_json(benchmark.dataset_name, benchmark.dataset),
        "model": plugin_json(benchmark.model_name, benchmark.model),
        "training": fields_json(benchmark.training),
        "selection": selection if selection == "last" else _entry(selection, "attack", "attack"),
        "evaluation": {
            "test_size": evaluation.test_size,
            "batch_size": evaluation.batch_size,
            "noise": plain(evaluation.noise),
            "attack": [_entry(entry, "attack", "name") for entry in evaluation.attack],
            "bound": [_entry(entry, "bound", "name") for entry in evaluation.bound],
            "certificate": [
                _entry(entry, "certificate", "name") for entry in evaluation.certificate
            ],
        },
        "method": [method_json(entry) for entry in benchmark.methods],
    }


def _entry(entry: Any, role: str, name_key: str) -> dict[str, Any]:
    """Return an entry that applies a plugin: the plugin's fields beside the entry's own."""
    used = plugin_json(entry.name, getattr(entry, role))
    entry_fields = {
        name: value for name, value in fields_json(entry).items() if name not in (role, "name")
    }
    del used["name"]
    return {name_key: entry.name, **entry_fields, **used}
