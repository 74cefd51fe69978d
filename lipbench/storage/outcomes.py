"""Outcomes of single samples beside the rows, so that methods can be compared image by image."""

from pathlib import Path

import numpy as np

from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.files import check_is_file
from lipbench.storage.rows import Row


def outcome_name(row: Row) -> str:
    """Return the name, in the samples file, of the tensor whose mean over samples is the row.

    It has one entry per sample of the split, in the order of the split: 1 where the sample counts
    for the accuracy, 0 where it does not, or the share of draws where it does.
    """
    components = (row.checkpoint, row.metric, row.estimator, _text(row.norm), _text(row.epsilon))
    return "/".join(components)


def read_outcomes(cell: Path, row: Row) -> np.ndarray | None:
    """Return the outcomes behind `row` in float64, or None if they were not kept."""
    from safetensors import SafetensorError, safe_open

    path = CellFolder(cell).samples(row.eval_key)
    try:
        check_is_file(path)
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(outcome_name(row)).astype(np.float64)
    except (OSError, SafetensorError):
        return None


def _text(number: float | None) -> str:
    return "" if number is None else repr(float(number)).removesuffix(".0")
