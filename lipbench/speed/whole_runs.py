"""Whole runs timed: the program's overhead, and its time where nothing is left to do."""

import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lipbench.data.loading import load
from lipbench.data.splits import Data
from lipbench.evaluation.attack_outcomes import AttackOutcomes, Target
from lipbench.evaluation.measures import measure
from lipbench.evaluation.selection import selection_score
from lipbench.evaluation.subject import Subject
from lipbench.networks.net import Net, Skeleton
from lipbench.networks.network import as_network
from lipbench.planning.cell import Cell
from lipbench.planning.device import few_threads
from lipbench.planning.plan import plan
from lipbench.runs.run import run
from lipbench.speed.bench import Bench
from lipbench.speed.figure import Figure, Ratio
from lipbench.speed.stopwatch import TimedSide
from lipbench.speed.tables import Table, many_cells
from lipbench.storage.rows import Row, read_rows
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Outcome

_MORE_REPEATS = 3
"""Times the repeats of other works: the calls alone are to be compared with those of a run, which
differ by less than a machine varies."""


class Unfinished(Exception):
    """A run of the comparison did not end well; the message says how."""


def run_overhead(bench: Bench) -> Figure:
    """Return the figure of a whole run on the digits over its training and evaluation calls.

    A run says in its rows what each of these calls took: the seconds are those of one run, where
    two of them may differ by a fifth. What the calls themselves lose in a run, which writes files
    meanwhile, is not seen so. Hence a run is also timed in turns with the trainings and evaluations
    alone; there, what prepares them is on both sides.
    """
    table, device = bench.scale.run, bench.device
    stacks = plan(table, device=device.type).stacks()
    with TemporaryDirectory(prefix="lipbench-speed-") as directory:
        folders: list[Path] = []

        def whole() -> Callable[[], object]:
            folders.append(folder := Path(directory) / str(len(folders)))
            return lambda: _run(table, folder, device)

        sides: dict[str, TimedSide] = {
            "ours": whole,
            "alone": lambda: lambda: _alone(stacks, device),
        }
        for side in sides.values():
            side()()
        times = bench.alternate(sides, _MORE_REPEATS)
        spent = [inside(folder) for folder in folders[1:]]
    seconds = times.seconds["ours"]
    beside = Ratio.of(times.ratios("ours", "alone"))
    low, high = beside.spread
    return Figure(
        what="a whole run on the digits over its training and evaluation calls, by its own rows",
        ratio=Ratio.of([total / calls for total, calls in zip(seconds, spent, strict=True)]),
        ours_s=times.median("ours"),
        baseline_s=("inside", statistics.median(spent)),
        peak_bytes=times.peak_bytes,
        more={
            "alone_s": times.median("alone"),
            "ratio_alone": beside.value,
            "spread_alone": list(beside.spread),
            "cells": sum(map(len, stacks)),
            "repeats": len(seconds),
        },
        remarks=(
            f"over the same trainings and evaluations with nothing around them, timed in turns: "
            f"{beside.value:.3g} ({low:.3g} to {high:.3g}), the median of {len(seconds)} repeats",
        ),
    )


def noop_rerun(bench: Bench) -> Figure:
    """Return the figure, in seconds, of a run that finds all its cells finished."""
    table, device, cells = many_cells(bench.scale.cells), bench.device, bench.scale.cells
    with TemporaryDirectory(prefix="lipbench-speed-") as directory:
        folder = Path(directory)
        bench.say(f"{cells} cells to find finished")
        _run(table, folder, device)
        times = bench.alternate({"ours": lambda: lambda: _run(table, folder, device)})
        command = bench.alternate({"ours": lambda: lambda: _run_afresh(table, folder, device)})
    seconds = times.seconds["ours"]
    return Figure(
        what=f"seconds of a run that finds {cells} cells finished",
        ratio=Ratio.of(seconds),
        ours_s=times.median("ours"),
        peak_bytes=times.peak_bytes,
        more={"cells": cells, "process_s": command.median("ours")},
        remarks=(f"in a process of its own, imports included: {command.median('ours'):.2f} s",),
    )


def inside(folder: Path) -> float:
    """Return the seconds that the rows of a run say its training and evaluation calls took."""
    rows = read_rows(folder / "results.csv")
    training = {r.train_key: r.value or 0.0 for r in rows if r.metric == "training_seconds"}
    calls = {(r.train_key, r.checkpoint, r.eval_key): r.seconds or 0.0 for r in rows}
    return sum(training.values()) + sum(calls.values())


def _run(table: Table, folder: Path, device: torch.device) -> None:
    """Run a configuration in a folder, printing nothing.

    Raises:
        Unfinished: If not all cells are done at the end.
    """
    with redirect_stdout(io.StringIO()) as output:
        code = run(table, folder, device=device.type)
    if code:
        raise Unfinished(f"a run of the comparison failed: {output.getvalue().strip()}")


def _run_afresh(table: Table, folder: Path, device: torch.device) -> None:
    """Do the same in a new process.

    Raises:
        Unfinished: If not all cells are done at the end.
    """
    text = (
        "import json, sys, lipbench\n"
        "sys.exit(lipbench.run(json.load(sys.stdin), sys.argv[1], device=sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, str(folder), device.type],
        input=json.dumps(table),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unfinished(f"a run of the comparison failed: {(done.stdout + done.stderr).strip()}")


def _alone(stacks: list[tuple[Cell, ...]], device: torch.device) -> None:
    """Train and evaluate stacks of cells with nothing around the calls that do it."""
    for cells in stacks:
        benchmark, training = cells[0].benchmark, cells[0].entry.training
        with few_threads(benchmark):
            data = load(benchmark.dataset, device, getattr(torch, training.dtype))
            score = selection_score(benchmark, data)
            trainer = Trainer([cell.trial for cell in cells], benchmark.model, data, score)
            outcomes = trainer.run(trainer.begin())
            _evaluate(cells, outcomes, trainer.ensemble.skeleton, data)


def _evaluate(
    cells: tuple[Cell, ...], outcomes: list[Outcome], skeleton: Skeleton, data: Data
) -> None:
    targets = [
        Target(
            cell=cell,
            checkpoint=name,
            module=Net(skeleton, checkpoint.params, checkpoint.buffers).module(),
        )
        for cell, outcome in zip(cells, outcomes, strict=True)
        for name, checkpoint in outcome.checkpoints.items()
    ]
    attack_outcomes = AttackOutcomes(targets, data)
    for target in targets:
        subject = Subject(
            cell=target.cell,
            checkpoint=target.checkpoint,
            module=target.module,
            network=as_network(target.module, skeleton.input_shape),
            data=data,
            attack_outcomes=attack_outcomes,
            row=_row(target),
        )
        for evaluation in target.cell.evaluations:
            measure(subject, evaluation)


def _row(target: Target) -> Row:
    cell = target.cell
    return Row(
        benchmark=cell.benchmark.name,
        dataset="{}",
        model="{}",
        method=cell.entry.name,
        params="{}",
        seed=cell.seed,
        metric="",
        checkpoint=target.checkpoint,
        train_key=cell.key,
    )
