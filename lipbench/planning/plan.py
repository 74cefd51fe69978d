"""From a configuration to cells and stacks, without any tensor work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipbench.config.file import parse, read
from lipbench.config.settings import Benchmark, Config
from lipbench.planning.cell import Cell, dataset_json, model_json, train_inputs
from lipbench.planning.device import resolve
from lipbench.planning.estimate import Estimate, estimate
from lipbench.planning.keys import digest
from lipbench.planning.stacking import largest_stack
from lipbench.registry import did_you_mean
from lipbench.storage.results import PlannedCell
from lipbench.tables.labels import labels
from lipbench.training.trial import Trial


class NothingSelected(Exception):
    """No benchmark has a name that was asked for; the message lists those there are."""


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
    *,
    device: str | None = None,
    stacked: bool = True,
    measure: bool = False,
) -> Plan:
    """Plan the cells of a configuration, and the stacks that they are trained in.

    Args:
        config: A configuration, its tables, or the path of its file.
        out: Folder of a run, whose finished cells make the estimate of the time better.
        only: Names of the benchmarks to select; none selects all.
        device: Where they will be trained, which sizes the stacks; None takes the configuration's.
        stacked: Whether trials are trained together at all.
        measure: Whether it is to be measured, where that is not known, if stacks of convolutional
            networks are faster; else these count as trained alone. What is measured is kept, in
            the user's cache and in `out`.

    Returns:
        The plan.

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
    place, run = resolve(device or config.device), None if out is None else Path(out)
    cells: list[Cell] = []
    for benchmark in config.benchmarks:
        # Of what is not trained now, nothing is measured.
        needed = measure and (not only or benchmark.name in only)
        largest = largest_stack(benchmark, place, run, measure=needed) if stacked else 1
        cells += _cells(benchmark, largest)
    chosen = tuple(cell for cell in cells if not only or cell.benchmark.name in only)
    return Plan(config=config, cells=tuple(cells), selected=chosen, estimate=estimate(chosen, run))


def _cells(benchmark: Benchmark, largest: int) -> list[Cell]:
    trials = [
        Trial(entry=entry, seed=seed) for entry in benchmark.methods for seed in benchmark.seeds
    ]
    keys = [digest(train_inputs(benchmark, trial)) for trial in trials]
    groups: list[list[int]] = []
    for number, trial in enumerate(trials):
        home = next((g for g in groups if len(g) < largest and _joins(trial, trials[g[0]])), None)
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


def _joins(trial: Trial, first: Trial) -> bool:
    return trial.method.stackable and trial.shared() == first.shared()
