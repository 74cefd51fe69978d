"""Stored numbers of a cell that cannot be true at once."""

from typing import cast

from torch import Tensor

from lipbench.bound import UNVERIFIED, Lipschitz, Side
from lipbench.evaluation.claims import CLAIMED, claim_in, refutations
from lipbench.lipschitz.soundness import crossings
from lipbench.norm import Norm
from lipbench.planning.cell import Cell
from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.evaluation_files import read_samples
from lipbench.storage.outcomes import outcome_name
from lipbench.storage.row_checks import untenable
from lipbench.storage.rows import Read, Row, read_rows


def contradictions(cell: Cell, folder: CellFolder, read: Read = read_rows) -> list[str]:
    """Return what the stored numbers of a cell say that cannot be true at once.

    A lower bound above an upper one of the same checkpoint, norm and domain; and a sample that is
    certified within a radius, and misclassified in float64 at a smaller distance. A bound whose
    own proof does not hold is one, too, and so is a constant that the method claims and a lower
    bound refutes. A value that nothing proves contradicts nothing.
    """
    there = [e.key for e in cell.evaluations if folder.rows(e.key).exists()]
    rows = [row for key in there for row in read(folder.rows(key))]
    samples = {
        (key, name): tensor for key in there for name, tensor in read_samples(folder, key).items()
    }
    messages = []
    for checkpoint in dict.fromkeys(row.checkpoint for row in rows):
        checkpoint_rows = [row for row in rows if row.checkpoint == checkpoint]
        messages += [f"{checkpoint}: {message}" for message in _untenable(checkpoint_rows)]
        messages += _broken(checkpoint, checkpoint_rows, samples)
    # Whatever a reader of the rows will not believe is none to be called done.
    return messages or [reason for _, reason in untenable(rows)]


def _untenable(rows: list[Row]) -> list[str]:
    """Return what the constants of one checkpoint say that cannot be true."""
    bounds = [row for row in rows if row.metric == "lipschitz" and row.value is not None]
    lies = [row for row in bounds if row.status == "invalid"]
    proved = [row for row in bounds if row.status == "done" and UNVERIFIED not in row.flags]
    messages = [f"{row.estimator}: {row.flags[-1]}" for row in lies]
    said = [_value(row) for row in (*proved, *lies)]
    messages += [violation.message for violation in crossings(said)]
    for claim in (claim_in(row) for row in rows if row.metric == CLAIMED):
        if claim is not None:
            messages += refutations(claim, map(_value, proved))
    return messages


def _value(row: Row) -> Lipschitz:
    assert row.value is not None
    assert row.norm is not None
    side = cast(Side, row.side)
    norm = Norm(row.norm)
    return Lipschitz(value=row.value, side=side, norm=norm, domain=row.box, flags=row.flags)


def _broken(checkpoint: str, rows: list[Row], samples: dict[tuple[str, str], Tensor]) -> list[str]:
    """Return each sample of a checkpoint that is certified further than it was broken."""
    messages = []
    for (_, name), radius in samples.items():
        if not (name.startswith(f"{checkpoint}/certified/") and name.endswith("/radius")):
            continue
        norm = float(name.split("/")[-2])
        for row in rows:
            distance = samples.get((row.eval_key, f"{outcome_name(row)}/distance"))
            if row.metric != "robust_accuracy" or row.norm != norm or distance is None:
                continue
            both = min(len(radius), len(distance))
            wrong = (radius[:both] > distance[:both]).nonzero().flatten().tolist()
            messages += [
                f"{checkpoint}: sample {n} is certified within {float(radius[n]):.9g} ({name}), "
                f"and {row.estimator} broke it at distance {float(distance[n]):.9g}"
                for n in wrong
            ]
    return messages
