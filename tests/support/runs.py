"""Whole runs, as small as they can be, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lipbench
from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.rows import read_rows

ROOT = Path(__file__).parents[2]
DATASET = {"name": "digits", "train_size": 128, "pair_size": 64, "validation_size": 40}
PGD = {"name": "pgd", "norm": 2, "epsilon": [0.1, 0.5], "steps": 2, "starts": 1}
DRIVEN = {"name": "clip", "target_accuracy": 0.4, "pairs": 16}
EVALUATION = {
    "test_size": 40,
    "noise": [{"sigma": 0.3, "clamp": True, "draws": 3}],
    "attack": [PGD],
    "bound": ["product", {"name": "jacobian", "points": 4}],
}


def benchmark(*methods, **changes):
    """Return the table of a benchmark that takes a second a cell; methods are names or tables."""
    table = {
        "name": "tiny",
        "dataset": DATASET,
        "model": {"name": "mlp", "widths": [16], "activation": "relu"},
        "training": {
            "epochs": 2,
            "batch_size": 16,
            "warmup": 0,
            "optimizer": {"name": "adam", "lr": 0.02},
        },
        "selection": {"attack": "pgd_l2_sign", "epsilon": 0.5, "alpha": 0.25, "steps": 1},
        "evaluation": EVALUATION,
        "method": list(methods) or ["standard"],
    }
    return table | changes


def config(*methods, seeds=(0,), **changes):
    """Return a configuration with one benchmark."""
    return several(benchmark(*methods, **changes), seeds=seeds)


def several(*benchmarks, seeds=(0,)):
    return {"schema": 1, "seeds": list(seeds), "benchmark": list(benchmarks)}


def evaluation(**changes):
    return {"evaluation": EVALUATION | changes}


def run(settings, folder, **options):
    return lipbench.run(settings, folder, device="cpu", **options)


def results(folder):
    return read_rows(folder / "results.csv")


def cell_folders(folder):
    """Return the folders of the planned cells, by (method, seed) or, if ambiguous, by number."""
    cells = json.loads((folder / "plan.json").read_text())["cells"]
    named = {(cell["method"], cell["seed"]): CellFolder(folder / cell["folder"]) for cell in cells}
    if len(named) < len(cells):
        return {number: CellFolder(folder / cell["folder"]) for number, cell in enumerate(cells)}
    return named


def states(folder):
    statuses = {
        name: cell_folder.read_status() for name, cell_folder in cell_folders(folder).items()
    }
    return {name: status.state if status else "missing" for name, status in statuses.items()}


def numbers(folder):
    """Return all that must be equal in two runs of one configuration, which times need not be."""
    kept = []
    for row in results(folder):
        table = vars(row) | {"seconds": None, "env_id": ""}
        kept.append(tuple(table.items()) if row.metric != "training_seconds" else row.metric)
    return kept


def networks(folder):
    """Return the bytes of all checkpoints of a run."""
    paths = (folder / "cells").rglob("model*.safetensors")
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def files(folder):
    """Return content and time of all files of all cells of a run."""
    paths = (path for path in (folder / "cells").rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


FORKS = """
import json, os, signal, sys, tempfile, tomllib
import lipbench.cli.main, lipbench.training.optimiser, lipbench.runs.stack_training

tomllib.loads = json.loads  # there is no writer of TOML, and JSON says the same
lipbench.runs.stack_training.SAVE_EVERY = 0
# A shell starts what it puts into the background with interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
KINDS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "KILL": signal.SIGKILL}


def strike(owner, name, kind, number, after):
    # The process is hit before (or after) the call with this number.
    original, calls = getattr(owner, name), 0
    def wrapper(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number and not after:
            os.kill(os.getpid(), KINDS[kind])
        result = original(*arguments, **options)
        if calls == number and after:
            os.kill(os.getpid(), KINDS[kind])
        return result
    setattr(owner, name, wrapper)


def start(job):
    child = os.fork()
    if child:
        return child
    owners = {"replace": os, "step": lipbench.training.optimiser.Optimizer}
    for name, kind, number, after in job["hits"]:
        strike(owners[name], name, kind, number, after)
    sys.argv = ["lipbench", *job["arguments"]]
    try:
        lipbench.cli.main.main()
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(stop.code)


with tempfile.TemporaryDirectory() as folder:  # what is imported late is imported here, once
    lipbench.run(json.loads(sys.argv[2]), folder, device="cpu")
print("\\0", end="", flush=True)
codes = []
for together in json.loads(sys.argv[1]):
    children = [start(job) for job in together]
    codes.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    print("\\0", end="", flush=True)
print(json.dumps(codes))
"""


def job(settings, folder, *hits):
    """Return a run for `processes`; `hits` are (function, signal, number of the call, after it)."""
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(settings))
    return {"arguments": ["run", str(path), "-o", str(folder)], "hits": hits}


def processes(*groups):
    """Return exit codes and output of groups of jobs; those of a group run at the same time.

    They are forked from one process that has imported everything, which takes most of the time.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(groups), json.dumps(config("clip"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    _, *outputs, last = done.stdout.split("\0")
    return json.loads(last), outputs
