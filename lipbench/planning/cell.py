"""A cell: what determines its numbers, and what is to be measured of it."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lipbench.adversarial.judge import BATCH_SIZE
from lipbench.config.settings import AttackEntry, Benchmark, EvaluationSettings
from lipbench.fields import fields_json
from lipbench.planning.keys import digest, source_digest
from lipbench.storage.cell_folder import CellFolder
from lipbench.training.settings import MethodEntry
from lipbench.training.trial import Trial

TRAINING_PROTOCOL = 2
"""Part of every train key: raise it when the same settings come to train to other numbers."""
EVALUATION_PROTOCOL = 3
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
    """Return all that determines the trained numbers of a cell; its hash is the train key."""
    entry, selection = trial.entry, benchmark.selection
    chosen_by: Any = selection
    if selection != "last":
        chosen_by = {
            "name": selection.name,
            "fields": fields_json(selection.attack),
            "source": source_digest(type(selection.attack)),
            "norm": str(selection.norm),
            "epsilon": selection.epsilon,
        }
        if selection.size is not None:
            chosen_by["size"] = selection.size
    return {
        "protocol": TRAINING_PROTOCOL,
        "method": {
            "name": entry.name,
            "params": method_params(entry, benchmark),
            "source": source_digest(type(entry.method)),
        },
        "dataset": {
            "name": benchmark.dataset_name,
            "fields": fields_json(benchmark.dataset),
            "bytes": benchmark.dataset.digest,
            "source": source_digest(type(benchmark.dataset)),
        },
        "model": {
            "name": benchmark.model_name,
            "fields": fields_json(benchmark.model),
            "source": source_digest(type(benchmark.model)),
        },
        "training": fields_json(entry.training),
        "selection": chosen_by,
        "seed": trial.seed,
    }


def _evaluations(cell: Cell) -> tuple[Evaluation, ...]:
    settings = cell.benchmark.evaluation
    common = {
        "protocol": EVALUATION_PROTOCOL,
        "train": cell.key,
        "test_size": settings.test_size,
    }

    def evaluation(kind: str, index: int, what: Any) -> Evaluation:
        return Evaluation(
            kind=kind, index=index, key=digest({**common, "kind": kind, "what": what})
        )

    found = [evaluation("plain", 0, {"loss": True})]
    for index, noise in enumerate(settings.noise):
        found.append(evaluation("noise", index, asdict(noise)))
    for index, attack in enumerate(settings.attack):
        found.append(
            evaluation(
                "attack",
                index,
                {
                    "name": attack.name,
                    "fields": fields_json(attack.attack),
                    "source": source_digest(type(attack.attack)),
                    "norm": str(attack.norm),
                    "epsilon": list(attack.epsilon),
                    "size": attack.size,
                    # What an attack draws may depend on the samples it is given at a time.
                    "batch_size": batch_of(attack, settings),
                },
            )
        )
    earlier: list[str] = []
    for index, bound in enumerate(settings.bound):
        found.append(
            evaluation(
                "bound",
                index,
                {
                    "name": bound.name,
                    "fields": fields_json(bound.bound),
                    "source": source_digest(type(bound.bound)),
                    "norm": str(bound.norm),
                    "domain": None if bound.domain is None else list(bound.domain),
                    "certified": certified_epsilons(cell.benchmark, float(bound.norm)),
                    "radius": "smallest quotient of a gap and the constant of the difference",
                    # A search may start from what the bounds before it found.
                    "after": list(earlier),
                },
            )
        )
        earlier.append(found[-1].key)
    for index, one in enumerate(settings.certificate):
        found.append(
            evaluation(
                "certificate",
                index,
                {
                    "name": one.name,
                    "fields": fields_json(one.certificate),
                    "source": source_digest(type(one.certificate)),
                    "norm": str(one.norm),
                    "certified": certified_epsilons(cell.benchmark, float(one.norm)),
                },
            )
        )
    return tuple(found)


def batch_of(entry: AttackEntry, settings: EvaluationSettings) -> int | None:
    """Return the samples at a time where they may matter; None for an attack that is samplewise."""
    return None if entry.attack.samplewise else settings.batch_size or BATCH_SIZE


def certified_epsilons(benchmark: Benchmark, norm: float) -> list[float]:
    """Return the radii at which accuracy is certified: those of the attacks in the same norm."""
    attacks = benchmark.evaluation.attack
    return sorted({e for attack in attacks if float(attack.norm) == norm for e in attack.epsilon})


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
