"""From a configuration to cells and stacks, without any tensor work."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lipbench.cells import CellFolder
from lipbench.config import fields_json, parse, read
from lipbench.estimate import Estimate, estimate
from lipbench.keys import digest, source_digest
from lipbench.labels import labels
from lipbench.registry import did_you_mean
from lipbench.results import PlannedCell
from lipbench.settings import Benchmark, Config, MethodEntry
from lipbench.trial import Trial

TRAINING_PROTOCOL = 1
"""Part of every train key: raise it when the same settings come to train to other numbers."""
EVALUATION_PROTOCOL = 1
"""Part of every eval key, likewise."""
LARGEST_STACK = 16


class NothingSelected(Exception):
    """No benchmark has a name that was asked for; the message lists those there are."""


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
        return _train_inputs(self.benchmark, self.trial)

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
    """`plain`, `noise`, `attack` or `bound`."""
    index: int
    """Position of the entry in its list of the settings."""
    key: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of a configuration, those selected, and how they are stacked."""

    config: Config
    cells: tuple[Cell, ...]
    """All cells of the configuration; results.csv is derived from these."""
    selected: tuple[Cell, ...]
    estimate: Estimate

    def stacks(self) -> list[tuple[Cell, ...]]:
        """Return the selected cells, grouped as they are trained."""
        groups: dict[tuple[str, ...], list[Cell]] = {}
        for cell in self.selected:
            groups.setdefault((cell.benchmark.name, *cell.stack), []).append(cell)
        return [tuple(group) for group in groups.values()]

    def planned(self) -> list[PlannedCell]:
        """Return what plan.json says about the cells."""
        names = self._labels()
        return [
            PlannedCell(
                key=cell.key,
                benchmark=cell.benchmark.name,
                method=cell.entry.name,
                label=names[cell.benchmark.name, cell.entry.name, cell.params],
                params=cell.params,
                seed=cell.seed,
                folder=cell.folder(Path()).path.as_posix(),
                dataset=dataset_json(cell.benchmark),
                model=model_json(cell.benchmark),
                evaluations=tuple(evaluation.key for evaluation in cell.evaluations),
            )
            for cell in self.cells
        ]

    def describe(self) -> str:
        """Return the plan as text: rows, cells, stacks and an estimate of the time."""
        from tabulate import tabulate

        names = self._labels()
        rows: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.selected:
            name = names[cell.benchmark.name, cell.entry.name, cell.params]
            rows.setdefault((cell.benchmark.name, name), []).append(cell)
        body = [
            (
                *name,
                len(cells),
                cells[0].entry.training.epochs * max(1, len(cells[0].entry.path)),
                len(cells[0].stack),
            )
            for name, cells in rows.items()
        ]
        head = ("benchmark", "method", "cells", "epochs", "stack")
        summary = f"{len(self.selected)} cells in {len(self.stacks())} stacks; {self.estimate}"
        return f"{tabulate(body, headers=head)}\n{summary}"

    def _labels(self) -> dict[tuple[str, str, str], str]:
        found = {}
        for benchmark in self.config.benchmarks:
            rows = [(c.entry.name, c.params) for c in self.cells if c.benchmark is benchmark]
            distinct = list(dict.fromkeys(rows))
            for row, name in zip(distinct, labels(distinct), strict=True):
                found[benchmark.name, *row] = name
        return found


def plan(
    config: Config | dict[str, Any] | str | Path,
    out: Path | str | None = None,
    only: Sequence[str] = (),
) -> Plan:
    """Return the cells of a configuration.

    Args:
        config: A configuration, its tables, or the path of its file.
        out: Folder of a run, whose finished cells make the estimate of the time better.
        only: Names of the benchmarks to select; none selects all.

    Raises:
        ConfigError: If the configuration is not valid; the message lists all its mistakes.
        NothingSelected: If no benchmark has one of the names in `only`.
    """
    if isinstance(config, dict):
        config = parse(config)
    elif not isinstance(config, Config):
        config = read(config)
    known = [benchmark.name for benchmark in config.benchmarks]
    for name in only:
        if name not in known:
            raise NothingSelected(
                f"there is no benchmark {name!r}{did_you_mean(name, known)} It has {known}."
            )
    cells = tuple(cell for benchmark in config.benchmarks for cell in _cells(benchmark))
    selected = tuple(cell for cell in cells if not only or cell.benchmark.name in only)
    run = None if out is None else Path(out)
    return Plan(config=config, cells=cells, selected=selected, estimate=estimate(selected, run))


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


def _cells(benchmark: Benchmark) -> list[Cell]:
    trials = [
        Trial(entry=entry, seed=seed) for entry in benchmark.methods for seed in benchmark.seeds
    ]
    keys = [digest(_train_inputs(benchmark, trial)) for trial in trials]
    groups: list[list[int]] = []
    for number, trial in enumerate(trials):
        home = next((g for g in groups if _joins(trial, trials[g[0]], len(g), benchmark)), None)
        if home is None:
            groups.append([number])
        else:
            home.append(number)
    group_of = {number: group for group in groups for number in group}
    return [
        Cell(
            benchmark=benchmark,
            trial=trial,
            key=keys[number],
            mates=tuple(trials[n] for n in group_of[number]),
            stack=tuple(keys[n] for n in group_of[number]),
        )
        for number, trial in enumerate(trials)
    ]


def _joins(trial: Trial, first: Trial, size: int, benchmark: Benchmark) -> bool:
    stackable = trial.method.stackable and benchmark.model.stackable
    return stackable and size < LARGEST_STACK and trial.shared() == first.shared()


def _train_inputs(benchmark: Benchmark, trial: Trial) -> dict[str, Any]:
    entry, selection = trial.entry, benchmark.selection
    chosen_by: Any = selection
    if selection != "last":
        chosen_by = {
            "name": selection.name,
            "fields": fields_json(selection.attack),
            "source": _source(type(selection.attack)),
            "norm": str(selection.norm),
            "epsilon": selection.epsilon,
        }
    return {
        "protocol": TRAINING_PROTOCOL,
        "method": {
            "name": entry.name,
            "params": method_params(entry, benchmark),
            "source": _source(type(entry.method)),
        },
        "dataset": {
            "name": benchmark.dataset_name,
            "fields": fields_json(benchmark.dataset),
            "bytes": benchmark.dataset.digest,
            "source": _source(type(benchmark.dataset)),
        },
        "model": {
            "name": benchmark.model_name,
            "fields": fields_json(benchmark.model),
            "source": _source(type(benchmark.model)),
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
                    "source": _source(type(attack.attack)),
                    "norm": str(attack.norm),
                    "epsilon": list(attack.epsilon),
                    "size": attack.size,
                },
            )
        )
    for index, bound in enumerate(settings.bound):
        found.append(
            evaluation(
                "bound",
                index,
                {
                    "name": bound.name,
                    "fields": fields_json(bound.bound),
                    "source": _source(type(bound.bound)),
                    "norm": str(bound.norm),
                    "domain": None if bound.domain is None else list(bound.domain),
                    "certified": certified_epsilons(cell.benchmark, float(bound.norm)),
                },
            )
        )
    return tuple(found)


def certified_epsilons(benchmark: Benchmark, norm: float) -> list[float]:
    """Return the radii at which accuracy is certified: those of the attacks in the same norm."""
    attacks = benchmark.evaluation.attack
    return sorted({e for attack in attacks if float(attack.norm) == norm for e in attack.epsilon})


@cache
def _source(cls: type) -> str:
    return source_digest(cls)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
