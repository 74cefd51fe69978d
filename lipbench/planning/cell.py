"""A cell: what determines its numbers, and what is to be measured of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lipbench.adversarial.judge import BATCH_SIZE
from lipbench.config.settings import (
    AttackEntry,
    Benchmark,
    BoundEntry,
    CertificateEntry,
    EvaluationSettings,
    SelectionSettings,
)
from lipbench.fields import fields_json, non_defaults_json
from lipbench.norm import Norm
from lipbench.planning.keys import digest, source_digest
from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.rows import Row
from lipbench.training.settings import MethodEntry
from lipbench.training.trial import Trial

TRAINING_PROTOCOL = 3
"""Part of every train key: raise it when the same settings come to train to other numbers."""
EVALUATION_PROTOCOL = 5
"""Part of every eval key, likewise."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One (benchmark, method, seed): the unit that is trained, evaluated and resumed."""

    benchmark: Benchmark
    trial: Trial
    key: str
    """The train key: a hash of all that determines the trained numbers."""
    mates: tuple[Trial, ...]
    """The trials it is trained with, its own among them, in the order of the stack."""
    stack: tuple[str, ...]
    """The keys of the cells of these trials."""

    def siblings(self) -> "tuple[Cell, ...]":
        """Return all cells of the stack."""
        pairs = zip(self.mates, self.stack, strict=True)
        return tuple(replace(self, trial=trial, key=key) for trial, key in pairs)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Return what entered the key."""
        return train_inputs(self.benchmark, self.trial)

    @property
    def entry(self) -> MethodEntry:
        """Return the method and its settings."""
        return self.trial.entry

    @property
    def seed(self) -> int:
        """Return the seed of initial weights, batches, noise and attacks."""
        return self.trial.seed

    @cached_property
    def blank(self) -> Row:
        """Return a row with all the columns that the cell fixes."""
        return Row(
            benchmark=self.benchmark.name,
            dataset=dataset_json(self.benchmark),
            model=model_json(self.benchmark),
            method=self.entry.name,
            params=self.params,
            seed=self.seed,
            metric="",
            train_key=self.key,
        )

    @cached_property
    def params(self) -> str:
        """Return the column `params`: what distinguishes this row of the table, as JSON."""
        return _json(method_params(self.entry, self.benchmark))

    @cached_property
    def evaluations(self) -> "tuple[Evaluation, ...]":
        """Return what is to be measured of the cell."""
        return _evaluations(self)

    def folder(self, run: Path) -> CellFolder:
        """Return the folder of the cell in the folder of a run."""
        return CellFolder.of(run, self.benchmark.name, self.entry.name, self.key)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One entry of the evaluation: it has its own key, so a new attack never retrains."""

    kind: str
    """`plain`, `noise`, `attack`, `bound` or `certificate`."""
    index: int
    """Position of the entry in its list of the settings."""
    key: str


def method_params(entry: MethodEntry, benchmark: Benchmark) -> dict[str, Any]:
    """Return all fields of a method, and what drives its strength if anything does."""
    params = fields_json(entry.method)
    if entry.target_accuracy is not None:
        params["target_accuracy"] = entry.target_accuracy
        params["discrepancy"] = fields_json(entry.discrepancy)
    if entry.path:
        params["path"] = list(entry.path)
    if entry.training != benchmark.training:
        params["training"] = fields_json(entry.training)
    return params


def dataset_json(benchmark: Benchmark) -> str:
    """Return the column `dataset`."""
    return _json({"name": benchmark.dataset_name, **fields_json(benchmark.dataset)})


def model_json(benchmark: Benchmark) -> str:
    """Return the column `model`."""
    return _json({"name": benchmark.model_name, **fields_json(benchmark.model)})


def train_inputs(benchmark: Benchmark, trial: Trial) -> dict[str, Any]:
    """Return all that determines the trained numbers of a cell; its hash is the train key.

    A field at its default is left out, here as in eval keys: a new option changes no key.
    """
    entry, selection = trial.entry, benchmark.selection
    return {
        "protocol": TRAINING_PROTOCOL,
        "method": {**_plugin(entry.name, entry.method), **_options(entry, "method")},
        "dataset": {
            **_plugin(benchmark.dataset_name, benchmark.dataset),
            "bytes": benchmark.dataset.digest,
        },
        "model": _plugin(benchmark.model_name, benchmark.model),
        "training": non_defaults_json(entry.training),
        "selection": selection if selection == "last" else _applied(selection, "attack"),
        "seed": trial.seed,
    }


def batch_of(entry: AttackEntry, settings: EvaluationSettings) -> int | None:
    """Return the samples at a time where they may matter; None for an attack that is samplewise."""
    return None if entry.attack.samplewise else settings.batch_size or BATCH_SIZE


def certified_epsilons(benchmark: Benchmark, norm: float) -> list[float]:
    """Return the radii at which accuracy is certified: those of the attacks in the same norm."""
    attacks = benchmark.evaluation.attack
    return sorted({e for attack in attacks if float(attack.norm) == norm for e in attack.epsilon})


def _evaluations(cell: Cell) -> tuple[Evaluation, ...]:
    settings = cell.benchmark.evaluation
    common: dict[str, Any] = {"protocol": EVALUATION_PROTOCOL, "train": cell.key}
    if settings.test_size is not None:
        common["test_size"] = settings.test_size

    def evaluation(kind: str, index: int, what: Mapping[str, Any]) -> Evaluation:
        return Evaluation(
            kind=kind, index=index, key=digest({**common, "kind": kind, "what": what})
        )

    def certified(norm: Norm) -> dict[str, Any]:
        return {"certified": certified_epsilons(cell.benchmark, float(norm))}

    evaluations = [evaluation("plain", 0, {})]
    for index, noise in enumerate(settings.noise):
        evaluations.append(evaluation("noise", index, non_defaults_json(noise)))
    for index, attack in enumerate(settings.attack):
        what = _applied(attack, "attack")
        # What an attack draws may depend on the samples it is given at a time.
        if batch_of(attack, settings) not in (None, BATCH_SIZE):
            what["batch_size"] = settings.batch_size
        evaluations.append(evaluation("attack", index, what))
    earlier: list[str] = []
    for index, bound in enumerate(settings.bound):
        # A search may start from what the bounds before it found.
        what = {**_applied(bound, "bound"), **certified(bound.norm), "after": list(earlier)}
        evaluations.append(evaluation("bound", index, what))
        earlier.append(evaluations[-1].key)
    for index, certificate in enumerate(settings.certificate):
        what = {**_applied(certificate, "certificate"), **certified(certificate.norm)}
        evaluations.append(evaluation("certificate", index, what))
    return tuple(evaluations)


def _applied(
    entry: SelectionSettings | AttackEntry | BoundEntry | CertificateEntry, role: str
) -> dict[str, Any]:
    """Return what an entry says that applies the plugin in its field `role`."""
    return {**_plugin(entry.name, getattr(entry, role)), **_options(entry, role)}


def _plugin(name: str, plugin: object) -> dict[str, Any]:
    cls: type = type(plugin)
    return {
        "name": name,
        "fields": non_defaults_json(plugin),
        "source": source_digest(cls),
    }


def _options(entry: object, role: str) -> dict[str, Any]:
    """Return the options of an entry itself, beside those of its plugin."""
    apart = ("name", "training", role)
    return {name: value for name, value in non_defaults_json(entry).items() if name not in apart}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
