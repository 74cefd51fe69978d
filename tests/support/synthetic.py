"""Rows and runs made up for tests."""

import json
from dataclasses import replace

from lipbench.storage.cell_folder import CellFolder, Status
from lipbench.storage.files import write_text
from lipbench.storage.results import PlannedCell, write_plan
from lipbench.storage.rows import Row, format_rows
from lipbench.storage.seals import file_digest, seal_text

INF = float("inf")


def a_row(**changes):
    values = {
        "benchmark": "mnist",
        "dataset": '{"name": "mnist"}',
        "model": '{"name": "mlp"}',
        "method": "standard",
        "params": "{}",
        "seed": 0,
        "checkpoint": "chosen",
        "split": "test",
        "n": 10000,
        "metric": "test_accuracy",
        "side": "exact",
        "value": 0.9,
        "train_key": "t0",
        "eval_key": "e0",
    }
    return Row(**values | changes)


def measurements(test=0.9, attack=0.3, lower=2.0, upper=50.0, strength=None, **changes):
    # All that the evaluation of one checkpoint gives, for one seed.
    rows = [
        a_row(metric="train_accuracy", split="train", value=test + 0.03, **changes),
        a_row(metric="test_accuracy", value=test, **changes),
        a_row(metric="noise_accuracy[sigma=1,unclamped]", side="estimate", value=0.5, **changes),
        a_row(
            metric="noise_accuracy[sigma=1,unclamped]_std", side="estimate", value=0.01, **changes
        ),
        a_row(metric="noise_accuracy[sigma=1,clamped]", side="estimate", value=0.2, **changes),
    ]
    for epsilon, share in ((0.05, 0.8), (0.1, 0.6), (0.2, 0.4), (0.3, 0.1)):
        more = {"norm": INF, "epsilon": epsilon, "estimator": "pgd", "side": "upper"}
        rows.append(a_row(metric="robust_accuracy", value=share * test, **more, **changes))
    for estimator, epsilon, share, flags in (
        ("pgd", 0.25, 0.8, ()),
        ("pgd", 2.0, 0.1, ()),
        ("signed_steps", 2.0, attack / test, ("selection",)),
        ("signed_steps", 0.616, 0.7, ()),
    ):
        more = {"norm": 2.0, "epsilon": epsilon, "estimator": estimator, "side": "upper"}
        more["flags"] = flags
        rows.append(a_row(metric="robust_accuracy", value=share * test, **more, **changes))
    for epsilon, share in ((0.25, 0.3), (0.5, 0.2), (1.58, 0.0)):
        more = {"norm": 2.0, "epsilon": epsilon, "estimator": "product", "side": "lower"}
        rows.append(a_row(metric="certified_accuracy", value=share * test, **more, **changes))
    more = {"metric": "lipschitz", "norm": 2.0, "domain": "all", "split": ""}
    rows.append(a_row(side="lower", value=lower * 0.9, estimator="jacobian", **more, **changes))
    rows.append(a_row(side="lower", value=lower, estimator="pair_ascent", **more, **changes))
    rows.append(a_row(side="upper", value=upper, estimator="product", **more, **changes))
    if strength is not None:
        rows.append(a_row(metric="strength[lambda]", value=strength, split="", **changes))
    return rows


def failure(state, **changes):
    return a_row(
        metric="cell",
        status="failed",
        value=None,
        side="",
        checkpoint="",
        flags=(state,),
        **changes,
    )


def a_run(folder, cells):
    # `cells` are (method, params, seed, state, rows) tuples.
    planned = []
    for method, params, seed, state, rows in cells:
        key = f"{method}-{seed}-{abs(hash(json.dumps(params, sort_keys=True))) % 1000}"
        cell = CellFolder.of(folder, "mnist", method, key)
        planned.append(
            PlannedCell(
                key=key,
                benchmark="mnist",
                method=method,
                label=method,
                params=json.dumps(params, sort_keys=True),
                seed=seed,
                folder=cell.path.relative_to(folder).as_posix(),
                dataset='{"name": "mnist"}',
                model='{"name": "mlp"}',
            )
        )
        if state is not None:
            cell.write_status(Status(state=state, message="a reason" if state != "done" else ""))
        if rows:
            write_sealed(cell, "e0", [as_row_of(planned[-1], row) for row in rows])
    write_plan(folder, planned)
    (folder / "cells").mkdir(exist_ok=True)
    return planned


def as_row_of(planned, row, eval_key="e0"):
    """Return the row as one of a planned cell."""
    columns = ("benchmark", "dataset", "model", "method", "params", "seed")
    own = {name: getattr(planned, name) for name in columns}
    return replace(row, train_key=planned.key, eval_key=eval_key, **own)


def write_sealed(folder, key, rows, train_key=None):
    """Write the rows of an evaluation, and the seal that says that they are complete."""
    path = folder.rows(key)
    write_rows(path, rows)
    paths = (path, folder.samples(key), folder.proof(key))
    digests = {path.name: file_digest(path) for path in paths if path.exists()}
    train_key = folder.path.name if train_key is None else train_key
    write_text(folder.seal(key), seal_text(train_key, key, digests))


def write_rows(path, rows):
    write_text(path, format_rows(rows))
